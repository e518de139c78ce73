"""The /workspace volume of a build, and the sources that fill it.

Start with `protocol`. `volume` and `overlay` are the two kinds of volume; `fetched` fills one, and
a `kept` one outlives a build or its process. `files` reads files out of a workspace.
"""
