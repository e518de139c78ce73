"""The Docker Engine API, of Docker and of Podman: the only code that talks to an engine.

Start with `engine`, which is composed of `containers`, `images` and `resources`.
"""
