"""Slow or many requests about one project take no thread, lock or turn from another project."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from buildrunner.errors import AttestationError, UsageError
from buildrunner.server.app import create_app
from buildrunner.server.bounded import BoundedCalls
from buildrunner.server.events import intake
from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.events.loop import (
    MOST,
    MOST_OF_A_PROJECT,
    DeliveryLoop,
    SlowDeliveries,
)
from buildrunner.server.http.bodies import (
    BADGES_AT_ONCE,
    PACKS_AT_ONCE,
    SEARCHES_AT_ONCE,
    UPLOADS_AT_ONCE,
)
from buildrunner.sources import uploads as upload_module
from buildrunner.sources.uploads import SourceFile, SourceUploads, UploadQuotaExceeded
from buildrunner.store.model.deliveries import NewDelivery
from buildrunner.store.sql.builds import SqlBuilds
from buildrunner.store.sql.triggers import SqlTriggers
from tests.api_server import ApiServer, api_server, now
from tests.conftest import DEADLINE_S
from tests.held_calls import HeldCalls

CEL = "body.a == 'b'"


def test_badges_for_strangers_wait_and_leave_threads_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()
    real = SqlBuilds.page

    def held(self: SqlBuilds, *args: Any, **more: Any) -> Any:
        begun.release()
        assert go_on.wait(60)
        return real(self, *args, **more)

    with (
        api_server(tmp_path, public_projects=("p",)) as server,
        ThreadPoolExecutor(50) as senders,
    ):
        server.store.triggers.create("p", "global", {"id": "t", "name": "t"})
        monkeypatch.setattr(SqlBuilds, "page", held)
        path = f"{server.url}/badge/p/t.svg?branch=main"
        requested = [senders.submit(httpx.get, path, timeout=60) for _ in range(50)]
        try:
            for _ in range(BADGES_AT_ONCE):
                assert begun.acquire(timeout=30)
            answer = httpx.get(f"{server.url}/v1/projects/p/triggers", timeout=60)
            assert answer.status_code == 200
            assert not begun.acquire(blocking=False)
        finally:
            go_on.set()
        assert [one.result().status_code for one in requested] == [200] * 50


def test_badges_wait_for_no_search_and_no_trigger_is_read_without_a_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue: four slow searches of a public project turned off the badges of all projects.

    The trigger of a badge, which can be large, was read for strangers without a limit.
    """
    searches, triggers = HeldCalls(), HeldCalls()
    searches.hold(monkeypatch, SqlBuilds, "page", lambda *_, **given: "accepts" not in given)
    with (
        api_server(tmp_path, public_projects=("p",), auth=True) as server,
        ThreadPoolExecutor(50) as senders,
    ):
        server.store.triggers.create("p", "global", {"id": "t", "name": "t"})
        badge, found = f"{server.url}/badge/p/t.svg", f"{server.url}/v1/projects/p/builds"
        with searches, triggers:
            requested = [senders.submit(httpx.get, found, timeout=60) for _ in range(20)]
            searches.until(SEARCHES_AT_ONCE)
            assert httpx.get(badge, timeout=DEADLINE_S).status_code == 200
            triggers.hold(monkeypatch, SqlTriggers, "get")
            requested += [senders.submit(httpx.get, badge, timeout=60) for _ in range(20)]
            triggers.until(BADGES_AT_ONCE)
            member = {"Authorization": f"Bearer {server.token('member', 'read')}"}
            listed = httpx.get(f"{server.url}/v1/projects/p/triggers", headers=member, timeout=60)
            assert listed.status_code == 200
            assert not triggers.has_more()
        assert [one.result().status_code for one in requested] == [200] * 40


def test_no_thread_of_the_server_waits_for_filters_of_a_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def call(_: BoundedCalls, operation: str, *__: Any, **more: Any) -> Any:
        waited.append(more.get("wait_limit_s", 0.0))
        rule = {"name": "filter", "passed": True, "text": ""}
        return rule if operation == "trigger_filter" else ""

    monkeypatch.setattr(BoundedCalls, "call", call)
    with api_server(tmp_path) as server:
        secret = "projects/p/secrets/s/versions/1"
        server.secrets[secret] = "hush"
        trigger = {
            "name": "t",
            "webhookConfig": {"secret": secret},
            "filter": CEL,
            "build": {"steps": [{"name": "busybox"}]},
        }
        path = "/v1/projects/p/triggers"
        assert server.http.post(path, json=trigger).status_code == 200
        waited.clear()
        called = server.http.post(f"{path}/t:webhook?secret=hush", json={"a": "b"})
        assert called.status_code == 200, called.text
        tried = server.http.post("/buildrunner" + path + "/t:test", json={"event": {"a": "b"}})
        assert tried.status_code == 200, tried.text
        page = server.http.get("/triggers/p/t?ref=main")
        assert page.status_code == 200
    assert len(waited) >= 2
    assert set(waited) == {0.0}


