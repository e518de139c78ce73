"""Workers: they claim builds, run each in its own process, and adopt builds after a crash.

Start with `supervisor`. `execution` is the process of one build; `leases` and `recovery` make sure
that no build runs twice or is lost.
"""
