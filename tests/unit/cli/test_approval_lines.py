"""What a terminal says of a build that waits for an approval."""

from __future__ import annotations

import pytest

from buildrunner.cli.builds.remote import approval_lines


@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"forge": "github"}, "Of pull request #7, from f"),
        ({"forge": "gitlab"}, "Of merge request !7, from f"),
        (
            {"forge": "gitlab", "fork": True},
            "Of a fork's merge request !7, from f",
        ),
    ],
)
def test_a_request_is_named_as_its_forge_names_it(facts: dict[str, object], line: str) -> None:
    assert approval_lines({"pullRequest": 7, "headRepository": "f", **facts}) == [line]
