"""Kubernetes: one Job for each build of a pool.

Start with `manifest`, which makes the Job of a build. `pool` has the settings of a pool.
"""
