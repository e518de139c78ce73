"""Uploads of build results other than images: files and packages.

`objects` uploads files of the workspace to buckets; `packages` publishes packages from a container
that runs `publisher`.
"""
