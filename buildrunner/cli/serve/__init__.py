"""`buildrunner serve`, and the commands for operators of a server.

`command` starts the server; `settings` reads its configuration; `hooks` and `worker`
wire its loops. `execute` and `spare` are the processes of builds. Tokens, audit and backup open the
server's database directly.
"""
