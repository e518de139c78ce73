"""Sandboxes: a build's containers run on the host's engine, or on an engine of their own.

Start with `protocol`. `host` uses the engine of the machine; `nested` starts an engine for each
build. `guardian` is a process that outlives a build's process and removes its leftovers.
"""
