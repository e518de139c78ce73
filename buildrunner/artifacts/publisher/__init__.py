"""A program that publishes packages, run in a container by the Python that is there.

It stands on the standard library alone (and on twine, for Python packages), and is sent into the
container as it is.
"""
