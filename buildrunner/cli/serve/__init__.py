"""`buildrunner serve`, and the commands for whoever runs a server.

`command` starts the server; `flags` and `settings` read what it was told; `hooks` and `worker` wire
its loops. `execute` and `spare` are the processes of builds. Tokens, audit and backup open the
server's database directly.
"""
