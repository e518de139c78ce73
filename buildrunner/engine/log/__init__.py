"""The log of a running build: from bytes of containers to masked, numbered lines.

`pipeline` is the way of a line; `masking` hides secrets before anything else sees them; `sink` is
the protocol of whoever takes the lines.
"""
