"""`buildrunner builds`: list, describe, log, cancel, retry, approve.

`command` has the arguments. `local` has the commands on this machine, and the table of builds;
`remote` has the commands on a server.
"""
