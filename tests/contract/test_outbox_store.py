"""What every outbox must do, on SQLite and on a real PostgreSQL."""
# ruff: noqa: F811  (fixtures are imported, and named again by the tests that use them)

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from msgspec import structs

from buildrunner.errors import Conflict, NotFound
from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.outbox import DELIVERED, GIVEN_UP, NewMessage
from buildrunner.store.sql.store import ServerStore
from tests.contract.test_server_store import (  # noqa: F401  (fixtures)
    address,
    at,
    claim,
    end,
    new_build,
    open_another,
    postgres,
    postgres_template,
    sqlite_template,
    store,
    with_status,
)


def message(key: str, *, lane: str = "", replaces: bool = False, project: str = "p") -> NewMessage:
    return NewMessage(
        key=key,
        lane=lane or key,
        kind="webhook",
        project_id=project,
        build_id="b",
        target="http://example.test",
        message={"text": "✔"},
        replaces=replaces,
    )


def post(store: ServerStore, *messages: NewMessage, now: float = 0) -> int:
    """Put messages in, as what follows from one change of a build."""
    store.builds.create(new_build())
    changes = store.outbox.changes(limit=100)
    return store.outbox.announce(changes, [(changes[0].id, one) for one in messages], now=at(now))


def keys(store: ServerStore, now: float, *, lease_s: float = 10, limit: int = 10) -> list[str]:
    return [one.key for one in store.outbox.claim(now=at(now), lease_s=lease_s, limit=limit)]


class TestChanges:
    def seen(self, store: ServerStore) -> list[tuple[str, str]]:
        return [(one.build_id, one.status) for one in store.outbox.changes(limit=100)]

    def test_each_new_status_of_a_build_is_noted_with_its_document(
        self, store: ServerStore
    ) -> None:
        store.builds.create(new_build("a"))
        claimed = claim(store)
        build, lease = claimed
        working = with_status(build, "WORKING", startTime=encode_instant(at(1)))
        store.queue.record(lease, working)
        store.queue.record(lease, {**working, "statusDetail": "still"})
        end(store, claimed)
        changes = store.outbox.changes(limit=100)
        assert [one.status for one in changes] == ["QUEUED", "WORKING", "SUCCESS"]
        assert [one.id for one in changes] == sorted(one.id for one in changes)
        assert store.outbox.changed_build(changes[1].id) == working
        assert changes[0].project_id == "p"

    def test_whatever_ends_a_build_is_noted(self, store: ServerStore) -> None:
        store.builds.create(new_build("cancelled"))
        store.builds.request_cancel("p", "cancelled", now=at(1))
        store.builds.create(new_build("late", ttl=5))
        store.queue.expire(now=at(9))
        pending = store.builds.create(new_build("asks", status="PENDING"))
        rejected = with_status(pending, "CANCELLED", finishTime=encode_instant(at(9)))
        store.builds.decide_approval("p", "asks", rejected, approved=False)
        store.builds.create(new_build("old", group="g"))
        store.builds.create(new_build("new", group="g", supersede="cancel_queued"))
        assert self.seen(store) == [
            ("cancelled", "QUEUED"),
            ("cancelled", "CANCELLED"),
            ("late", "QUEUED"),
            ("late", "EXPIRED"),
            ("asks", "PENDING"),
            ("asks", "CANCELLED"),
            ("old", "QUEUED"),
            ("new", "QUEUED"),
            ("old", "CANCELLED"),
        ]

    def test_a_build_that_was_made_before_is_not_noted_again(self, store: ServerStore) -> None:
        store.builds.create(new_build("a", request_id="r"))
        store.builds.create(new_build("b", request_id="r"))
        assert self.seen(store) == [("a", "QUEUED")]

    def test_of_two_servers_with_a_change_one_announces_it(
        self, store: ServerStore, open_another: Callable[[], ServerStore]
    ) -> None:
        other = open_another()
        store.builds.create(new_build())
        mine, theirs = store.outbox.changes(limit=9), other.outbox.changes(limit=9)
        assert store.outbox.announce(mine, [(mine[0].id, message("k"))], now=at(0)) == 1
        (delivered,) = store.outbox.claim(now=at(0), lease_s=9, limit=9)
        store.outbox.delivered(delivered, now=at(0))
        assert other.outbox.announce(theirs, [(theirs[0].id, message("k"))], now=at(0)) == 0
        assert store.outbox.changes(limit=9) == []
        assert [one.state for one in store.outbox.page()] == [DELIVERED]

    def test_a_message_that_the_database_refuses_takes_no_other_with_it(
        self, store: ServerStore
    ) -> None:
        store.builds.create(new_build("a"))
        store.builds.create(new_build("b"))
        (first, second) = store.outbox.changes(limit=9)
        names = ("1", "\0", "2")
        messages = [(one.id, message(f"{one.id}/{n}")) for one in (first, second) for n in names]
        refused: list[str] = []
        stored = store.outbox.announce(
            [first, second], messages, now=at(0), on_refusal=lambda one, _: refused.append(one.key)
        )
        assert stored == 4
        assert refused == [f"{first.id}/\0", f"{second.id}/\0"]
        found = {one.key for one in store.outbox.page()}
        assert found == {one.key for _, one in messages} - set(refused)
        assert store.outbox.changes(limit=9) == []


