"""Schedules on a store of its own, by a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from buildrunner.server.context import ServerContext
from buildrunner.server.events.scheduler import Scheduler
from buildrunner.server.services.queueing import TriggerQueue
from buildrunner.spec.writing import encode_instant
from buildrunner.store.sql.store import open_store
from tests.api_server import ApiServer, api_server

INLINE = {"build": {"steps": [{"name": "busybox"}]}}
NIGHTLY = {**INLINE, "name": "nightly", "cron": {"schedule": "0 3 * * *"}}
HOURLY = {**INLINE, "name": "hourly", "cron": {"schedule": "0 * * * *"}}


class Clock:
    """The time, which only the test moves."""

    def __init__(self) -> None:
        self.now = datetime(2026, 3, 1, 0, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def set(self, text: str) -> None:
        self.now = datetime.fromisoformat(text).replace(tzinfo=UTC)


class Place:
    """A server with such a clock, and its scheduler."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.clock = Clock()
        self.context: ServerContext = replace(server.context, clock=self.clock)
        self.scheduler = Scheduler(self.context)

    def trigger(self, body: dict[str, Any], **settings: Any) -> str:
        made = self.server.http.post("/v1/projects/p/triggers", json=body)
        assert made.status_code == 200, made.text
        trigger_id = str(made.json()["id"])
        if settings:
            path = f"/buildrunner/v1/projects/p/triggers/{trigger_id}/settings"
            assert self.server.http.put(path, json=settings).status_code == 200
        self.scheduler.turn()
        return trigger_id

    def at(self, text: str) -> datetime | None:
        self.clock.set(text)
        return self.scheduler.turn()

    def builds(self) -> list[dict[str, Any]]:
        found = self.server.store.builds.page("p").builds
        return [dict(one.document) for one in reversed(found)]

    def fires(self, trigger_id: str) -> list[tuple[str, str]]:
        fires = self.server.store.schedules.fires("p", trigger_id)
        return [(one.fire_at.strftime("%dT%H:%M"), one.state) for one in reversed(fires)]


@pytest.fixture
def place(tmp_path: Any) -> Iterator[Place]:
    with api_server(tmp_path) as server:
        yield Place(server)


def test_a_trigger_fires_at_its_time_and_not_before(place: Place) -> None:
    trigger = place.trigger(NIGHTLY)
    assert place.at("2026-03-01T02:59:59") == datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
    assert place.builds() == []
    assert place.at("2026-03-01T03:00:00.2") == datetime(2026, 3, 2, 3, 0, tzinfo=UTC)
    (build,) = place.builds()
    assert build["buildTriggerId"] == trigger
    assert build["substitutions"]["TRIGGER_NAME"] == "nightly"
    stored = place.server.store.builds.find(build["id"])
    assert stored.labels["submitter"] == "schedule"
    assert stored.labels["fire_time"] == "2026-03-01T03:00:00Z"
    assert place.server.woken.is_set()
    place.at("2026-03-01T03:01:00")
    assert len(place.builds()) == 1


def test_late_turns_do_not_move_the_times(place: Place) -> None:
    trigger = place.trigger(HOURLY)
    place.at("2026-03-01T01:00:59")
    place.at("2026-03-01T02:01:10")
    place.at("2026-03-01T03:00:01")
    assert [moment for moment, _ in place.fires(trigger)] == ["01T01:00", "01T02:00", "01T03:00"]


def test_a_time_in_a_zone_is_of_its_clock(place: Place) -> None:
    cron = {"schedule": "30 2 * * *", "timeZone": "Europe/Berlin"}
    place.clock.set("2026-03-28T12:00")
    trigger = place.trigger({**NIGHTLY, "cron": cron})
    for moment in ("2026-03-29T00:30", "2026-03-29T01:00:01", "2026-03-30T00:30:01"):
        place.at(moment)
    # 02:30 is not there on 29 March: 03:00 is the first moment behind it, which is 01:00 UTC.
    assert place.fires(trigger) == [("29T01:00", "fired"), ("30T00:30", "fired")]


@pytest.mark.parametrize(
    ("missed", "expected"),
    [
        ("skip", ["missed", "missed", "missed"]),
        ("once", ["missed", "missed", "fired"]),
        ("all", ["fired", "fired", "fired"]),
    ],
)
def test_what_was_missed_while_the_server_was_down(
    place: Place, missed: str, expected: list[str]
) -> None:
    trigger = place.trigger(HOURLY, missed=missed)
    place.scheduler = Scheduler(place.context)  # another process, after hours
    place.at("2026-03-01T03:30")
    assert [state for _, state in place.fires(trigger)] == expected
    place.at("2026-03-01T03:31")
    assert len(place.builds()) == expected.count("fired")


