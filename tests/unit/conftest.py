"""Unit tests that start programs, fuzz, wait or read all docs: for `make test`, not `make unit`."""

from pathlib import Path

import pytest

_HERE = Path(__file__).parent

SLOW = (
    "archives/test_archives.py",
    "cli/test_missing_packages.py",
    "containers/test_engine_failures.py",
    "containers/test_guardian.py",
    "docs/test_*.py",
    "logs/test_log_file.py",
    "logs/test_search.py",
    "metadata/test_metadata_server.py",
    "secrets/test_local_store.py",
    "server/test_admission.py",
    "deploy/test_chart.py",
    "deploy/test_compose.py",
    "sources/test_git_*.py",
    "sources/test_ignore_rules.py",
    "spec/test_decode_fuzz.py",
    "spec/test_schema.py",
    "spec/test_validate_fuzz.py",
    "store/test_local_store.py",
    "store/test_sql_filter.py",
    "worker/test_execute.py",
    "worker/test_spare_process.py",
    "worker/test_supervisor.py",
)
"""Paths below this folder."""


@pytest.hookimpl(tryfirst=True)  # before ``-m`` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of these modules."""
    slow = {path for pattern in SLOW for path in _HERE.glob(pattern)}
    for item in items:
        if item.path in slow:
            item.add_marker(pytest.mark.slow)
