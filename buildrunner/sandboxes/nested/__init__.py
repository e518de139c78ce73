"""A container engine for each build, in a container of the host's engine.

Start with `sandbox`, which makes a `place` for each build: `container` describes the container,
`daemon` starts and finds it, `engine` is what steps run on. `image_cache` shares images between
them; `spare` keeps places ready ahead of need.
"""
