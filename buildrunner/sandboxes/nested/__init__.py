"""A container engine for each build, in a container of the host's engine.

Start with `sandbox`, which makes a `place` for each build: `container` describes the container,
`daemon` starts and finds the container, `engine` is the engine that runs the steps. `image_cache`
shares images between sandboxes; `spare` starts sandboxes before builds need them.
"""
