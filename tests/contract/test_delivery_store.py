"""What every store of deliveries must do, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from buildrunner.errors import Conflict, NotFound
from buildrunner.store.model.deliveries import KnownRef, NewDelivery, StoredDelivery, Watched
from buildrunner.store.sql import deliveries as module
from buildrunner.store.sql.deliveries import KEPT_REFUSALS
from buildrunner.store.sql.store import ServerStore, open_store
from tests.fixtures_postgres import PostgresServer, running_postgres

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
LEASE_S = 30.0


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def delivery(delivery_id: str = "d1", hook: str = "github", **more: Any) -> NewDelivery:
    given: dict[str, Any] = {"headers": {"x-event": "push"}, "body": b'{"a": 1}', **more}
    return NewDelivery(hook=hook, delivery_id=delivery_id, **given)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    server = running_postgres()
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/server.db"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.make_database()


@pytest.fixture
def store(address: str) -> Iterator[ServerStore]:
    opened = open_store(address)
    yield opened
    opened.close()


def add(store: ServerStore, new: NewDelivery, now: datetime) -> tuple[StoredDelivery, bool]:
    (added,) = store.deliveries.add([new], now=now)
    return added


def claim(store: ServerStore, now: datetime) -> StoredDelivery | None:
    claimed = store.deliveries.claim(now=now, lease_s=LEASE_S, limit=1)
    return claimed[0] if claimed else None


def test_a_delivery_is_kept_as_it_came(store: ServerStore, address: str) -> None:
    body = bytes(range(256))
    kept, is_new = add(store, delivery(body=body, address="192.0.2.1"), NOW)
    assert is_new
    assert kept.status == "received"
    again = open_store(address)
    found = again.deliveries.get(kept.number)
    again.close()
    assert (found.body, found.headers, found.address) == (body, {"x-event": "push"}, "192.0.2.1")
    assert (found.received_at, found.delivery_id, found.hook) == (NOW, "d1", "github")


def test_the_same_delivery_is_kept_once_per_hook(store: ServerStore) -> None:
    first, _ = add(store, delivery(), NOW)
    second, is_new = add(store, delivery(body=b"other"), at(1))
    assert (second.number, is_new, second.body) == (first.number, False, b'{"a": 1}')
    third, is_new = add(store, delivery(hook="gitlab"), at(1))
    assert is_new
    assert third.number > first.number


def test_deliveries_are_claimed_in_order_each_by_one(store: ServerStore, address: str) -> None:
    numbers = [add(store, delivery(f"d{n}"), at(n))[0].number for n in range(20)]
    claimed: list[int] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        mine = open_store(address)
        barrier.wait()
        while (one := claim(mine, at(60))) is not None:
            claimed.append(one.number)
        mine.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # With SKIP LOCKED a loser may see nothing and stop: what is left is there for the next.
    while (one := claim(store, at(60))) is not None:
        claimed.append(one.number)
    assert sorted(claimed) == numbers


def test_a_delivery_whose_handler_died_goes_to_the_next(store: ServerStore) -> None:
    kept, _ = add(store, delivery(), NOW)
    first = claim(store, NOW)
    assert first is not None
    assert first.attempts == 1
    assert claim(store, at(LEASE_S - 1)) is None
    second = claim(store, at(LEASE_S))
    assert second is not None
    assert (second.number, second.attempts) == (kept.number, 2)
    store.deliveries.finish([(second, {"kind": "push"})])
    assert claim(store, at(1000)) is None
    found = store.deliveries.get(kept.number)
    assert (found.status, found.outcome) == ("handled", {"kind": "push"})


def test_of_a_lane_nobody_takes_a_delivery_while_another_has_one_before_it(
    store: ServerStore, address: str
) -> None:
    for name, lane in (("a1", "a"), ("a2", "a"), ("b1", "b"), ("none", ""), ("a3", "a")):
        add(store, delivery(name, lane=lane), NOW)
    (first,) = store.deliveries.claim(now=NOW, lease_s=LEASE_S, limit=1)
    other = open_store(address)
    taken = other.deliveries.claim(now=NOW, lease_s=LEASE_S, limit=10)
    assert [one.delivery_id for one in taken] == ["b1", "none"]
    store.deliveries.hold([first.number], now=at(LEASE_S - 1), lease_s=LEASE_S)
    store.deliveries.finish([(one, {}) for one in taken])
    assert other.deliveries.claim(now=at(LEASE_S + 1), lease_s=LEASE_S, limit=10) == []
    store.deliveries.finish([(first, {})])
    taken = other.deliveries.claim(now=at(LEASE_S + 1), lease_s=LEASE_S, limit=1)
    assert [(one.delivery_id, one.lane) for one in taken] == [("a2", "a")]
    other.deliveries.release(taken)
    again = store.deliveries.claim(now=at(LEASE_S + 1), lease_s=LEASE_S, limit=10)
    assert [(one.delivery_id, one.attempts) for one in again] == [("a2", 1), ("a3", 1)]
    other.close()


def test_of_a_lane_only_one_of_several_servers_takes_deliveries(
    store: ServerStore, address: str
) -> None:
    for lane in range(10):
        for number in range(6):
            add(store, delivery(f"{lane}-{number}", lane=f"l{lane}"), NOW)
    begin = threading.Barrier(3)

    def claimed(_: int) -> list[str]:
        mine = open_store(address)
        begin.wait(timeout=30)
        found = []
        for _ in range(20):
            found += [one.lane for one in mine.deliveries.claim(now=NOW, lease_s=LEASE_S, limit=2)]
        mine.close()
        return found

    with ThreadPoolExecutor(3) as several:
        lanes = list(several.map(claimed, range(3)))
    for lane in {one for found in lanes for one in found}:
        assert sum(lane in found for found in lanes) == 1


def test_what_is_postponed_comes_when_it_is_due_and_holds_up_nobody(store: ServerStore) -> None:
    kept, _ = add(store, delivery("d1", lane="a"), NOW)
    add(store, delivery("d2", lane="a"), NOW)
    (claimed,) = store.deliveries.claim(now=NOW, lease_s=LEASE_S, limit=1)
    store.deliveries.postpone(claimed, {"kind": "push"}, until=at(60))
    found = store.deliveries.get(kept.number)
    assert (found.status, found.attempts, found.outcome) == ("waiting", 0, {"kind": "push"})
    (second,) = store.deliveries.claim(now=at(1), lease_s=LEASE_S, limit=5)
    assert second.delivery_id == "d2"
    store.deliveries.finish([(second, {})])
    assert store.deliveries.forget(before=at(-1), limit=100) == 0
    (again,) = store.deliveries.claim(now=at(60), lease_s=LEASE_S, limit=5)
    assert (again.number, again.status, again.attempts) == (kept.number, "waiting", 1)
    assert store.deliveries.claim(now=at(61), lease_s=LEASE_S, limit=5) == []
    store.deliveries.release([again])
    (again,) = store.deliveries.claim(now=at(61), lease_s=LEASE_S, limit=5)
    store.deliveries.postpone(again, {"kind": "more"}, until=at(200))
    assert store.deliveries.claim(now=at(199), lease_s=LEASE_S, limit=5) == []
    assert store.deliveries.replay(kept.number).status == "received"
    store.deliveries.postpone(again, {"kind": "late"}, until=at(300))
    (replayed,) = store.deliveries.claim(now=at(199), lease_s=LEASE_S, limit=5)
    store.deliveries.finish([(replayed, {"kind": "new"})])
    store.deliveries.postpone(replayed, {"kind": "late"}, until=at(300))
    found = store.deliveries.get(kept.number)
    assert (found.status, found.outcome) == ("handled", {"kind": "new"})


def test_a_replay_is_handled_again_also_when_it_was_asked_for_in_between(
    store: ServerStore,
) -> None:
    kept, _ = add(store, delivery(), NOW)
    claimed = claim(store, NOW)
    assert claimed is not None
    assert store.deliveries.replay(kept.number).replays == 1
    store.deliveries.finish([(claimed, {"kind": "old"})])
    again = claim(store, at(1))
    assert again is not None
    assert (again.number, again.replays, again.body) == (kept.number, 1, b'{"a": 1}')
    store.deliveries.finish([(again, {"kind": "new"})])
    assert store.deliveries.get(kept.number).outcome == {"kind": "new"}
    with pytest.raises(NotFound):
        store.deliveries.replay(kept.number + 1)


def test_a_refused_delivery_leaves_a_trace_and_takes_nobody_s_id(store: ServerStore) -> None:
    store.deliveries.refuse(delivery(body=b"x" * 1000), "wrong signature", now=NOW)
    (seen,) = store.deliveries.page()
    assert (seen.status, seen.outcome) == ("refused", {"reason": "wrong signature"})
    assert store.deliveries.get(seen.number).body == b""
    assert claim(store, NOW) is None
    _, is_new = add(store, delivery(), NOW)
    assert is_new
    with pytest.raises(Conflict, match="was refused"):
        store.deliveries.replay(seen.number)


def test_only_the_newest_refusals_are_kept(store: ServerStore) -> None:
    kept, _ = add(store, delivery(), NOW)
    for number in range(KEPT_REFUSALS + 3):
        store.deliveries.refuse(delivery(), f"no {number}", now=NOW)
    listed = store.deliveries.page(limit=1000)
    refused = [one.outcome["reason"] for one in listed if one.status == "refused"]
    assert len(refused) == KEPT_REFUSALS
    assert refused[0] == f"no {KEPT_REFUSALS + 2}"
    assert refused[-1] == "no 3"
    assert listed[-1].number == kept.number


def test_the_newest_deliveries_come_first_page_by_page(store: ServerStore) -> None:
    numbers = [add(store, delivery(f"d{n}", hook=f"h{n % 2}"), NOW)[0].number for n in range(6)]
    first = store.deliveries.page(limit=4)
    assert [one.number for one in first] == numbers[:1:-1]
    assert all(one.body == b"" for one in first)
    rest = store.deliveries.page(limit=4, before=first[-1].number)
    assert [one.number for one in rest] == numbers[1::-1]
    assert [one.number for one in store.deliveries.page(hook="h1")] == numbers[5::-2]


def test_old_deliveries_are_forgotten_once_they_were_handled(store: ServerStore) -> None:
    add(store, delivery("waits"), NOW)
    store.deliveries.finish([(add(store, delivery("old"), at(-10))[0], {})])
    store.deliveries.finish([(add(store, delivery("new"), at(10))[0], {})])
    assert store.deliveries.forget(before=at(1), limit=100) == 1
    assert {one.delivery_id for one in store.deliveries.page()} == {"waits", "new"}


def test_the_newest_delivery_of_a_hook_is_not_forgotten(store: ServerStore) -> None:
    for name in ("first", "last"):
        store.deliveries.finish([(add(store, delivery(name, hook="git/app"), NOW)[0], {})])
    store.deliveries.refuse(delivery("x", hook="git/app"), "no", now=NOW)
    assert store.deliveries.forget(before=at(1), limit=100) == 2
    assert [one.delivery_id for one in store.deliveries.page()] == ["last"]


R, S = Watched("p", "r"), Watched("p", "s")
BOTH = [R, S]


def test_each_project_has_its_own_records_of_refs(store: ServerStore) -> None:
    mine, theirs = R, Watched("q", "r")
    store.refs.note(mine, "refs/heads/main", "a", "delivery")
    assert store.refs.known(theirs) == {}
    store.refs.note_first_look(theirs, {"refs/heads/main": "b", "refs/heads/x": "c"}, "look")
    assert store.refs.known(mine) == {"refs/heads/main": KnownRef("a", "delivery")}
    store.refs.note(mine, "refs/heads/main", "", "delivery")
    assert set(store.refs.known(theirs)) == {"refs/heads/main", "refs/heads/x"}
    store.refs.note(mine, "refs/heads/main", "a", "delivery")
    store.refs.forget(theirs)
    assert (store.refs.known(theirs), len(store.refs.known(mine))) == ({}, 1)


def test_many_records_of_refs_are_deleted_in_parts_and_their_mark_first(
    store: ServerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REFS_AT_ONCE", 2)
    store.refs.note_first_look(R, {"": "looked at", **dict.fromkeys("abcd", "1")}, "look")
    left: list[set[str]] = []
    write = store.refs._database.write

    @contextmanager
    def watched() -> Iterator[Any]:
        with write() as connection:
            yield connection
        left.append(set(store.refs.known(R)))

    monkeypatch.setattr(store.refs._database, "write", watched)
    store.refs.forget(R)
    assert left == [set("bcd"), set("d"), set()]


def test_the_claims_leave_out_the_hooks_that_have_their_turn_later(store: ServerStore) -> None:
    for number, (hook, lane) in enumerate(
        [("git/a", ""), ("git/a", "git/a r"), ("git/ab", "git/ab r"), ("git/b", "")], 1
    ):
        add(store, delivery(str(number), hook, lane=lane), NOW)
    some = store.deliveries.claim(now=NOW, lease_s=LEASE_S, limit=10, but={"git/a", "git/x"})
    assert [one.hook for one in some] == ["git/ab", "git/b"]
    rest = store.deliveries.claim(now=NOW, lease_s=LEASE_S, limit=10)
    assert [one.hook for one in rest] == ["git/a", "git/a"]


def test_the_mark_of_a_first_look_comes_last(
    store: ServerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that dies between two transactions must not leave it without the refs."""
    written: list[str] = []
    monkeypatch.setattr(module, "_REFS_AT_ONCE", 1)
    monkeypatch.setattr(
        module, "insert_all_new", lambda *given: written.extend(row["ref"] for row in given[2])
    )
    store.refs.note_first_look(R, {"": "looked at", "refs/b": "b", "refs/a": "a"}, "look")
    assert written == ["refs/a", "refs/b", ""]


