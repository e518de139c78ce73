"""Builds of a server on another host, over the worker protocol.

`queue` is the queue of that server, `log_sender` sends log and events as they grow, and `materials`
fetches the uploaded source and the secrets of a build. The rest works as for a build on the
server's machine.
"""
