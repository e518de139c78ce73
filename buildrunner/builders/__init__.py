"""The builder images that replace gcr.io/cloud-builders: the catalog, and how they are made.

Start with `catalog`. `installer` makes images; `image_factory` builds one from Debian packages.
"""
