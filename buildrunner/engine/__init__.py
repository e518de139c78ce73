"""Runs one compiled build: its loop, the life of a step, its log, the push, the results.

Start with `run_build` and `build_loop`. The loop alone decides; threads do the work and report to
its `inbox`. `events` is what the rest of the world hears. Knows containers by their protocol only.
"""
