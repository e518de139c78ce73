"""`buildrunner triggers`, `schedules` and `deliveries`: commands for automatic builds on a server.

`hook` installs the hook of a bare repository; `bare_hook` is the program that runs there.
"""