def test_a_server_that_died_between_the_build_and_its_note_makes_no_second_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = place.trigger(HOURLY)
    with monkeypatch.context() as dying:
        dying.setattr(place.server.store.schedules, "settle_fire", lambda _: _die())
        with pytest.raises(Killed):
            place.at("2026-03-01T01:00:00")
    assert len(place.builds()) == 1
    assert place.fires(trigger) == [("01T01:00", "waiting")]
    place.at("2026-03-01T01:02:00")  # its lease is over
    assert place.fires(trigger) == [("01T01:00", "fired")]
    (build,) = place.builds()
    assert place.server.store.schedules.fires("p", trigger)[0].build_id == build["id"]


class Killed(BaseException):
    pass


def _die() -> None:
    raise Killed


def test_several_servers_on_one_database_fire_once(place: Place, tmp_path: Any) -> None:
    trigger = place.trigger(HOURLY)
    other = open_store(f"sqlite:///{tmp_path}/server.db")
    second = Scheduler(replace(place.context, store=other))
    place.clock.set("2026-03-01T01:00:01")
    second.turn()
    place.scheduler.turn()
    other.close()
    assert place.fires(trigger) == [("01T01:00", "fired")]
    assert len(place.builds()) == 1


def test_overlap_skip_waits_for_the_last_build_of_the_clock_only(place: Place) -> None:
    trigger = place.trigger(HOURLY, overlap="skip")
    assert place.server.http.post("/v1/projects/p/triggers/hourly:run").status_code == 200
    place.at("2026-03-01T01:00")
    place.at("2026-03-01T02:00")
    assert place.fires(trigger) == [("01T01:00", "fired"), ("01T02:00", "skipped")]
    (skipped, fired) = place.server.store.schedules.fires("p", trigger)
    assert skipped.detail == f"build {fired.build_id} is not over"
    place.server.run(fired.build_id, "SUCCESS")
    place.at("2026-03-01T03:00")
    assert place.fires(trigger)[-1] == ("01T03:00", "fired")


def test_overlap_skip_waits_for_a_build_however_many_times_pass_meanwhile(place: Place) -> None:
    often = {**HOURLY, "cron": {"schedule": "* * * * *"}}
    trigger = place.trigger(often, overlap="skip", missed="all")
    place.at("2026-03-01T00:31")
    place.at("2026-03-01T00:55")
    place.at("2026-03-01T00:56")
    states = [state for _, state in place.fires(trigger)]
    assert states == ["fired", *["skipped"] * 25]
    assert len(place.builds()) == 1


def test_overlap_skip_counts_builds_of_later_times_that_jitter_made_earlier(place: Place) -> None:
    often = {**HOURLY, "cron": {"schedule": "* * * * *"}}
    trigger = place.trigger(often, overlap="skip", jitter="3600s", missed="all")
    place.at("2026-03-01T00:55")
    place.at("2026-03-01T02:00")
    fires = place.server.store.schedules.fires("p", trigger, limit=500)
    (fired,) = (one for one in fires if one.state == "fired")
    assert fired.run_at == min(one.run_at for one in fires)
    assert len(place.builds()) == 1


def test_a_schedule_that_was_taken_away_fires_no_more_and_makes_nothing_up(place: Place) -> None:
    trigger = place.trigger(HOURLY, jitter="600s", missed="all")
    place.at("2026-03-01T01:00")
    assert place.fires(trigger) == [("01T01:00", "waiting")]
    path, mask = f"/v1/projects/p/triggers/{trigger}", {"updateMask": "cron"}
    assert place.server.http.patch(path, params=mask, json={}).status_code == 200
    place.at("2026-03-01T01:30")
    (fire,) = place.server.store.schedules.fires("p", trigger)
    assert (fire.state, fire.detail) == ("skipped", "the trigger no longer has a schedule")
    cron = {"cron": HOURLY["cron"]}
    assert place.server.http.patch(path, params=mask, json=cron).status_code == 200
    place.at("2026-03-01T04:30")
    place.at("2026-03-01T04:31")
    assert place.builds() == []
    assert len(place.fires(trigger)) == 1


