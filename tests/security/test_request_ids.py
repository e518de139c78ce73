"""A caller's ``requestId`` is their own: it takes no key of the server's, and none of others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api_server import ApiServer, api_server
from tests.conftest import DEADLINE_S
from tests.server.test_hooks import COMMIT, PUSH, SECRET, github, handle, make_trigger

EVIL = {"steps": [{"name": "busybox", "args": ["echo", "evil"]}]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path, auth=False) as running:
        running.hook("github", SECRET, owners=["acme"])
        yield running


def create(server: ApiServer, request_id: str, token: str = "") -> str:
    answer = httpx.post(
        f"{server.url}/v1/projects/p/builds",
        params={"requestId": request_id},
        headers={"Authorization": f"Bearer {token}"} if token else {},
        json=EVIL,
        timeout=DEADLINE_S,
    )
    assert answer.status_code == 200, answer.text
    return str(answer.json()["metadata"]["build"]["id"])


def test_no_build_of_a_caller_is_taken_for_that_of_a_push(server: ApiServer) -> None:
    trigger = make_trigger(server)
    keys = [f"delivery-1-{replays}-0-{trigger}" for replays in (0, 1)]
    squatted = {create(server, key) for key in keys}
    run = httpx.post(
        f"{server.url}/v1/projects/p/triggers/{trigger}:run",
        params={"requestId": f"delivery-1-0-1-{trigger}"},
        json={"commitSha": "e" * 40},
        timeout=DEADLINE_S,
    )
    squatted.add(run.json()["metadata"]["build"]["id"])
    assert github(server, PUSH).status_code == 200
    handle(server)
    listed = server.http.get("/v1/projects/p/builds").json()["builds"]
    (pushed,) = [build for build in listed if build["id"] not in squatted]
    assert pushed["source"]["gitSource"]["revision"] == COMMIT


def test_the_same_request_makes_one_build_for_each_caller(tmp_path: Path) -> None:
    with api_server(tmp_path, auth=True) as server:
        alice = server.token("alice", "submit", projects=("p",))
        eve = server.token("eve", "submit", projects=("p",))
        first = create(server, "x", alice)
        assert create(server, "x", alice) == first
        assert create(server, "x", eve) != first
