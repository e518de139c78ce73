"""`buildrunner triggers`, `schedules` and `deliveries`: the events that start builds on a server.

`hook` installs the hook of a bare repository; `bare_hook` is the program that runs there.
"""