def test_a_bug_that_one_trigger_meets_leaves_the_others_firing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = place.trigger({**HOURLY, "name": "bad"})
    place.trigger(HOURLY)
    requested = TriggerQueue.queue

    def queue(self: TriggerQueue, project: str, document: Any, *rest: Any, **more: Any) -> Any:
        if document["name"] == "bad":
            raise ZeroDivisionError
        return requested(self, project, document, *rest, **more)

    monkeypatch.setattr(TriggerQueue, "queue", queue)
    place.at("2026-03-01T01:00")
    (fire,) = place.server.store.schedules.fires("p", bad)
    assert fire.state == "failed"
    assert fire.detail == "internal error, see the server's log: ZeroDivisionError"
    assert len(place.builds()) == 1


def test_overlap_cancel_ends_the_one_before(place: Place) -> None:
    trigger = place.trigger(HOURLY, overlap="cancel")
    place.at("2026-03-01T01:00")
    place.at("2026-03-01T02:00")
    first, second = place.builds()
    assert (first["status"], second["status"]) == ("CANCELLED", "QUEUED")
    assert first["statusDetail"].startswith("cancelled by the next run of its schedule")
    assert [state for _, state in place.fires(trigger)] == ["fired", "fired"]


def test_jitter_makes_the_build_later_and_the_schedule_no_different(place: Place) -> None:
    trigger = place.trigger(HOURLY, jitter="600s")
    place.at("2026-03-01T01:00:00")
    (waiting,) = place.server.store.schedules.fires("p", trigger)
    later = waiting.run_at - waiting.fire_at
    assert timedelta() < later <= timedelta(minutes=10)
    place.clock.now = waiting.run_at - timedelta(seconds=1)
    place.scheduler.turn()
    assert place.builds() == []
    place.clock.now = waiting.run_at
    place.scheduler.turn()
    assert len(place.builds()) == 1
    assert place.at("2026-03-01T01:30") == datetime(2026, 3, 1, 2, 0, tzinfo=UTC)


def test_a_disabled_trigger_does_not_fire_and_makes_nothing_up(place: Place) -> None:
    trigger = place.trigger(HOURLY, missed="all")
    path = f"/v1/projects/p/triggers/{trigger}"
    off = place.server.http.patch(path, params={"updateMask": "disabled"}, json={"disabled": True})
    assert off.status_code == 200, off.text
    place.at("2026-03-01T03:00")
    place.server.http.patch(path, params={"updateMask": "disabled"}, json={"disabled": False})
    place.at("2026-03-01T03:30")
    assert place.builds() == []
    place.at("2026-03-01T04:00")
    assert place.fires(trigger) == [("01T04:00", "fired")]


