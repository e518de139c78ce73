"""One project fills neither the queue nor the database with builds that wait."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from buildrunner.server.events.scheduler import Scheduler
from tests.api_server import ApiServer, api_server
from tests.security.test_large_triggers import SECRET, deliver, github, make

MOST = 3
BUILD = {"steps": [{"name": "busybox"}]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path, max_waiting_builds=MOST) as running:
        running.hook("gitea", SECRET, host="git.example.com", owners=["*"])
        yield running


def submit(server: ApiServer, project: str = "p", request: str = "") -> httpx.Response:
    query = {"requestId": request} if request else {}
    return server.http.post(f"/v1/projects/{project}/builds", json=BUILD, params=query)


def fill(server: ApiServer) -> None:
    for number in range(MOST):
        assert submit(server, request=f"request-{number}").status_code == 200


def test_a_project_has_a_bounded_number_of_waiting_builds(server: ApiServer) -> None:
    fill(server)
    refused = submit(server)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert error["status"] == "RESOURCE_EXHAUSTED"
    assert "3 builds of project p wait in the queue" in error["message"]
    assert "--max-waiting-builds" in error["message"]
    assert submit(server, "another").status_code == 200
    assert submit(server, request="request-0").status_code == 200  # the build of before
    assert server.store.queue.length() == MOST + 1


def test_a_build_that_begins_or_ends_makes_room(server: ApiServer) -> None:
    fill(server)
    now = datetime.now(UTC)
    claimed = server.store.queue.claim("w", now=now, lease_s=60, limit=9)
    assert claimed is not None
    assert submit(server).status_code == 200
    waiting = [one.id for one in server.store.builds.page("p").builds if one.id != claimed[0].id]
    server.store.builds.request_cancel("p", waiting[0], now=now)
    assert submit(server).status_code == 200
    assert submit(server).status_code == 429


def test_builds_that_wait_for_approvals_leave_room_to_others_and_have_a_limit_too(
    server: ApiServer,
) -> None:
    make(server, "p", "held", approvalConfig={"approvalRequired": True}, **manual())
    run = "/v1/projects/p/triggers/held:run"
    for _ in range(MOST):
        assert server.http.post(run, json={}).status_code == 200
    refused = server.http.post(run, json={})
    assert refused.status_code == 429
    assert "3 builds of project p wait for an approval" in refused.json()["error"]["message"]
    fill(server)


def manual() -> dict[str, object]:
    source = {"uri": "https://git.example.com/acme/app", "ref": "refs/heads/main"}
    return {"sourceToBuild": {**source, "repoType": "GITHUB"}}


def test_a_delivery_says_why_it_made_no_build(server: ApiServer) -> None:
    make(server, "p", "mine", github=github("acme"))
    fill(server)
    ((event,)) = deliver(server)["events"]
    (verdict,) = event["verdicts"]
    assert verdict["fires"]
    assert "build" not in verdict
    assert "3 builds of project p wait in the queue" in verdict["problem"]
    assert "--max-waiting-builds" in verdict["problem"]


def test_a_schedule_says_why_it_made_no_build_and_others_go_on(server: ApiServer) -> None:
    times = [datetime(2026, 3, 1, 0, 30, tzinfo=UTC)]
    scheduler = Scheduler(replace(server.context, clock=lambda: times[-1]))
    for project in ("p", "q"):
        make(server, project, "hourly", cron={"schedule": "0 * * * *"})
    scheduler.turn()
    fill(server)
    times.append(datetime(2026, 3, 1, 1, 0, 1, tzinfo=UTC))
    scheduler.turn()
    fires = {}
    for project in ("p", "q"):
        (trigger,) = server.store.triggers.page(project)[0]
        (fires[project],) = server.store.schedules.fires(project, trigger["id"])
    assert fires["q"].state == "fired"
    assert fires["p"].state == "failed"
    assert "3 builds of project p wait in the queue" in fires["p"].detail
