"""Where a build's containers live: on the host's engine, or on one of the build's own.

Start with `protocol`. `host` uses the engine of the machine; `nested` starts an engine for each
build. `guardian` is a process that outlives a build's process and removes what it leaves.
"""