def test_a_delivery_that_is_handled_again_sets_no_ref_back(store: ServerStore) -> None:
    for number, (before, after) in enumerate(["pa", "ab", "bc"], 1):
        store.refs.note_all([R], "refs/heads/main", KnownRef(after, f"delivery {number}", before))
    store.refs.note_all([R], "refs/heads/main", KnownRef("a", "delivery 1", "p"))
    assert store.refs.known(R) == {"refs/heads/main": KnownRef("c", "delivery 3", "b")}


def test_refs_are_remembered_with_who_saw_them(store: ServerStore) -> None:
    assert store.refs.known(R) == {}
    assert store.refs.note(R, "refs/heads/main", "a", "delivery") is None
    before = store.refs.note(R, "refs/heads/main", "b", "reconcile")
    assert before == KnownRef("a", "delivery")
    assert store.refs.note(Watched("p", "other"), "refs/heads/main", "c", "delivery") is None
    assert store.refs.known(R) == {"refs/heads/main": KnownRef("b", "reconcile")}
    store.refs.note(R, "refs/heads/dev", "d", "delivery")
    assert set(store.refs.known(R, "refs/heads/main")) == {"refs/heads/main"}
    store.refs.note_all(BOTH, "refs/heads/x", KnownRef("e", "delivery"))
    for name in ("r", "s"):
        assert store.refs.known(Watched("p", name), "refs/heads/x")["refs/heads/x"] == KnownRef(
            "e", "delivery"
        )
    store.refs.note_all(BOTH, "refs/heads/x", KnownRef("", "delivery"))
    store.refs.note(R, "refs/heads/dev", "", "delivery")
    store.refs.note(R, "refs/heads/main", "", "delivery")
    assert store.refs.known(R) == {}
    assert store.refs.note(R, "refs/heads/none", "", "delivery") is None


