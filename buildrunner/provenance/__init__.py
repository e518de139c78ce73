"""Provenance of what builds publish: signed statements that say which build made an artifact.

Start with `statement`, which describes a build in the form of SLSA v1. `signing` signs a statement,
`attester` does both for a running build, `stored` keeps the result on disk, and `attachment` puts
it beside an image. `sbom` lists the content of an image. `verification` checks an artifact against
a policy.
"""
