"""Sphinx settings: `make docs` writes docs/_build/html."""

from buildrunner import __version__

project = "buildrunner"
author = "the buildrunner developers"
release = version = __version__
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"buildrunner {release}"
nitpicky = True
suppress_warnings = ["myst.xref_missing"]
