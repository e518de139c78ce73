"""Provenance of what builds publish: signed statements that say which build made an artifact.

Start with `statement`, which describes a build in the form of SLSA v1. `signing` signs a statement,
`attester` does both for a running build, and `stored` keeps the result on disk.
"""
