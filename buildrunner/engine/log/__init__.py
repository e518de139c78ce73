"""The log of a running build: from bytes of containers to masked, numbered lines.

`pipeline` processes each line; `masking` hides secrets before any other code sees them; `sink` is
the protocol of the receivers of lines.
"""
