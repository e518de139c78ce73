"""buildrunner: runs Google Cloud Build configs unchanged, on your own machine.

A build's way: `cli` or `server` takes a request; `spec` reads and validates it; `build_run` fetches
the source and compiles a `plan`; `engine` runs the plan in containers of a sandbox. The layers are
in pyproject.toml, where import-linter checks them; docs/explanation/architecture.md draws them.
"""

__version__ = "0.1.0"
