"""Builds of a server on another host, over the worker protocol.

`queue` is the queue of that server, `log_sender` sends log and events as they grow, `materials`
fetches what a build needs of the server: its uploaded source and its secrets. Everything else of a
build runs as beside the server.
"""
