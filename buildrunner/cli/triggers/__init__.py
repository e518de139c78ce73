"""`buildrunner triggers`, `schedules` and `deliveries`: what starts builds on a server.

`hook` installs the hook of a bare repository; `bare_hook` is the program that runs there.
"""
