from __future__ import annotations

from typing import Any

import pytest

from buildrunner.spec.model.build import Status
from buildrunner.triggers.forge_host import KINDS, named_forge
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.status_report import (
    HttpRequest,
    Report,
    context_of,
    report_of,
    status_request,
)

SHA = "0123456789abcdef0123456789abcdef01234567"
URL = "https://ci.example.com/log"
BASES = {
    "github": "https://github.com",
    "gitlab": "https://gitlab.com",
    "gitea": "https://git.example.com:8443",
    "forgejo": "https://git.example.com",
    "bitbucket": "https://bitbucket.org",
    "bitbucket-server": "https://stash.example.com",
}
STATES = {
    # status: GitHub and Gitea, GitLab, Bitbucket, Bitbucket Server
    "PENDING": ("pending", "pending", "INPROGRESS", "INPROGRESS"),
    "QUEUED": ("pending", "pending", "INPROGRESS", "INPROGRESS"),
    "WORKING": ("pending", "running", "INPROGRESS", "INPROGRESS"),
    "SUCCESS": ("success", "success", "SUCCESSFUL", "SUCCESSFUL"),
    "FAILURE": ("failure", "failed", "FAILED", "FAILED"),
    "TIMEOUT": ("failure", "failed", "FAILED", "FAILED"),
    "INTERNAL_ERROR": ("error", "failed", "FAILED", "FAILED"),
    "CANCELLED": ("error", "canceled", "STOPPED", "FAILED"),
    "EXPIRED": ("error", "canceled", "STOPPED", "FAILED"),
}
COLUMNS = {"github": 0, "gitea": 0, "forgejo": 0, "gitlab": 1, "bitbucket": 2}


def report(status: str = "SUCCESS", **more: Any) -> Report:
    build = {"status": status, "logUrl": URL, **more}
    return report_of("acme/app", SHA, build, context_of("p", "on-push"))


def request(forge: str, told: Report, base: str = "") -> HttpRequest:
    made = status_request(named_forge(forge, base or BASES[forge]), told)
    assert made is not None
    return made


def test_every_forge_is_told() -> None:
    assert set(BASES) | {"git"} == set(FORGES) | {"git"}  # a bare repository shows no statuses
    assert {named_forge(forge, base).kind for forge, base in BASES.items()} == set(KINDS)


def test_every_status_has_a_state() -> None:
    assert set(STATES) == {status.name for status in Status} - {"STATUS_UNKNOWN"}
    assert status_request(named_forge("github"), report("STATUS_UNKNOWN")) is None


@pytest.mark.parametrize("commit", ["", "main", f"../../../victim/repo/statuses/{SHA}", f"{SHA}\n"])
def test_a_commit_that_is_none_becomes_no_part_of_an_address(commit: str) -> None:
    sent = report_of("acme/app", commit, {"status": "SUCCESS"}, context_of("p", "on-push"))
    assert status_request(named_forge("github"), sent) is None


@pytest.mark.parametrize("status", STATES)
@pytest.mark.parametrize("forge", BASES)
def test_states_are_the_forge_s_own(forge: str, status: str) -> None:
    body = request(forge, report(status)).body
    assert body["state"] == STATES[status][COLUMNS.get(forge, 3)]


@pytest.mark.parametrize(
    ("forge", "base", "url"),
    [
        ("github", "", f"https://api.github.com/repos/acme/app/statuses/{SHA}"),
        (
            "github",
            "https://ghe.example.com/",
            f"https://ghe.example.com/api/v3/repos/acme/app/statuses/{SHA}",
        ),
        ("gitlab", "", f"https://gitlab.com/api/v4/projects/acme%2Fapp/statuses/{SHA}"),
        ("gitea", "", f"https://git.example.com:8443/api/v1/repos/acme/app/statuses/{SHA}"),
        ("forgejo", "", f"https://git.example.com/api/v1/repos/acme/app/statuses/{SHA}"),
        (
            "bitbucket",
            "",
            f"https://api.bitbucket.org/2.0/repositories/acme/app/commit/{SHA}/statuses/build",
        ),
        (
            "bitbucket-server",
            "",
            f"https://stash.example.com/rest/api/latest/projects/acme/repos/app/commits/{SHA}/builds",
        ),
    ],
)
def test_addresses(forge: str, base: str, url: str) -> None:
    made = request(forge, report(), base)
    assert (made.method, made.url) == ("POST", url)


def test_bodies_name_trigger_log_and_outcome() -> None:
    common = {"target_url": URL, "description": "Succeeded"}
    context = "buildrunner/p/on-push"
    assert request("github", report()).body == {"state": "success", "context": context, **common}
    assert request("gitea", report()).body == {"state": "success", "context": context, **common}
    assert request("gitlab", report()).body == {"state": "success", "name": context, **common}
    body = {"key": context, "name": context, "url": URL, "description": "Succeeded"}
    assert request("bitbucket", report()).body == {"state": "SUCCESSFUL", **body}


def test_tokens_go_where_each_forge_wants_them() -> None:
    places = {name: request(name, report()) for name in BASES}
    shown = {name: (made.header, made.scheme) for name, made in places.items()}
    assert shown == {
        "github": ("Authorization", "Bearer"),
        "gitlab": ("PRIVATE-TOKEN", ""),
        "gitea": ("Authorization", "token"),
        "forgejo": ("Authorization", "token"),
        "bitbucket": ("Authorization", "Bearer"),
        "bitbucket-server": ("Authorization", "Bearer"),
    }


def test_a_failure_says_why_in_one_short_line() -> None:
    told = report("FAILURE", failureInfo={"detail": 'step "test"\nexited with 1'})
    assert told.text == 'Failed: step "test" exited with 1'
    told = report("CANCELLED", statusDetail="x" * 500)
    assert told.text == f"Cancelled: {'x' * 128}…"
    assert len(told.text) == 140
    assert report("SUCCESS", statusDetail="whatever").text == "Succeeded"


def test_long_names_stay_different_on_bitbucket() -> None:
    keys = set()
    for name in ("t" * 60 + "1", "t" * 60 + "2"):
        told = report_of("acme/app", SHA, {"status": "QUEUED"}, context_of("p", name))
        body = request("bitbucket", told).body
        assert len(body["key"]) == 40
        assert body["name"] == f"buildrunner/p/{name}"
        keys.add(body["key"])
    assert len(keys) == 2


def test_names_can_not_leave_their_place_in_the_address() -> None:
    told = report_of("../../x?y#z", SHA, {"status": "QUEUED"}, "t")
    assert "/projects/..%2F..%2Fx%3Fy%23z/statuses/" in request("gitlab", told).url
    assert "?" not in request("github", told).url


def test_projects_whose_names_differ_in_case_have_contexts_of_their_own() -> None:
    names = [context_of(project, "t") for project in ("acme", "Acme", "ACME")]
    assert names[0] == "buildrunner/acme/t"
    assert len({name.lower() for name in names}) == 3
