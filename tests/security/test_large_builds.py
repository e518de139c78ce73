"""Builds as large as the API allows: lists do not read them, and no lock is held for many."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from buildrunner.server.services.builds import ApprovalExpiry
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import NewBuild
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
    expires_at = fields.pop("expires_at", now())
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
