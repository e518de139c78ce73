"""The Docker Engine API, of Docker and of Podman: the only door to an engine.

Start with `engine`, which is composed of `containers`, `images` and `resources`.
"""
