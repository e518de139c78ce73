"""Workers: claim builds, run each in a process of its own, adopt what a crash left.

Start with `supervisor`. `execution` is what a build's process does; `leases` and `recovery` make
sure that no build runs twice or is lost.
"""
