"""Log files and their index: written once, read while they grow.

`log_file` says how a log lies on disk; `reader`, `follower` and `search` read it.
"""
