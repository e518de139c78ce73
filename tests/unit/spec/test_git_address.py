"""Passwords in addresses of repositories."""

from __future__ import annotations

from typing import Any

import pytest

from buildrunner.spec.model.git_address import (
    build_problems,
    has_password,
    masked_build,
    masked_trigger,
    trigger_problems,
    without_password,
)

PAT = "ghp_" + "a1B2" * 9


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("https://u:hunter2@h/r.git", "https://u:***@h/r.git"),
        ("https://:hunter2@h/r", "https://:***@h/r"),
        ("https://u:p:q@x@h/r", "https://u:***@h/r"),
        ("https://u%3Ahunter2@h/r", "https://u:***@h/r"),
        ("HTTPS://u:hunter2@h", "HTTPS://u:***@h"),
        ("https:/u:hunter2@h/r", "https:/u:***@h/r"),
        ("Https:///u:hunter2@h/r", "Https:///u:***@h/r"),
        ("git+ssh:/u:hunter2@h/r", "git+ssh:/u:***@h/r"),
        (f"https:/{PAT}@h/r", "https:/***@h/r"),
        ("ssh://git:hunter2@h/r", "ssh://git:***@h/r"),
        ("git+ssh://git:hunter2@h/r", "git+ssh://git:***@h/r"),
        ("ftp://u:hunter2@h/r", "ftp://u:***@h/r"),
        ("git:hunter2@h:o/r", "git:***@h:o/r"),
        (f"https://{PAT}@github.com/o/r", "https://***@github.com/o/r"),
        ("https://glpat-abc_DEF-123@gitlab.com/o/r", "https://***@gitlab.com/o/r"),
        (f"https://{'0a' * 20}@h/r", "https://***@h/r"),
        ("https://h/r.git?private_token=hunter2&x=1", "https://h/r.git?private_token=***&x=1"),
        ("https://h/r.git#access_token=hunter2", "https://h/r.git#access_token=***"),
        (" https://u:hunter2@h/r.git", " https://u:***@h/r.git"),
        ("<'https://u:hunter2@h/r.git'>", "<'https://u:***@h/r.git'>"),
        ("git clone https://u:hunter2@h/r.git", "git clone https://u:***@h/r.git"),
        ("https://h/r.git?x=1;Password=hunter2", "https://h/r.git?x=1;Password=***"),
    ],
)
def test_a_password_is_found_and_masked(address: str, masked: str) -> None:
    assert has_password(address)
    assert without_password(address) == masked
    assert has_password(masked)  # the mask is no password, and no address either
    assert without_password(masked) == masked


@pytest.mark.parametrize(
    "address",
    [
        "",
        "https://github.com/o/r.git",
        "https://user@bitbucket.org/team/r.git",
        "https://x-access-token@github.com/o/r",
        "git@github.com:o/r.git",
        "ssh://git@h:2222/r",
        "https://h:8443/o/r",
        "https://h/o/r@v1:x",
        "https://h/o/r?ref=main",
        "https://h/o/r#a:b@c",
        "/srv/git/a:b@c.git",
        "file:///srv/a:b@c",
        "host:/a:b@c",
        "https:/user@h/r",
        "app",
        "projects/p/locations/l/connections/c/repositories/r",
    ],
)
def test_other_addresses_stay_as_they_are(address: str) -> None:
    assert not has_password(address)
    assert without_password(address) == address


BAD, SHOWN = "https://u:hunter2@h/r", "https://u:***@h/r"


@pytest.mark.parametrize(
    "field",
    [
        {"artifacts": {"pythonPackages": [{"repository": BAD, "paths": ["x"]}]}},
        {"artifacts": {"mavenArtifacts": [{"repository": BAD, "path": "x"}]}},
        {"artifacts": {"npmPackages": [{"repository": BAD, "packagePath": "x"}]}},
        {"artifacts": {"genericArtifacts": [{"registryPath": BAD, "folder": "x"}]}},
        {"source": {"repoSource": {"repoName": BAD}}},
    ],
)
def test_addresses_of_other_repositories_have_no_password_either(field: dict[str, Any]) -> None:
    """Issue: a login in a repository of packages was stored, shown and sent by notifiers."""
    (problem,) = build_problems(field)
    assert problem.rule == "git-password"
    assert SHOWN in str(masked_build(field))
    assert BAD not in str(masked_build(field))


def build(url: str) -> dict[str, Any]:
    return {
        "source": {"gitSource": {"url": url, "revision": "main"}},
        "sourceProvenance": {"resolvedGitSource": {"url": url}},
        "dependencies": [{"empty": True}, {"gitSource": {"repository": {"url": url}}}],
        "steps": [{"args": [BAD]}],  # what a step is told is the user's own
    }


def trigger(url: str) -> dict[str, Any]:
    return {
        "sourceToBuild": {"uri": url, "ref": "refs/heads/main"},
        "gitFileSource": {"uri": url, "path": "c.yaml"},
        "repositoryEventConfig": {"repository": url},
        "triggerTemplate": {"repoName": url},
        "build": build(url),
    }


def test_documents_are_masked_where_addresses_are() -> None:
    given = build(BAD)
    assert masked_build(given) == build(SHOWN)
    assert given == build(BAD)
    assert masked_trigger(trigger(BAD)) == trigger(SHOWN)
    assert masked_build(build("https://h/r")) == build("https://h/r")
    for odd in ({"source": None}, {"dependencies": {}}, {"source": {"gitSource": {"url": 1}}}):
        assert masked_build(odd) == odd


def test_each_address_with_a_password_is_a_problem_that_does_not_show_it() -> None:
    found = build_problems(build(BAD))
    assert [one.path for one in found] == [
        "source.gitSource.url",
        "sourceProvenance.resolvedGitSource.url",
        "dependencies[1].gitSource.repository.url",
    ]
    assert not any("hunter2" in one.text() for one in found)
    assert build_problems(build("https://h/r")) == []
    assert len(trigger_problems(trigger(BAD))) == 7
    assert len(trigger_problems(trigger(SHOWN))) == 7


def test_an_address_that_was_there_before_is_no_problem_of_a_change() -> None:
    assert trigger_problems(trigger(BAD), trigger(BAD)) == []
    assert len(trigger_problems(trigger(BAD), trigger(SHOWN))) == 7
