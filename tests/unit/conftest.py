"""Unit tests that start many programs, fuzz or wait: for `make test`, and not for `make unit`."""

from pathlib import Path

import pytest

_HERE = Path(__file__).parent

SLOW = (
    "containers/test_engine_failures.py",
    "containers/test_guardian.py",
    "sources/test_archive.py",
    "sources/test_git_*.py",
    "sources/test_ignore_rules.py",
    "spec/test_decode_fuzz.py",
    "spec/test_validate_fuzz.py",
)
"""Paths below this folder."""


@pytest.hookimpl(tryfirst=True)  # before ``-m`` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of these modules."""
    slow = {path for pattern in SLOW for path in _HERE.glob(pattern)}
    for item in items:
        if item.path in slow:
            item.add_marker(pytest.mark.slow)
