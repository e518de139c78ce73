"""The /workspace volume of a build, and the sources that fill it.

Start with `protocol`. `volume` and `overlay` are the two kinds of volume; `fetched`, `kept`
and `resumed` fill one; `files` reads files out of it.
"""
