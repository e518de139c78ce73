"""Builds as large as the API allows: lists do not read them, and no lock is held for many."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from buildrunner.server.services.builds import ApprovalExpiry
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import NewBuild
from buildrunner.store.sql import builds as sql_builds
from tests.api_server import WORKER, ApiServer, api_server, now

LARGE = 1 << 20
MANY = 24


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as running:
        yield running


def create(server: ApiServer, build_id: str, **fields: Any) -> None:
    """Store a build of `LARGE` bytes, of a project that the caller of `server` may read."""
    document = {
        "id": build_id,
        "projectId": "p",
        "status": fields.pop("status", "QUEUED"),
        "createTime": encode_instant(now()),
        "buildTriggerId": fields.pop("trigger", ""),
        "steps": [{"name": "busybox", "script": "#" * LARGE}],
    }
    expires_at = now() + timedelta(minutes=1)
    server.store.builds.create(
        NewBuild(document=document, request={}, expires_at=expires_at, **fields)
    )


def peak_bytes(call: Callable[[], object]) -> int:
    """Return how much memory a call takes at most at a time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_list_of_triggers_reads_no_builds(server: ApiServer) -> None:
    server.store.triggers.create("p", "global", {"id": "t", "name": "t"})
    for number in range(8):
        create(server, f"b{number}", trigger="t")
    call = lambda: server.http.get("/triggers?project=p").raise_for_status()  # noqa: E731
    call()  # imports, templates
    assert peak_bytes(call) < LARGE


def test_what_waits_for_an_approval_is_looked_through_without_reading_it(
    server: ApiServer,
) -> None:
    server.store.triggers.create("p", "global", {"id": "t", "name": "t"})
    server.store.triggers.set_settings("p", "t", {"approval": {"expires": "3600000s"}})
    for number in range(MANY):
        create(server, f"b{number}", trigger="t", status="PENDING")
    expiry = ApprovalExpiry(server.context)
    assert peak_bytes(expiry.turn) < LARGE
    assert expiry.turn() == 0


def test_the_worker_and_the_page_of_the_system_read_no_running_build(server: ApiServer) -> None:
    for number in range(8):
        create(server, f"b{number}")
        assert server.store.queue.claim(WORKER, now=now(), lease_s=600, limit=MANY)
    call = lambda: server.http.get("/system").raise_for_status()  # noqa: E731
    call()
    assert peak_bytes(call) < LARGE
    assert peak_bytes(server.store.queue.claimed) < LARGE


class Transactions:
    """Counts builds that end, and transactions that write."""

    def __init__(self) -> None:
        self.ends: list[int] = []

    @contextmanager
    def counted(self) -> Iterator[None]:
        def note(*arguments: Any) -> None:
            statement = arguments[2]
            if statement.startswith("BEGIN IMMEDIATE"):
                self.ends.append(0)
            elif statement.startswith("UPDATE builds") and "finish_time" in statement:
                self.ends[-1] += 1

        event.listen(Engine, "before_cursor_execute", note)
        try:
            yield
        finally:
            event.remove(Engine, "before_cursor_execute", note)


def expire_all(server: ApiServer, moment: datetime) -> None:
    """End what is to end. A call ends what it gets through in two seconds."""
    before = MANY + 2
    while (left := server.store.queue.length()) < before:
        before = left
        server.store.queue.expire(now=moment)


def test_builds_that_expire_end_one_by_one_and_leave_the_lock_to_others(server: ApiServer) -> None:
    for number in range(MANY):
        create(server, f"b{number}")
    counts = Transactions()
    with counts.counted():
        peak = peak_bytes(lambda: expire_all(server, now() + timedelta(hours=1)))
    assert (max(counts.ends), sum(counts.ends)) == (1, MANY)
    assert peak < 12 * LARGE
    assert server.store.queue.length() == 0


def test_superseded_builds_end_one_by_one_and_leave_the_lock_to_others(server: ApiServer) -> None:
    for number in range(MANY):
        create(server, f"b{number}", group="g")
    counts = Transactions()
    with counts.counted():
        peak = peak_bytes(lambda: create(server, "new", group="g", supersede="cancel_all"))
        expire_all(server, now())
    assert (max(counts.ends), sum(counts.ends)) == (1, MANY)
    assert peak < 12 * LARGE
    assert server.store.queue.length() == 1


def test_a_superseded_build_is_not_claimed_though_the_server_dies_before_it_ends(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        create(server, f"b{number}", group="g")
    with monkeypatch.context() as dying:
        dying.setattr(sql_builds, "end_superseded", lambda *_: None)
        create(server, "new", group="g", supersede="cancel_queued")
    claimed = server.store.queue.claim(WORKER, now=now(), lease_s=600, limit=9)
    assert claimed is not None
    assert claimed[0].id == "new"
    assert server.store.queue.claim(WORKER, now=now(), lease_s=600, limit=9) is None
    server.store.queue.expire(now=now())
    for number in range(3):
        ended = server.store.builds.find(f"b{number}")
        assert ended.status == "CANCELLED"
        assert ended.document["statusDetail"] == "superseded by build new"
