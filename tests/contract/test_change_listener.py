"""Servers of one PostgreSQL hear at once of builds that others change."""
# ruff: noqa: F811  (fixtures are imported, and named again by the tests that use them)

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from buildrunner.server.http import changes
from buildrunner.server.loop import Signal
from buildrunner.store.sql.store import ServerStore
from tests.conftest import wait_until
from tests.contract.test_server_store import (  # noqa: F401  (fixtures)
    at,
    claim,
    end,
    new_build,
    open_another,
    postgres,
    postgres_template,
    with_status,
)
from tests.fixtures_postgres import PostgresServer

LONGEST_S = 30


class Heard:
    """Counts what a listener hears."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0

    def __call__(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait(self, count: int) -> None:
        """Wait until so many were heard; no more may be."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._count >= count, LONGEST_S)
            assert self._count == count


@pytest.fixture
def address(postgres: PostgresServer, postgres_template: str) -> str:
    return postgres.make_database(like=postgres_template)


@pytest.fixture
def heard(open_another: Callable[[], ServerStore]) -> Iterator[Heard]:
    heard = Heard()
    listener = open_another().listener(heard)
    listener.start()
    heard.wait(1)  # it is connected
    yield heard
    listener.stop()
    listener.stop()


def test_what_makes_others_look_is_heard_once_each(
    heard: Heard, open_another: Callable[[], ServerStore]
) -> None:
    other = open_another()
    other.builds.create(new_build("b"))
    heard.wait(2)
    claimed = build, lease = claim(other)
    other.queue.record(lease, with_status(build, "WORKING"))
    heard.wait(3)
    other.queue.record(lease, with_status(build, "WORKING", statusDetail="of the same status"))
    other.queue.renew(lease, now=at(2), lease_s=10)
    other.builds.request_cancel("p", "b", now=at(3), reason="enough")
    heard.wait(4)
    end(other, claimed)
    heard.wait(5)


def test_a_waiting_request_looks_after_a_change_alone(
    open_another: Callable[[], ServerStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "_LOOK_S", 0.001)
    store, changed = open_another(), Signal()
    listener = store.listener(changed)
    assert not store.hears_changes
    listener.start()
    wait_until(lambda: store.hears_changes)
    waits = changes.Changes(changed, set, hears_all=lambda: store.hears_changes)
    looks: list[int] = []

    async def look() -> str | None:
        looks.append(1)
        return store.builds.find("b").id if store.queue.length() else None

    async def stays() -> bool:
        return False

    async def wait() -> str | None:
        waiting = asyncio.create_task(
            waits.wait_for(look, LONGEST_S, line="", caller="w", is_gone=stays)
        )
        while not looks:
            await asyncio.sleep(0)
        other = open_another()
        await asyncio.to_thread(other.builds.create, new_build("b"))
        return await waiting

    assert asyncio.run(wait()) == "b"
    assert len(looks) <= 3  # at first, if the listener has just begun, and after the change
    listener.stop()
    assert not store.hears_changes


def test_a_listener_whose_connection_was_ended_connects_again_and_looks(
    heard: Heard, postgres: PostgresServer, address: str, open_another: Callable[[], ServerStore]
) -> None:
    postgres.sql(
        postgres.name(address),
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE query LIKE 'LISTEN%' AND datname = current_database()",
    )
    heard.wait(2)
    open_another().builds.create(new_build("b"))
    heard.wait(3)


def test_a_listener_goes_on_after_the_server_was_away(
    heard: Heard,
    postgres: PostgresServer,
    open_another: Callable[[], ServerStore],
    caplog: pytest.LogCaptureFixture,
) -> None:
    postgres.stop()
    try:
        wait_until(lambda: "looks for changes by itself" in caplog.text)
    finally:
        postgres.start()
    heard.wait(2)
    open_another().builds.create(new_build("b"))
    heard.wait(3)


def test_a_closed_database_ends_no_listener_with_an_error(
    open_another: Callable[[], ServerStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = open_another()
    store.close()
    listener = store.listener(Heard())
    listener.start()
    listener.stop()
    assert [record.levelname for record in caplog.records] in ([], ["WARNING"])