def test_who_saw_a_ref_at_a_commit_first_is_remembered(store: ServerStore) -> None:
    first = KnownRef("a", "delivery 1")
    assert store.refs.note_all(
        BOTH, "refs/heads/main", KnownRef("a", "delivery 1")
    ) == dict.fromkeys(BOTH)
    for by in ("delivery 2", "delivery 1"):
        assert store.refs.note_all(
            BOTH[::-1], "refs/heads/main", KnownRef("a", by)
        ) == dict.fromkeys(BOTH, first)
    assert store.refs.known(R) == {"refs/heads/main": first}


def test_a_ref_is_not_put_back_by_the_push_before_the_one_that_is_known(store: ServerStore) -> None:
    ref = "refs/heads/main"
    newest = KnownRef("c", "delivery 1", before="b")
    store.refs.note_all([R], ref, newest)
    assert store.refs.note_all([R], ref, KnownRef("b", "delivery 2", before="a")) == {
        BOTH[0]: newest
    }
    assert store.refs.known(R) == {ref: newest}
    taken_back = KnownRef("b", "delivery 3", before="c")  # by force
    store.refs.note_all([R], ref, taken_back)
    assert store.refs.known(R) == {ref: taken_back}
    store.refs.note(R, ref, "c", "reconcile 4")  # who looks knows where it is
    assert store.refs.known(R) == {ref: KnownRef("c", "reconcile 4")}


