"""Container engines: the protocol, and the code that needs nothing but the protocol.

Start with `protocol`. `docker` implements the protocol on the Docker Engine API, `fake` in memory;
both pass one contract suite. `cleanup` removes the containers, networks and volumes that builds
leave on an engine.
"""