class TestDelivery:
    def test_a_message_comes_out_as_it_was_put_in(self, store: ServerStore) -> None:
        post(store, message("k"))
        (listed,) = store.outbox.page()
        found = store.outbox.get(listed.id)
        assert (found.key, found.message, found.attempts) == ("k", {"text": "✔"}, 0)
        assert found.created_at == found.next_try == at(0)
        assert listed == structs.replace(found, message={})  # a page of large ones stays small

    def test_a_key_is_there_once(self, store: ServerStore) -> None:
        assert post(store, message("k"), message("k")) == 1
        assert post(store, message("k")) == 0

    def test_one_can_be_put_in_without_a_change(self, store: ServerStore) -> None:
        put = store.outbox.put(message("k"), now=at(3))
        assert store.outbox.get(put.id) == put
        assert store.outbox.page() == [structs.replace(put, message={})]
        assert (put.key, put.created_at) == ("k", at(3))
        with pytest.raises(Conflict, match="message k already"):
            store.outbox.put(message("k"), now=at(4))

    def test_a_claimed_message_is_nobody_elses_until_the_lease_ends(
        self, store: ServerStore, open_another: Callable[[], ServerStore]
    ) -> None:
        post(store, message("k"))
        assert keys(store, 0) == ["k"]
        assert keys(open_another(), 9) == []
        assert keys(open_another(), 10) == ["k"]

    def test_projects_take_turns_and_none_has_more_than_its_share(self, store: ServerStore) -> None:
        for number in range(5):
            store.outbox.put(message(f"a{number}", project="a"), now=at(0))
        for number in range(2):
            store.outbox.put(message(f"b{number}", project="b"), now=at(1))
        store.outbox.put(message("c0", project="c"), now=at(1))
        first = store.outbox.claim(now=at(2), lease_s=9, limit=3)
        assert [one.key for one in first] == ["a0", "b0", "c0"]
        in_hand = {"a": 1, "b": 1, "c": 1}
        then = store.outbox.claim(now=at(2), lease_s=9, limit=9, share=3, in_hand=in_hand)
        assert [one.key for one in then] == ["a1", "a2", "b1"]

    def test_what_was_delivered_can_be_seen_for_a_while(self, store: ServerStore) -> None:
        post(store, message("k"), message("waits"))
        (claimed,) = store.outbox.claim(now=at(0), lease_s=10, limit=1)
        store.outbox.delivered(claimed, now=at(70))
        (found,) = store.outbox.page(state=DELIVERED)
        assert (found.key, found.attempts, found.done_at) == ("k", 1, at(70))
        assert keys(store, 99) == ["waits"]
        with pytest.raises(Conflict, match="arrived already"):
            store.outbox.retry(found.id, now=at(80))
        assert store.outbox.forget(before=at(70), limit=100) == 0
        assert store.outbox.forget(before=at(71), limit=100) == 1
        assert [one.key for one in store.outbox.page()] == ["waits"]

    def test_messages_are_listed_the_newest_first_in_parts(self, store: ServerStore) -> None:
        post(store, *(message(f"k{number}") for number in range(5)))
        first = store.outbox.page(limit=2)
        assert [one.key for one in first] == ["k4", "k3"]
        rest = store.outbox.page(before=first[-1].id, project_id="p", build_id="b")
        assert [one.key for one in rest] == ["k2", "k1", "k0"]
        assert store.outbox.page(project_id="another") == []
        assert (store.outbox.count("waiting"), store.outbox.count(GIVEN_UP)) == (5, 0)
        assert store.outbox.page(build_id="another") == []

    def test_what_can_not_be_made_is_given_up_as_it_comes(self, store: ServerStore) -> None:
        broken = structs.replace(message("k"), message={}, problem="line 3: no such thing")
        post(store, broken)
        (found,) = store.outbox.page()
        assert (found.state, found.last_error) == (GIVEN_UP, "line 3: no such thing")
        assert found.done_at == at(0)
        assert keys(store, 9) == []
        with pytest.raises(Conflict, match="nothing to send: line 3"):
            store.outbox.retry(found.id, now=at(1))

    def test_whoever_lost_a_claim_changes_nothing(self, store: ServerStore) -> None:
        post(store, message("k"))
        (lost,) = store.outbox.claim(now=at(0), lease_s=1, limit=9)
        (held,) = store.outbox.claim(now=at(5), lease_s=10, limit=9)
        store.outbox.delivered(lost, now=at(70))
        store.outbox.put_off(lost, next_try=at(99), error="no")
        store.outbox.give_up(lost, error="no", now=at(70))
        (found,) = store.outbox.page()
        assert (found.claim, found.attempts, found.state) == (held.claim, 0, "waiting")

    def test_a_lane_is_delivered_in_its_order(self, store: ServerStore) -> None:
        post(store, message("a1", lane="a"), message("a2", lane="a"), message("b1", lane="b"))
        first = store.outbox.claim(now=at(0), lease_s=10, limit=9)
        assert [one.key for one in first] == ["a1", "b1"]
        store.outbox.put_off(first[0], next_try=at(60), error="down")
        store.outbox.delivered(first[1], now=at(70))
        assert keys(store, 30) == []
        (again,) = store.outbox.claim(now=at(60), lease_s=10, limit=9)
        assert (again.key, again.attempts, again.last_error) == ("a1", 1, "down")
        store.outbox.put_off(again, next_try=at(60), error="not even tried", tried=False)
        (again,) = store.outbox.claim(now=at(60), lease_s=10, limit=9)
        assert (again.attempts, again.last_error) == (1, "not even tried")
        store.outbox.delivered(again, now=at(70))
        assert keys(store, 60) == ["a2"]

    def test_what_was_given_up_stays_to_be_seen_and_is_in_nobodys_way(
        self, store: ServerStore
    ) -> None:
        post(store, message("a1", lane="a"), message("a2", lane="a"))
        (first,) = store.outbox.claim(now=at(0), lease_s=10, limit=9)
        store.outbox.give_up(first, error="too\0 long" + "!" * 2000, now=at(70))
        assert keys(store, 0) == ["a2"]
        (gone,) = store.outbox.page(state=GIVEN_UP)
        assert (gone.key, gone.last_error) == ("a1", "too long" + "!" * 992)

    def test_a_newer_one_takes_the_place_of_those_that_wait(self, store: ServerStore) -> None:
        post(store, message("old", lane="a", replaces=True), message("other", lane="b"))
        post(store, message("new", lane="a", replaces=True))
        assert [one.key for one in store.outbox.page()] == ["new", "other"]

    def test_a_newer_one_takes_the_place_of_what_was_given_up(self, store: ServerStore) -> None:
        post(store, message("old", lane="a", replaces=True), message("other", lane="b"))
        for claimed in store.outbox.claim(now=at(0), lease_s=10, limit=9):
            store.outbox.give_up(claimed, error="no", now=at(1))
        post(store, message("new", lane="a", replaces=True))
        assert [one.key for one in store.outbox.page()] == ["new", "other"]

    def test_one_that_is_being_sent_stays_in_front_of_the_newer_one(
        self, store: ServerStore
    ) -> None:
        post(store, message("old", lane="a", replaces=True))
        (sending,) = store.outbox.claim(now=at(0), lease_s=10, limit=9)
        post(store, message("new", lane="a", replaces=True), now=1)
        assert keys(store, 1) == []
        store.outbox.delivered(sending, now=at(70))
        assert keys(store, 1) == ["new"]

    def test_people_retry_and_drop(self, store: ServerStore) -> None:
        post(store, message("k"))
        (claimed,) = store.outbox.claim(now=at(0), lease_s=10, limit=9)
        store.outbox.give_up(claimed, error="too long", now=at(70))
        store.outbox.retry(claimed.id, now=at(20))
        (again,) = store.outbox.claim(now=at(20), lease_s=10, limit=9)
        assert again.created_at == at(20)
        store.outbox.drop(again.id)
        unknown: list[Callable[[], Any]] = [
            lambda: store.outbox.drop(again.id),
            lambda: store.outbox.retry(again.id, now=at(0)),
            lambda: store.outbox.get(again.id),
        ]
        for act in unknown:
            with pytest.raises(NotFound, match=f"no message {again.id}"):
                act()

    def test_many_senders_never_get_the_same_message(
        self, store: ServerStore, open_another: Callable[[], ServerStore]
    ) -> None:
        post(store, *(message(f"k{number}") for number in range(40)))
        got: list[str] = []

        def work(server: ServerStore) -> None:
            while claimed := keys(server, 0, lease_s=60, limit=3):
                got.extend(claimed)

        senders = [threading.Thread(target=work, args=(open_another(),)) for _ in range(4)]
        for thread in senders:
            thread.start()
        for thread in senders:
            thread.join()
        assert sorted(got) == sorted(f"k{number}" for number in range(40))


class TestNotifiers:
    def test_they_are_kept_by_project_and_name(self, store: ServerStore) -> None:
        store.notifiers.put("p", "b", {"kind": "first"})
        store.notifiers.put("p", "b", {"kind": "second"})
        store.notifiers.put("p", "a", {"kind": "✔"})
        store.notifiers.put("q", "a", {})
        assert store.notifiers.of_project("p") == {"a": {"kind": "✔"}, "b": {"kind": "second"}}
        assert list(store.notifiers.of_project("p")) == ["a", "b"]
        assert store.notifiers.get("q", "a") == {}
        store.notifiers.delete("p", "a")
        assert list(store.notifiers.of_project("p")) == ["b"]
        unknown: list[Callable[[], Any]] = [
            lambda: store.notifiers.delete("p", "a"),
            lambda: store.notifiers.get("p", "a"),
        ]
        for act in unknown:
            with pytest.raises(NotFound, match="no notifier a in project p"):
                act()
