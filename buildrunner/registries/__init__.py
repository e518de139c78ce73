"""Logins for image registries and package repositories.

`logins` reads the logins of the user and of steps for registries, `package_logins` those for
package repositories.
"""