def test_a_move_that_a_look_found_counts_only_from_its_start(store: ServerStore) -> None:
    ref = "refs/heads/main"

    def found(before: str, after: str) -> KnownRef | None:
        now = KnownRef(after, "reconcile 9", before=before)
        seen = store.refs.note_all([R], ref, now, only_from_before=True)
        return seen[BOTH[0]]

    pushed = KnownRef("b", "delivery 2", before="a")
    store.refs.note_all([R], ref, pushed)
    assert [found("a", "x"), found("", "x"), found("a", "")] == [pushed] * 3
    assert store.refs.known(R) == {ref: pushed}
    assert found("b", "c") == pushed
    assert store.refs.known(R) == {ref: KnownRef("c", "reconcile 9", before="b")}
    assert found("c", "").commit == "c"
    assert found("c", "d") is None  # it was deleted
    assert store.refs.known(R) == {}


def test_of_several_at_once_one_alone_sees_a_ref_first(store: ServerStore) -> None:
    begin = threading.Barrier(4)

    def noted(number: int) -> list[KnownRef | None]:
        found: list[KnownRef | None] = []
        for ref in range(20):
            begin.wait(timeout=30)
            found += store.refs.note_all(
                [R], f"refs/heads/{ref}", KnownRef("a", f"delivery {number}")
            ).values()
        return found

    with ThreadPoolExecutor(4) as several:
        answers = list(several.map(noted, range(4)))
    for told in zip(*answers, strict=True):
        assert told.count(None) == 1


