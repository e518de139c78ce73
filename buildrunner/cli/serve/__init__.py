"""`buildrunner serve`, and the commands for operators of a server.

`command` starts the server; `settings` reads its configuration; `loops` and `worker` run its
threads. `execute` and `spare` are the processes of builds. Tokens, audit and backup open the
server's database directly.
"""
