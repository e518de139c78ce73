"""Containers: the protocol of an engine, and what stands on the protocol alone.

Start with `protocol` and `types`. `docker` implements the protocol on the Docker Engine API, `fake`
in memory; one contract suite holds both to it. `cleanup` removes what builds leave on an engine.
"""