def test_deliveries_for_slow_hosts_of_one_project_leave_threads_to_others() -> None:
    begun: list[int] = []
    changed, go_on = threading.Condition(), threading.Event()

    def handle(number: int) -> None:
        with changed:
            begun.append(number)
            changed.notify_all()
        assert go_on.wait(60)

    slow = SlowDeliveries(handle)
    for number in range(2 * MOST):
        slow.add(number, f"https://host{number}.example/x", "greedy")
    slow.add(1000, "https://other.example/x", "other")
    try:
        with changed:
            assert changed.wait_for(lambda: len(begun) == MOST_OF_A_PROJECT + 1, 30)
        assert Counter(number == 1000 for number in begun) == {False: MOST_OF_A_PROJECT, True: 1}
    finally:
        go_on.set()
    assert slow.wait_until_idle(30)


def test_the_event_loop_reads_no_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue: all callers waited while the server read the events of a delivery below 200 KB."""
    begun, go_on = threading.Event(), threading.Event()

    def held(*_: Any) -> str:
        begun.set()
        assert go_on.wait(60)
        return ""

    monkeypatch.setattr(intake, "lane_of", held)
    body = b"{}"
    signature = "sha256=" + hmac.new(b"hush", body, hashlib.sha256).hexdigest()
    headers = {"X-Hub-Signature-256": signature, "X-GitHub-Event": "push"}
    with api_server(tmp_path) as server, ThreadPoolExecutor(1) as sender:
        server.hook("github", "hush", owners=["acme"])
        path = f"{server.url}/hooks/github"
        sent = sender.submit(httpx.post, path, content=body, headers=headers, timeout=60)
        try:
            assert begun.wait(30)
            assert httpx.get(f"{server.url}/healthz", timeout=10).status_code == 200
        finally:
            go_on.set()
        assert sent.result().status_code == 200


def test_the_hook_whose_deliveries_take_long_comes_after_others(tmp_path: Path) -> None:
    """Issue: other hooks waited for all large deliveries of one hook, a second for each."""
    clock, order = [0.0], []

    class Handler(DeliveryHandler):
        def handle(self, delivery: Any, *, may_ask: bool = True) -> dict[str, Any]:
            clock[0] += 1.0 if delivery.hook == "git/evil" else 0.01
            order.append(delivery.hook)
            return super().handle(delivery, may_ask=may_ask)

    def deliver(server: ApiServer, hook: str, number: int) -> None:
        new = NewDelivery(
            hook=hook, delivery_id=f"{number}", headers={}, body=b"{}", lane=f"{hook} {number}"
        )
        server.store.deliveries.add([new], now=now())

    with api_server(tmp_path) as server:
        loop = DeliveryLoop(server.context, Handler(server.context), seconds=lambda: clock[0])
        for number in range(30):
            deliver(server, "git/evil", number)
        for number in range(3):
            deliver(server, "git/good", number)
        while "git/good" not in order:
            assert loop.turn()
        assert order == ["git/evil"] * 3 + ["git/good"] * 3
        for number in range(3, 30):  # it takes the time that others leave, whatever came before
            assert loop.turn()
            assert order[-1] == "git/evil"
            deliver(server, "git/good", number)
            assert loop.turn()
            assert order[-1] == "git/good"
        clock[0] += 120.0
        for number in range(30, 33):
            deliver(server, "git/evil", number)
            deliver(server, "git/good", number)
        assert loop.turn()
        assert order[-4:] == ["git/evil", "git/good", "git/good", "git/good"]


def test_what_the_server_found_for_one_project_does_not_delay_what_it_found_for_others(
    tmp_path: Path,
) -> None:
    """Issue: all missed pushes were of one hook, which one project with slow filters indebted."""
    clock, order = [0.0], []

    class Handler(DeliveryHandler):
        def handle(self, delivery: Any, *, may_ask: bool = True) -> dict[str, Any]:
            project = delivery.lane.partition(" ")[0]
            clock[0] += 1.0 if project.endswith("evil") else 0.01
            order.append(project)
            return super().handle(delivery, may_ask=may_ask)

    with api_server(tmp_path) as server:
        loop = DeliveryLoop(server.context, Handler(server.context), seconds=lambda: clock[0])
        for project, count in (("evil", 30), ("good", 3)):
            for number in range(count):
                new = NewDelivery(
                    hook="reconcile",
                    delivery_id=f"{project}{number}",
                    headers={},
                    body=b"{}",
                    lane=f"reconcile/{project} {number}",
                )
                server.store.deliveries.add([new], now=now())
        while "reconcile/good" not in order:
            assert loop.turn()
        assert order == ["reconcile/evil"] * 3 + ["reconcile/good"] * 3


def test_the_count_of_one_project_s_uploads_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting, go_on = threading.Event(), threading.Event()
    real = upload_module._disk_use

    def slow(folder: str) -> int:
        if folder.endswith("slow"):
            counting.set()
            assert go_on.wait(60)
        return real(folder)

    monkeypatch.setattr(upload_module, "_disk_use", slow)
    uploads = SourceUploads(str(tmp_path), quota_bytes=100_000)
    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(uploads.receive, "slow", "a" * 64)
        try:
            assert counting.wait(30)
            uploads.receive("quick", "a" * 64).abandon()
        finally:
            go_on.set()
        waiting.result().abandon()


def test_an_upload_that_ends_waits_for_no_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of an upload once waited for the count in the event loop, and all callers with it."""
    counting, go_on = threading.Event(), threading.Event()
    uploads = SourceUploads(str(tmp_path), quota_bytes=100_000)
    begun = uploads.receive("p", "a" * 64)

    def slow(folder: str) -> int:
        counting.set()
        assert go_on.wait(60)
        return 0

    monkeypatch.setattr(upload_module, "_disk_use", slow)
    with ThreadPoolExecutor(2) as other:
        # It exceeds the quota, so the files are counted once more.
        monkeypatch.setattr(upload_module, "_RECOUNT_S", 0.0)
        receiver = uploads.receive("p", "b" * 64)
        large = other.submit(receiver.write, b"x" * 200_000)
        try:
            assert counting.wait(30)
            other.submit(begun.abandon).result(30)
            # What fits the last count does not wait for the new one.
            other.submit(uploads.receive, "p", "c" * 64).result(30).abandon()
        finally:
            go_on.set()
        with pytest.raises(UploadQuotaExceeded):
            large.result(30)
        receiver.abandon()


