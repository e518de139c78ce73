"""Log files and their index: written once, read while they grow.

`log_file` defines the format on disk; `reader` reads and searches it.
"""