def test_the_triggers_of_all_projects_are_there(store: ServerStore) -> None:
    for project in ("p", "q"):
        store.triggers.create(project, "global", {"id": f"t-{project}", "name": "t"})
    store.triggers.set_settings("q", "t-q", {"jitter": "1s"})
    store.triggers.create("r", "global", {"id": "t-r", "name": "t"}, {"jitter": "2s"})
    found = [(one.project, one.document["id"], one.settings) for one in store.triggers.every()]
    assert sorted(found, key=str) == [
        ("p", "t-p", {}),
        ("q", "t-q", {"jitter": "1s"}),
        ("r", "t-r", {"jitter": "2s"}),
    ]
    assert store.triggers.settings("r", "t-r") == {"jitter": "2s"}


def test_a_first_look_remembers_what_is_not_known_and_changes_nothing(store: ServerStore) -> None:
    store.refs.note(R, "refs/heads/main", "a", "delivery 1")
    store.refs.note_first_look(R, {"refs/heads/main": "b", "refs/heads/x": "c", "": "x"}, "look")
    store.refs.note_first_look(R, {"refs/heads/x": "d"}, "another look")
    store.refs.note_first_look(R, {}, "another look")
    assert store.refs.known(R) == {
        "": KnownRef("x", "look"),
        "refs/heads/main": KnownRef("a", "delivery 1"),
        "refs/heads/x": KnownRef("c", "look"),
    }


def test_a_hook_is_bound_until_its_binding_is_deleted(store: ServerStore) -> None:
    with pytest.raises(NotFound, match="the hook github is bound to nothing"):
        store.hooks.get("github")
    assert store.hooks.add("github", {"owners": ["a"]}) == {"owners": ["a"]}
    assert store.hooks.add("github", {"owners": ["b"]}) == {"owners": ["a"]}  # it is bound already
    store.hooks.put("github", {"owners": ["c"]})
    store.hooks.put("git/app", {"repository": "file:///srv/app.git"})
    assert store.hooks.get("github") == {"owners": ["c"]}
    assert list(store.hooks.all()) == ["git/app", "github"]
    store.hooks.delete("github")
    assert list(store.hooks.all()) == ["git/app"]
    with pytest.raises(NotFound):
        store.hooks.delete("github")


def test_repositories_with_records_are_listed_and_their_refs_counted(store: ServerStore) -> None:
    found = [
        Watched("", "git/app b"),
        Watched("P-1", "B/a"),
        Watched("p", "a"),
        Watched("p", "b c"),
    ]
    for one in found:
        store.refs.note_first_look(
            one, dict.fromkeys(["refs/heads/x", "refs/heads/Y"], "1"), "look"
        )
    recorded = store.refs.recorded()
    assert (len(recorded), set(recorded)) == (4, set(found))
    assert store.refs.count_with(found[2], ["refs/heads/x", "refs/heads/new"]) == 3
    assert store.refs.count_with(found[2], []) == 2
    assert store.refs.count_with(Watched("q", "a"), ["refs/heads/x"]) == 1


def test_hooks_are_heard_of_by_their_genuine_deliveries(store: ServerStore) -> None:
    store.deliveries.add([delivery("a"), delivery("b", "git/app")], now=NOW)
    store.deliveries.add([delivery("c")], now=at(60))
    store.deliveries.refuse(delivery("d", "gitlab"), "bad signature", now=at(61))
    assert store.hooks.heard() == {"github": at(60), "git/app": NOW}


def test_several_are_kept_claimed_and_finished_at_once(store: ServerStore) -> None:
    new = [delivery("a"), delivery("b"), delivery("a"), delivery("c")]
    kept = store.deliveries.add(new, now=NOW)
    assert [is_new for _, is_new in kept] == [True, True, False, True]
    assert kept[2][0].number == kept[0][0].number
    claimed = store.deliveries.claim(now=NOW, lease_s=LEASE_S, limit=2)
    assert [one.delivery_id for one in claimed] == ["a", "b"]
    rest = store.deliveries.claim(now=NOW, lease_s=LEASE_S, limit=10)
    assert [one.delivery_id for one in rest] == ["c"]
    store.deliveries.finish([(one, {"kind": one.delivery_id}) for one in (*claimed, *rest)])
    assert [one.outcome["kind"] for one in store.deliveries.page()] == ["c", "b", "a"]
