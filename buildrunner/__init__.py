"""buildrunner: runs Google Cloud Build configs unchanged, on your own machine."""

__version__ = "0.1.0"