def test_a_count_forgets_no_reservation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_module, "_RECOUNT_S", 0.0)
    space = upload_module._Space(str(tmp_path), 100)
    first, second = (upload_module._Taken(space, "p") for _ in range(2))
    first.more(60)  # nothing of it is written yet
    with pytest.raises(UploadQuotaExceeded):
        second.more(60)
    first.give_back()
    second.more(60)
    second.keep()
    assert (space._projects["p"].open, space._projects["p"].used) == (0, 60)


def test_uploads_of_one_caller_leave_threads_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Semaphore(0), threading.Event()

    def held(*_: Any) -> Any:
        begun.release()
        assert go_on.wait(60)
        raise UsageError("it is over")

    monkeypatch.setattr(SourceUploads, "receive", held)
    monkeypatch.setattr(SourceUploads, "missing", held)
    monkeypatch.setattr(SourceUploads, "pack", held)
    sources = "/buildrunner/v1/projects/p/sources"
    requests = [
        ("PUT", f"{sources}/blobs/{'a' * 64}", b"x"),
        ("POST", f"{sources}:missing", b'{"sha256": []}'),
        ("POST", f"{sources}/manifests", b'{"files": []}'),
    ]
    with api_server(tmp_path) as server, ThreadPoolExecutor(60) as senders:
        for method, path, body in requests * 20:
            senders.submit(httpx.request, method, server.url + path, content=body, timeout=60)
        try:
            for _ in range(UPLOADS_AT_ONCE + PACKS_AT_ONCE):
                assert begun.acquire(timeout=30)
            answer = httpx.get(f"{server.url}/v1/projects/p/triggers", timeout=60)
            assert answer.status_code == 200
            assert not begun.acquire(blocking=False)
        finally:
            go_on.set()


def test_a_source_with_a_false_size_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = SourceUploads(str(tmp_path), quota_bytes=100_000)
    receiver = uploads.receive("p", (digest := hashlib.sha256(b"text").hexdigest()))
    receiver.write(b"text")
    receiver.finish()
    written: list[bytes] = []
    monkeypatch.setattr(upload_module, "_header", lambda *_: written.append(b"") or b"")
    files = [SourceFile(path=f"{n}", sha256=digest, size=4) for n in range(100)]
    with pytest.raises(UsageError, match="last has 4 bytes, not 5"):
        uploads.pack("p", [*files, SourceFile(path="last", sha256=digest, size=5)])
    assert written == []
    with pytest.raises(UploadQuotaExceeded):  # so is one that does not fit the quota
        uploads.pack("p", [SourceFile(path=f"{n}", sha256=digest, size=4) for n in range(25_000)])
    assert written == []


def test_a_refused_blob_gives_its_quota_back(tmp_path: Path) -> None:
    uploads = SourceUploads(str(tmp_path), quota_bytes=100_000)
    for _ in range(5):
        receiver = uploads.receive("p", "a" * 64)
        receiver.write(b"x" * 60_000)
        receiver.abandon()
    receiver = uploads.receive("p", "a" * 64)
    receiver.write(b"x" * 60_000)
    with pytest.raises(UploadQuotaExceeded):
        receiver.write(b"x" * 60_000)
    receiver.abandon()


def test_strangers_have_the_key_of_provenance_read_once_and_learn_no_path(tmp_path: Path) -> None:
    reads: list[str] = []

    def broken() -> str:
        reads.append("key")
        raise AttestationError("the key /srv/secret.pem can't be read", hint="chmod 600")

    path = "/buildrunner/v1/provenance-key"
    with api_server(tmp_path) as server:
        app = create_app(replace(server.context, provenance_key=broken))

        async def requested() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url=server.url, timeout=DEADLINE_S
            ) as client:
                return [await client.get(path) for _ in range(3)]

        answers = asyncio.run(requested())
    assert [one.status_code for one in answers] == [503] * 3
    assert all("secret.pem" not in one.text for one in answers)
    assert len(reads) == 1
