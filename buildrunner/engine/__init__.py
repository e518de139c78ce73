"""Runs one compiled build: the loop, steps, log, image push, results.

Start with ``run_build`` in `build_loop`, and with `running_build`. The loop alone decides; threads
do the work and report to its `inbox`. `events` are the reports to the outside. The engine knows
containers, workspaces and uploads by their protocols only.
"""
