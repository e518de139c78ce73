"""Builds as a table: where their sources are from."""

from typing import Any

import pytest

from buildrunner.cli.builds.local import build_table


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ({"storageSource": {"bucket": "b", "object": "o.tgz"}}, "gs://b/o.tgz"),
        ({"repoSource": {"repoName": "r", "tagName": "v1"}}, "r@v1"),
        (
            {"gitSource": {"url": "https://git.test/r", "revision": "main"}},
            "https://git.test/r@main",
        ),
        ({"gitSource": {"url": "https://git.test/r"}}, "https://git.test/r"),
        ({"connectedRepository": {"repository": "P/shop", "revision": "main"}}, "P/shop@main"),
        (
            {"connectedRepository": {"repository": "projects/p/connections/c/repositories/shop"}},
            "shop",
        ),
        ({}, "-"),
    ],
)
def test_a_source_in_short(source: dict[str, Any], shown: str) -> None:
    shown_row = build_table([{"id": "i", "status": "QUEUED", "source": source}]).splitlines()[1]
    assert shown_row.split() == ["i", "-", "-", shown, "-", "QUEUED"]
