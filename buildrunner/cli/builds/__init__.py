"""`buildrunner builds`: list, describe, log, cancel, retry, approve.

`command` has the arguments. `local` reads this machine's store, `remote` asks a server.
"""
