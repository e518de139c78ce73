"""Settings of a trigger that are gone, or that nobody can read, drop nothing that they demanded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildrunner.server.services.triggers import known_trigger
from tests.api_server import ApiServer, api_server

APPROVERS = {"approval": {"approvers": ["alice"]}}
OF_ANOTHER_VERSION = {**APPROVERS, "publicBadge": True, "forge": {"kind": "gitea"}, "since-v9": 1}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        trigger = {
            "name": "ci",
            "github": {"owner": "acme", "name": "app", "push": {"branch": "^main$"}},
            "build": {"steps": [{"name": "busybox"}]},
            "approvalConfig": {"approvalRequired": True},
        }
        assert running.http.post("/v1/projects/p/triggers", json=trigger).status_code == 200
        set_beside(running, APPROVERS)
        yield running


def set_beside(server: ApiServer, settings: dict[str, Any]) -> None:
    trigger = server.store.triggers.get("p", "ci")["id"]
    server.store.triggers.set_settings("p", trigger, settings)


def waiting(server: ApiServer) -> str:
    requested = server.http.post("/v1/projects/p/triggers/ci:run", json={"branchName": "main"})
    assert requested.status_code == 200, requested.text
    return str(requested.json()["metadata"]["build"]["id"])


def decide(server: ApiServer, build: str, decision: str) -> int:
    body = {"approvalResult": {"decision": decision}}
    return server.http.post(f"/v1/projects/p/builds/{build}:approve", json=body).status_code


def test_nobody_approves_a_build_whose_approvers_can_not_be_read(server: ApiServer) -> None:
    build = waiting(server)
    set_beside(server, OF_ANOTHER_VERSION)
    assert decide(server, build, "APPROVED") == 400
    assert server.store.builds.get("p", build).status == "PENDING"


def test_a_trigger_whose_forge_can_not_be_read_is_for_no_other_forge(server: ApiServer) -> None:
    set_beside(server, OF_ANOTHER_VERSION)
    document = server.store.triggers.get("p", "ci")
    known = known_trigger(server.context, "p", document)
    assert known.repository is not None
    assert (known.repository.url, known.repository.host) == ("", None)
    assert "can't be read" in known.repository.problem
    run = server.http.post("/v1/projects/p/triggers/ci:run", json={"branchName": "main"})
    assert run.status_code == 400
    assert server.store.builds.page("p").builds == ()


def test_a_badge_whose_readers_can_not_be_read_is_not_for_everybody(tmp_path: Path) -> None:
    with api_server(tmp_path, auth=True) as server:
        root = {"Authorization": f"Bearer {server.token('root', 'admin')}"}
        trigger = {"name": "ci", "pubsubConfig": {"topic": "projects/p/topics/t"}}
        body = {**trigger, "build": {"steps": [{"name": "busybox"}]}}
        made = server.http.post("/v1/projects/p/triggers", json=body, headers=root)
        assert made.status_code == 200, made.text
        set_beside(server, {"publicBadge": True})
        assert server.http.get("/badge/p/ci.svg").status_code == 200
        set_beside(server, OF_ANOTHER_VERSION)
        assert server.http.get("/badge/p/ci.svg").status_code == 404
