"""What a worker's queue must do, on a database and over the worker protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from buildrunner.client.http import ServerConnection
from buildrunner.errors import Conflict, InvalidRecord, LeaseLost, StoreUnavailable
from buildrunner.server.http.tokens import new_token
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.builds import BuildQueue, Lease, StoredBuild
from buildrunner.store.model.remote import ClaimRequest
from buildrunner.worker.remote.queue import Claims, RemoteQueue
from tests.api_server import ApiServer, api_server, now

WORKER = "host/1"
PLAN = b'{"build_id":"b","project_id":"p","steps":[]}'


class Place:
    """A server, and the queue of a worker of it."""

    def __init__(self, server: ApiServer, queue: BuildQueue, arrived: threading.Event) -> None:
        self.server = server
        self.queue = queue
        self._arrived = arrived

    def claim(self, limit: int = 1) -> tuple[StoredBuild, Lease]:
        """Claim a build, as the supervisor does: again when it is woken."""
        while True:
            self._arrived.clear()
            found = self.queue.claim(WORKER, now=now(), lease_s=30, limit=limit)
            if found is not None:
                return found
            assert self._arrived.wait(30), "no build arrives"

    def claim_again(self, lease: Lease) -> Lease:
        _, later = self.queue.claim_again(
            lease.build_id, WORKER, now=now(), lease_s=30, instead_of=lease.fence
        )
        return later

    def status(self, build_id: str) -> str:
        return self.server.store.builds.find(build_id).status


@pytest.fixture(params=["database", "https"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with api_server(tmp_path, auth=False) as server:
        arrived = threading.Event()
        if request.param == "database":
            yield Place(server, server.store.queue, arrived)
            return
        text, stored = new_token("w1", ["worker"], now=now())
        server.store.tokens.create(stored)
        connection = ServerConnection(server.url, text, "", lambda _: None)
        claims = Claims(
            connection,
            ClaimRequest(worker=WORKER),
            isolation=lambda: "",
            arrived=arrived.set,
            refused=pytest.fail,
        )
        yield Place(
            server, RemoteQueue(connection, send_log=lambda *_: None, claims=claims), arrived
        )
        claims.close()
        connection.close()


# A database has no routes, and takes no log.
only_over_the_protocol = pytest.mark.parametrize("place", ["https"], indirect=True)


def working(build: StoredBuild, status: str = "WORKING") -> dict[str, Any]:
    return {**build.document, "status": status, "startTime": encode_instant(now())}


def test_a_build_is_claimed_begun_and_ended(place: Place) -> None:
    build_id = place.server.create()
    build, lease = place.claim()
    assert (build.id, build.worker, lease.fence) == (build_id, WORKER, build.fence)
    place.queue.set_process(lease, "12:34")
    place.queue.record(lease, working(build))
    place.queue.record_plan(lease, PLAN)
    assert place.server.store.builds.plan(build_id) == PLAN
    assert place.status(build_id) == "WORKING"
    ended = {**working(build, "SUCCESS"), "finishTime": encode_instant(now())}
    place.queue.record(lease, ended)
    assert place.status(build_id) == "SUCCESS"
    assert place.queue.claimed(WORKER) == []
    with pytest.raises(Conflict, match="has ended already, with status SUCCESS"):
        place.queue.record(lease, ended)


def test_a_renewal_tells_of_the_wish_to_cancel(place: Place) -> None:
    build_id = place.server.create()
    _, lease = place.claim()
    place.queue.set_process(lease, "12:34")
    assert place.queue.renew(lease, now=now(), lease_s=30) == ""
    place.server.store.builds.request_cancel("p", build_id, now=now(), reason="cancelled by ann")
    assert place.queue.renew(lease, now=now(), lease_s=30) == "cancelled by ann"
    until = place.server.store.builds.find(build_id).lease_until
    assert until is not None
    assert until > now() + timedelta(seconds=20)


def test_what_a_worker_holds_is_known_after_its_restart(place: Place) -> None:
    place.server.create()
    build, lease = place.claim()
    place.queue.set_process(lease, "12:34")
    (held,) = place.queue.claimed(WORKER)
    assert (held.id, held.worker, held.process) == (build.id, WORKER, "12:34")
    assert place.queue.claimed("host/2") == []


def test_one_process_begins_a_build_under_a_lease(place: Place) -> None:
    place.server.create()
    _, lease = place.claim()
    place.queue.set_process(lease, "12:34")
    place.queue.set_process(lease, "12:34")
    with pytest.raises(LeaseLost):
        place.queue.set_process(lease, "56:78")
    later = place.claim_again(lease)
    assert later.fence > lease.fence
    place.queue.set_process(later, "56:78")


LOST: dict[str, Callable[[Place, StoredBuild, Lease], object]] = {
    "set_process": lambda place, _, lease: place.queue.set_process(lease, "12:34"),
    "renew": lambda place, _, lease: place.queue.renew(lease, now=now(), lease_s=30),
    "record": lambda place, build, lease: place.queue.record(lease, working(build)),
    "record_plan": lambda place, _, lease: place.queue.record_plan(lease, PLAN),
    "record_deployments": lambda place, _, lease: place.queue.record_deployments(lease, []),
    "claim_again": lambda place, _, lease: place.claim_again(lease),
}


@pytest.mark.parametrize("name", LOST)
def test_a_process_that_was_replaced_changes_nothing(place: Place, name: str) -> None:
    build_id = place.server.create()
    build, lease = place.claim()
    place.queue.set_process(lease, "12:34")
    later = place.claim_again(lease)
    place.queue.set_process(later, "56:78")
    with pytest.raises((LeaseLost, Conflict) if name == "claim_again" else LeaseLost):
        LOST[name](place, build, lease)
    stored = place.server.store.builds.find(build_id)
    assert (stored.status, stored.process, stored.fence) == ("QUEUED", "56:78", later.fence)


def test_a_worker_claims_as_many_builds_as_it_runs(place: Place) -> None:
    for _ in range(3):
        place.server.create()
    first, _ = place.claim(limit=2)
    second, _ = place.claim(limit=2)
    assert first.id != second.id
    assert place.queue.claim(WORKER, now=now(), lease_s=30, limit=2) is None
    assert len(place.queue.claimed(WORKER)) == 2


@only_over_the_protocol
def test_an_operation_that_the_server_does_not_have_is_refused_at_once(place: Place) -> None:
    place.server.create()
    _, lease = place.claim()
    with pytest.raises(InvalidRecord, match=r"PUT .*/novelty"):
        place.queue.call("PUT", lease, "/novelty")


@only_over_the_protocol
@pytest.mark.parametrize(
    ("pull", "waits"),
    [({}, False), ({"startTime": "2024-05-31T12:00:00Z"}, True)],
    ids=["started", "pulling"],
)
def test_until_a_container_was_started_a_worker_waits_for_its_server(
    place: Place, monkeypatch: pytest.MonkeyPatch, pull: dict[str, str], waits: bool
) -> None:
    """Otherwise the server might run a build again whose step has run."""
    place.server.create()
    stored, lease = place.claim()
    place.queue.set_process(lease, "1:1")
    step = {"name": "busybox", "status": "WORKING", "pullTiming": pull}
    document = {**working(stored), "steps": [step]}
    place.queue.record(lease, document)
    away = iter([StoreUnavailable("the server is away")])

    def once_away(*request: Any, **more: Any) -> Any:
        for error in away:
            raise error
        return call(*request, **more)

    call = place.queue.call
    monkeypatch.setattr(place.queue, "call", once_away)
    if waits:
        place.queue.record(lease, document)  # asked again
    else:
        with pytest.raises(StoreUnavailable):
            place.queue.record(lease, document)


@only_over_the_protocol
def test_a_log_that_the_server_refuses_does_not_hold_the_end_up(place: Place) -> None:
    def refuse(*_: object) -> None:
        raise InvalidRecord("the build's log would be larger than 1 MiB")

    place.queue._send_log = refuse
    build_id = place.server.create()
    stored, lease = place.claim()
    place.queue.set_process(lease, "1:1")
    place.queue.record(lease, working(stored))
    place.queue.record(lease, working(stored, "SUCCESS"))
    document = place.server.store.builds.find(build_id).document
    assert document["status"] == "SUCCESS"
    assert "larger than 1 MiB" in document["warnings"][-1]["text"]
