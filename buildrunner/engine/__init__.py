"""Runs one compiled build: the loop, steps, log, image push, results.

Start with `build_loop` (`run_build`) and `running_build`. The loop alone decides; threads do the
work and report to its `inbox`. `events` are the reports to the outside. The engine knows
containers, workspaces and uploads by their protocols only.
"""