def test_schedules_of_one_project_make_another_one_miss_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take longer than the time until they are due again."""
    triggers = "/v1/projects/greedy/triggers"
    for number in range(40):
        body = {**INLINE, "name": f"t{number}", "cron": {"schedule": "* * * * *"}}
        assert place.server.http.post(triggers, json=body).status_code == 200
    real = TriggerQueue.queue

    def slow(queue: TriggerQueue, project: str, *given: Any) -> Any:
        if project == "greedy":
            place.clock.now += timedelta(seconds=2)
        return real(queue, project, *given)

    monkeypatch.setattr(TriggerQueue, "queue", slow)
    trigger = place.trigger({**HOURLY, "cron": {"schedule": "*/5 * * * *"}})
    ends = place.clock.now + timedelta(minutes=21)
    while place.clock.now < ends:
        next_at = place.scheduler.turn()
        assert next_at is not None
        place.clock.now = max(place.clock.now, next_at)
    assert place.fires(trigger) == [(f"01T00:{minute}", "fired") for minute in (35, 40, 45, 50)]


def test_a_build_that_can_not_be_made_is_told_and_hurts_no_other(place: Place) -> None:
    no_branch = {
        "name": "pattern",
        "filename": "cloudbuild.yaml",
        "cron": {"schedule": "0 * * * *"},
        "github": {"owner": "acme", "name": "app", "push": {"branch": ".*"}},
    }
    broken = place.trigger(no_branch)
    place.trigger(HOURLY)
    place.at("2026-03-01T01:00")
    (fire,) = place.server.store.schedules.fires("p", broken)
    assert fire.state == "failed"
    assert "more than one revision" in fire.detail
    made = {build["id"]: build["status"] for build in place.builds()}
    assert sorted(made.values()) == ["FAILURE", "QUEUED"]
    assert made[fire.build_id] == "FAILURE"


def test_a_branch_is_resolved_when_the_build_fetches_it(place: Place) -> None:
    body = {
        "name": "nightly",
        "filename": "cloudbuild.yaml",
        "cron": {"schedule": "0 3 * * *"},
        "sourceToBuild": {"uri": "https://git.example.com/app.git", "ref": "refs/heads/main"},
    }
    place.trigger(body)
    place.at("2026-03-01T03:00")
    (build,) = place.builds()
    stored = place.server.store.builds.find(build["id"])
    assert stored.request["source"]["gitSource"]["revision"] == "refs/heads/main"
    assert stored.request["substitutions"]["BRANCH_NAME"] == "main"


def test_the_trigger_s_own_group_counts(place: Place) -> None:
    concurrency = {"group": "deploy", "limit": 1, "policy": "cancel_queued"}
    place.trigger(HOURLY, concurrency=concurrency)
    place.at("2026-03-01T01:00")
    place.at("2026-03-01T02:00")
    first, second = place.builds()
    assert (first["status"], second["status"]) == ("CANCELLED", "QUEUED")
    stored = place.server.store.builds.find(second["id"])
    assert (stored.group, stored.group_limit) == ("deploy", 1)


def test_the_api_tells_when_it_fires_and_when_it_did(place: Place) -> None:
    cron = {"schedule": "0 3 * * *", "timeZone": "Europe/Berlin"}
    place.trigger({**NIGHTLY, "cron": cron}, jitter="60s", missed="once")
    http = place.server.http
    path = "/buildrunner/v1/projects/p/triggers/nightly"
    answer = http.get(f"{path}/next", params={"count": 2}).json()
    assert (answer["schedule"], answer["timeZone"]) == ("0 3 * * *", "Europe/Berlin")
    assert answer["jitter"] == "60s"
    assert [one["local"][10:19] for one in answer["times"]] == [" 03:00:00"] * 2
    place.clock.set("2026-03-01T02:02")
    place.scheduler.turn()
    (fire,) = http.get(f"{path}/fires").json()["fires"]
    assert fire["time"] == encode_instant(datetime(2026, 3, 1, 2, 0, tzinfo=UTC))
    assert fire["state"] == "fired"
    assert http.get(f"{path}/settings").json() == {"jitter": "60s", "missed": "once"}


def test_bad_settings_are_refused(place: Place) -> None:
    place.trigger(NIGHTLY)
    path = "/buildrunner/v1/projects/p/triggers"
    http = place.server.http
    answer = http.put(f"{path}/nightly/settings", json={"overlap": "maybe"})
    assert answer.status_code == 400
    assert "overlap: invalid enum value" in answer.json()["error"]["message"]
    assert http.put(f"{path}/none/settings", json={}).status_code == 404
    assert http.get(f"{path}/nightly/next", params={"count": 0}).status_code == 400
    http.post("/v1/projects/p/triggers", json={**INLINE, "name": "byhand"})
    assert http.get(f"{path}/byhand/next").status_code == 404


def test_the_clock_builds_from_the_forge_that_the_trigger_names(place: Place) -> None:
    event = {"repositoryEventConfig": {"repository": "acme/app", "push": {"branch": "^main$"}}}
    trigger = place.trigger({**NIGHTLY, **event})
    place.at("2026-03-01T03:00:00.2")
    (build,) = place.builds()
    assert build["status"] == "FAILURE"
    assert "nothing says which forge has acme/app" in build["statusDetail"]
    assert "buildrunner triggers update nightly --forge" in build["statusDetail"]
    forge = {"kind": "gitea", "host": "git.example.com"}
    place.server.store.triggers.set_settings("p", trigger, {"forge": forge})
    place.at("2026-03-02T03:00:00.2")
    build = place.builds()[-1]
    url = "https://git.example.com/acme/app.git"
    assert build["source"] == {"gitSource": {"url": url, "revision": "refs/heads/main"}}


def test_a_build_that_the_clock_can_not_make_is_one_that_failed(place: Place) -> None:
    source = {"uri": "http://127.0.0.1/app.git", "ref": "refs/heads/main", "repoType": "GITHUB"}
    trigger = place.trigger({**NIGHTLY, "sourceToBuild": source})
    place.at("2026-03-01T03:00:00")
    place.at("2026-03-01T03:05:00")
    (build,) = place.builds()
    assert build["status"] == "FAILURE"
    assert "builds may not fetch from" in build["statusDetail"]
    (fire,) = place.server.store.schedules.fires("p", trigger)
    assert (fire.state, fire.build_id, fire.detail) == (
        "failed",
        build["id"],
        build["statusDetail"],
    )
