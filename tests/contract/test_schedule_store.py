"""What every store of schedules must do, on SQLite and on a real PostgreSQL."""
# ruff: noqa: F811  (fixtures are imported, and named again by the tests that use them)

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from msgspec.structs import replace

from buildrunner.errors import NotFound
from buildrunner.store.model.triggers import FAILED, FIRED, MISSED, SKIPPED, WAITING, Fire
from buildrunner.store.sql.store import ServerStore
from buildrunner.store.sql.triggers import MOST_WAITING_FIRES
from tests.contract.test_server_store import (  # noqa: F401  (fixtures)
    address,
    at,
    open_another,
    postgres,
    postgres_template,
    sqlite_template,
    store,
)

NIGHTLY = {"id": "t1", "name": "nightly", "cron": {"schedule": "0 3 * * *"}}


@pytest.fixture
def scheduled(store: ServerStore) -> ServerStore:
    store.triggers.create("p", "global", NIGHTLY)
    return store


def fire(seconds: float, *, run_later: float = 0, **more: str) -> Fire:
    return Fire(
        project_id="p", trigger_id="t1", fire_at=at(seconds), run_at=at(seconds + run_later), **more
    )


class TestSettings:
    def test_they_are_kept_beside_the_trigger(self, scheduled: ServerStore) -> None:
        assert scheduled.triggers.settings("p", "t1") == {}
        scheduled.triggers.set_settings("p", "t1", {"missed": "once"})
        scheduled.triggers.set_settings("p", "t1", {"missed": "all"})
        assert scheduled.triggers.settings("p", "t1") == {"missed": "all"}
        assert "missed" not in scheduled.triggers.get("p", "t1")
        scheduled.triggers.set_settings("p", "t1", {})
        assert scheduled.triggers.settings("p", "t1") == {}

    def test_a_trigger_must_be_there(self, store: ServerStore) -> None:
        assert store.triggers.settings("p", "none") == {}
        with pytest.raises(NotFound):
            store.triggers.set_settings("p", "none", {"missed": "once"})

    def test_they_go_with_the_trigger_and_stay_when_it_changes(
        self, scheduled: ServerStore
    ) -> None:
        scheduled.triggers.set_settings("p", "t1", {"missed": "once"})
        scheduled.triggers.replace("p", "t1", {**NIGHTLY, "name": "weekly"})
        assert scheduled.triggers.settings("p", "t1") == {"missed": "once"}
        scheduled.triggers.delete("p", "t1")
        scheduled.triggers.create("p", "global", NIGHTLY)
        assert scheduled.triggers.settings("p", "t1") == {}


class TestSchedules:
    def test_triggers_with_a_cron_of_all_projects_are_listed(self, scheduled: ServerStore) -> None:
        scheduled.triggers.create("p", "global", {"id": "t2", "name": "pushes"})
        scheduled.triggers.create("q", "global", {**NIGHTLY, "description": "not a cron"})
        scheduled.triggers.create("q", "global", {"id": "t3", "substitutions": {"_A": '"cron"'}})
        scheduled.triggers.set_settings("p", "t1", {"overlap": "skip"})
        found = {one.project_id: one for one in scheduled.schedules.triggers()}
        assert set(found) == {"p", "q"}
        assert (found["p"].id, found["p"].name) == (NIGHTLY["id"], NIGHTLY["name"])
        assert (found["p"].cron, found["p"].disabled) == (NIGHTLY["cron"], False)
        assert found["p"].settings == {"overlap": "skip"}
        assert found["q"].settings == {}

    def test_a_schedule_begins_when_it_is_first_seen_and_again_when_it_changes(
        self, scheduled: ServerStore
    ) -> None:
        assert scheduled.schedules.since("p", "t1", "a", now=at(0)) == at(0)
        assert scheduled.schedules.since("p", "t1", "a", now=at(60)) == at(0)
        assert scheduled.schedules.since("p", "t1", "b", now=at(90)) == at(90)
        scheduled.schedules.stop("p", "t1", "disabled")
        assert scheduled.schedules.since("p", "t1", "b", now=at(120)) == at(120)
        with pytest.raises(NotFound):
            scheduled.schedules.since("p", "none", "a", now=at(0))

    def test_what_was_dealt_with_moves_forward_only(self, scheduled: ServerStore) -> None:
        scheduled.schedules.since("p", "t1", "a", now=at(0))
        scheduled.schedules.note_fires("p", "t1", [], until=at(60))
        scheduled.schedules.note_fires("p", "t1", [], until=at(30))
        assert scheduled.schedules.since("p", "t1", "a", now=at(90)) == at(60)


