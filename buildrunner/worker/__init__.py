"""Workers: claim builds, run each in a process of its own, adopt builds after a crash.

Start with `supervisor`. `execution` is the process of one build; `leases` and `recovery` make sure
that no build runs twice or is lost.
"""
