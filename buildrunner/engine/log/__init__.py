"""The log of a running build: from bytes of containers to masked, numbered lines.

`pipeline` processes each line and writes it to a `LogSink`; `masking` hides secrets before any
other code sees them.
"""