class TestFires:
    def test_a_fire_time_is_kept_once(
        self, scheduled: ServerStore, open_another: Callable[[], ServerStore]
    ) -> None:
        other = open_another()
        scheduled.schedules.note_fires("p", "t1", [fire(0)], until=at(0))
        other.schedules.note_fires("p", "t1", [fire(0), fire(60)], until=at(60))
        assert [one.fire_at for one in other.schedules.fires("p", "t1")] == [at(60), at(0)]

    def test_a_fire_is_given_to_one_server_when_its_time_has_come(
        self, scheduled: ServerStore, open_another: Callable[[], ServerStore]
    ) -> None:
        scheduled.schedules.note_fires("p", "t1", [fire(0, run_later=30), fire(60)], until=at(60))
        assert scheduled.schedules.next_run_at() == at(30)
        assert scheduled.schedules.claim_fires(now=at(29), lease_s=10, limit=9) == []
        assert scheduled.schedules.claim_fires(now=at(30), lease_s=10, limit=9) == [
            fire(0, run_later=30)
        ]
        assert open_another().schedules.claim_fires(now=at(39), lease_s=10, limit=9) == []

    def test_a_fire_whose_server_died_is_given_out_again(self, scheduled: ServerStore) -> None:
        scheduled.schedules.note_fires("p", "t1", [fire(0)], until=at(0))
        assert scheduled.schedules.claim_fires(now=at(1), lease_s=10, limit=9)
        assert scheduled.schedules.claim_fires(now=at(11), lease_s=10, limit=9) == [fire(0)]

    def test_many_servers_never_get_the_same_fire(
        self, scheduled: ServerStore, open_another: Callable[[], ServerStore]
    ) -> None:
        times = [fire(number) for number in range(40)]
        scheduled.schedules.note_fires("p", "t1", times, until=at(40))
        got: list[Fire] = []

        def work(server: ServerStore) -> None:
            while claimed := server.schedules.claim_fires(now=at(50), lease_s=60, limit=3):
                got.extend(claimed)

        servers = [threading.Thread(target=work, args=(open_another(),)) for _ in range(4)]
        for thread in servers:
            thread.start()
        for thread in servers:
            thread.join()
        assert sorted(got, key=lambda one: one.fire_at) == times

    @pytest.mark.parametrize("state", [FIRED, SKIPPED, MISSED, FAILED])
    def test_what_became_of_it_stays(self, scheduled: ServerStore, state: str) -> None:
        scheduled.schedules.note_fires("p", "t1", [fire(0)], until=at(0))
        settled = replace(fire(0), state=state, build_id="b", detail="so")
        scheduled.schedules.settle_fire(settled)
        scheduled.schedules.settle_fire(replace(settled, state=WAITING, detail="no"))
        assert scheduled.schedules.fires("p", "t1") == [settled]
        assert scheduled.schedules.claim_fires(now=at(9), lease_s=10, limit=9) == []
        assert scheduled.schedules.next_run_at() is None

    def test_a_trigger_has_a_bounded_number_of_waiting_fires(self, scheduled: ServerStore) -> None:
        """Attack: a schedule with times that wait for long fills the table for all projects."""
        for begin in (0, 60, 60):  # a second server notes the same times
            fires = [fire(second, run_later=3600) for second in range(begin, begin + 80)]
            scheduled.schedules.note_fires("p", "t1", fires, until=at(begin + 80))
        found = scheduled.schedules.fires("p", "t1", limit=500)
        assert sum(one.state == WAITING for one in found) == MOST_WAITING_FIRES == 100
        skipped = [one for one in found if one.state == SKIPPED]
        assert [one.fire_at for one in skipped] == [at(second) for second in range(139, 99, -1)]
        assert {one.detail for one in skipped} == {
            "100 other times of the trigger wait for their builds"
        }
        scheduled.schedules.settle_fire(replace(found[-1], state=FIRED))
        scheduled.schedules.note_fires("p", "t1", [fire(300)], until=at(300))
        assert scheduled.schedules.fires("p", "t1", limit=1)[0].state == WAITING

    def test_what_waits_is_skipped_when_the_schedule_stops(self, scheduled: ServerStore) -> None:
        scheduled.schedules.since("p", "t1", "a", now=at(0))
        scheduled.schedules.note_fires("p", "t1", [fire(0)], until=at(0))
        scheduled.schedules.stop("p", "t1", "disabled")
        found = scheduled.schedules.fires("p", "t1")
        assert [(one.state, one.detail) for one in found] == [(SKIPPED, "disabled")]

    def test_they_go_with_the_trigger(self, scheduled: ServerStore) -> None:
        scheduled.schedules.note_fires("p", "t1", [fire(0)], until=at(0))
        scheduled.triggers.delete("p", "t1")
        assert scheduled.schedules.next_run_at() is None
        scheduled.schedules.note_fires("p", "t1", [fire(60)], until=at(60))
        assert scheduled.schedules.fires("p", "t1") == []

    def test_old_ones_are_forgotten_in_the_end(self, scheduled: ServerStore) -> None:
        old = replace(fire(0), state=FIRED)
        scheduled.schedules.note_fires("p", "t1", [old], until=at(0))
        late = at(0) + timedelta(days=91)
        scheduled.schedules.note_fires("p", "t1", [], until=late)
        assert scheduled.schedules.fires("p", "t1") == []
