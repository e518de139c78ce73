"""gcloud is Google's own program; where it is not installed, its tests are not collected."""

import shutil

import pytest

HAS_GCLOUD = shutil.which("gcloud") is not None
collect_ignore = [] if HAS_GCLOUD else ["test_gcloud.py"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so, instead of being silent about it."""
    if not HAS_GCLOUD:
        terminalreporter.write_line("gcloud is not installed: tests/server/test_gcloud.py left out")
