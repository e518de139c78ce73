"""A program that publishes packages, run inside a container by the container's Python.

It needs the standard library alone (and twine, for Python packages). Its source files are copied
into the container.
"""
