"""Triggers as large and as many as the API allows delay no event of another project."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildrunner.cli.serve.loops import delivery_loop
from buildrunner.server.events.reconcile import Reconciler, RemoteRefs
from buildrunner.server.events.scheduler import Scheduler
from buildrunner.settings import Settings
from buildrunner.store.sql import triggers as sql_triggers
from tests.api_server import ApiServer, api_server
from tests.security.test_large_builds import peak_bytes

SECRET = "of the hook"
LARGE = 2 << 20
MANY = 7
TRIGGERS = "/v1/projects/{}/triggers"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        running.hook("gitea", SECRET, host="git.example.com", owners=["*"])
        yield running


def large_build() -> dict[str, Any]:
    return {"steps": [{"name": "busybox", "script": "#" * (LARGE // 2)}] * 2}


def make(server: ApiServer, project: str, name: str, **fields: Any) -> None:
    query = {"forge": "gitea", "forgeHost": "https://git.example.com"}
    document = {"name": name, "build": {"steps": [{"name": "busybox"}]}, **fields}
    answer = server.http.post(TRIGGERS.format(project), json=document, params=query)
    assert answer.status_code == 200, answer.text


def github(owner: str) -> dict[str, Any]:
    return {"owner": owner, "name": "app", "push": {"branch": ".*"}}


@pytest.fixture
def crowded(server: ApiServer) -> ApiServer:
    """A server with a small trigger of ``p``, and large ones of every kind in ``other``."""
    for number in range(MANY - 2):
        make(server, "other", f"t{number}", github=github("other"), build=large_build())
    make(
        server,
        "other",
        "called",
        webhookConfig={"secret": "projects/other/secrets/s/versions/1"},
        build=large_build(),
    )
    cron = {"schedule": "0 0 1 1 *"}
    make(server, "other", "by-the-clock", cron=cron, build=large_build(), **github_source())
    make(server, "p", "mine", github=github("acme"))
    return server


def github_source() -> dict[str, Any]:
    return {"sourceToBuild": {"uri": "https://git.example.com/other/app", "ref": "refs/heads/main"}}


def deliver(server: ApiServer) -> dict[str, Any]:
    """Have a forge report a push to acme/app; what came of it."""
    body = {
        "ref": "refs/heads/main",
        "before": "a" * 40,
        "after": "b" * 40,
        "repository": {
            "full_name": "acme/app",
            "clone_url": "https://git.example.com/acme/app.git",
        },
        "commits": [{"id": "b" * 40, "message": "m", "added": ["x"], "modified": []}],
        "head_commit": {"id": "b" * 40, "message": "m"},
    }
    content = json.dumps(body).encode()
    signature = hmac.new(SECRET.encode(), content, hashlib.sha256).hexdigest()
    headers = {"X-Gitea-Event": "push", "X-Gitea-Signature": signature}
    answer = server.http.post("/hooks/gitea", content=content, headers=headers)
    assert answer.status_code == 200, answer.text
    loop = delivery_loop(server.context, Settings())
    while loop.turn():
        assert loop.wait_until_idle(60)
    return server.store.deliveries.get(answer.json()["delivery"]).outcome


def test_a_delivery_reads_no_triggers_of_other_repositories(crowded: ApiServer) -> None:
    seen: list[dict[str, Any]] = []
    assert peak_bytes(lambda: seen.append(deliver(crowded))) < LARGE
    (event,) = seen[0]["events"]
    assert [(one["project"], one["trigger"]) for one in event["verdicts"]] == [("p", "mine")]
    assert event["verdicts"][0]["fires"]


def test_a_look_for_missed_pushes_reads_triggers_once_and_one_at_a_time(
    crowded: ApiServer,
) -> None:
    remote = RemoteRefs(list_refs=lambda _: {}, message=lambda *_: "")
    reconciler = Reconciler(crowded.context, remote)
    assert peak_bytes(reconciler.look) < 8 * LARGE
    assert peak_bytes(reconciler.look) < LARGE


def test_the_clock_reads_no_triggers_that_are_not_due(crowded: ApiServer) -> None:
    scheduler = Scheduler(crowded.context)
    assert scheduler.turn() is not None
    assert peak_bytes(scheduler.turn) < LARGE


def test_a_project_has_a_bounded_number_of_triggers(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_triggers, "MOST_TRIGGERS", 2)
    make(server, "p", "one")
    make(server, "p", "two")
    answer = server.http.post(TRIGGERS.format("p"), json={"name": "three", "filename": "a.yaml"})
    assert answer.status_code == 429
    assert answer.json()["error"]["status"] == "RESOURCE_EXHAUSTED"
    assert "2 triggers, as many as a project may have" in answer.json()["error"]["message"]
    make(server, "q", "three")
    change = server.http.patch(TRIGGERS.format("p") + "/one?updateMask=name", json={"name": "eins"})
    assert change.status_code == 200, change.text


def test_the_triggers_of_a_project_have_a_bounded_size(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_triggers, "MOST_TRIGGER_BYTES", LARGE + 1000)
    make(server, "p", "one", build=large_build())
    answer = server.http.post(TRIGGERS.format("p"), json={"name": "two", "build": large_build()})
    assert answer.status_code == 429
    assert "filename" in answer.json()["error"]["message"]
    assert len(server.store.triggers.page("p")[0]) == 1
    make(server, "p", "two")
    change = server.http.patch(
        TRIGGERS.format("p") + "/two?updateMask=build", json={"build": large_build()}
    )
    assert change.status_code == 429
    monkeypatch.setattr(sql_triggers, "MOST_TRIGGER_BYTES", 0)  # after an update of the server
    path = TRIGGERS.format("p") + "/one?updateMask=build"
    smaller = server.http.patch(path, json={"build": {"steps": [{"name": "busybox"}]}})
    assert smaller.status_code == 200, smaller.text
