from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from buildrunner.triggers.schedule import (
    LATE,
    MOST_MISSED,
    BadSchedule,
    Missed,
    Schedule,
    check_schedule,
    due,
    fire_times,
    jitter,
)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def berlin(cron: str) -> Schedule:
    return Schedule(cron=cron, time_zone="Europe/Berlin")


@pytest.mark.parametrize(
    ("cron", "after", "expected"),
    [
        # 02:00 becomes 03:00 on 29 March 2026 (01:00 UTC).
        ("30 2 * * *", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T00:30"]),
        ("0 3 * * *", "2026-03-28T12:00", ["2026-03-29T01:00", "2026-03-30T01:00"]),
        ("0 * * * *", "2026-03-28T23:30", ["2026-03-29T00:00", "2026-03-29T01:00"]),
        # 03:00 becomes 02:00 on 25 October 2026 (01:00 UTC).
        ("30 2 * * *", "2026-10-24T12:00", ["2026-10-25T00:30", "2026-10-26T01:30"]),
        ("0 * * * *", "2026-10-24T23:30", ["2026-10-25T00:00", "2026-10-25T01:00"]),
        ("0 0 29 2 *", "2026-01-01T00:00", ["2028-02-28T23:00", "2032-02-28T23:00"]),
        ("0 3 * * 1-5", "2026-11-20T12:00", ["2026-11-23T02:00", "2026-11-24T02:00"]),
    ],
)
def test_the_clock_of_the_zone_counts(cron: str, after: str, expected: list[str]) -> None:
    assert fire_times(berlin(cron), at(after), 2) == [at(moment) for moment in expected]


def test_without_a_zone_it_is_utc() -> None:
    assert fire_times(Schedule(cron="0 3 * * *"), at("2026-03-28T12:00"), 1) == [
        at("2026-03-29T03:00")
    ]


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(cron="* * * *"),
        Schedule(cron="61 * * * *"),
        Schedule(cron="every 24 hours"),
        Schedule(cron="@daily"),
        Schedule(cron="0 0 30 2 *"),
        Schedule(cron="* * * * * *"),
        Schedule(cron="0 3 * * *" + " " * 300),
        Schedule(cron="0 3 * * *", time_zone="Mars/Olympus"),
        Schedule(cron="0 3 * * *", time_zone="../../etc/passwd"),
        Schedule(cron="0 3 * * *", jitter_s=-1),
        Schedule(cron="0 3 * * *", jitter_s=4000),
    ],
)
def test_a_bad_one_is_told(schedule: Schedule) -> None:
    assert check_schedule(schedule)


def test_a_name_of_other_crons_is_told_in_fields() -> None:
    told = check_schedule(Schedule(cron="@daily"))
    assert told == "'@daily' is no schedule: write 0 0 * * *"


def test_a_good_one_is_not() -> None:
    assert check_schedule(berlin("*/5 8-18 * * MON-FRI")) == ""


def hourly(missed: Missed) -> Schedule:
    return Schedule(cron="0 * * * *", missed=missed)


@pytest.mark.parametrize(
    ("missed", "fire", "given_up"),
    [
        (Missed.SKIP, [], ["01:00", "02:00", "03:00"]),
        (Missed.ONCE, ["03:00"], ["01:00", "02:00"]),
        (Missed.ALL, ["01:00", "02:00", "03:00"], []),
    ],
)
def test_what_was_missed_is_dealt_with_as_told(
    missed: Missed, fire: list[str], given_up: list[str]
) -> None:
    found = due(hourly(missed), at("2026-01-01T00:30"), at("2026-01-01T03:30"))
    assert found.fire == tuple(at(f"2026-01-01T{moment}") for moment in fire)
    assert found.missed == tuple(at(f"2026-01-01T{moment}") for moment in given_up)
    assert found.next_at == at("2026-01-01T04:00")


def test_once_is_not_twice_when_one_is_on_time_too() -> None:
    found = due(hourly(Missed.ONCE), at("2026-01-01T00:30"), at("2026-01-01T03:00:30"))
    assert found.fire == (at("2026-01-01T03:00"),)


def test_a_server_that_was_down_for_years_does_not_start_thousands_of_builds() -> None:
    found = due(hourly(Missed.ALL), at("2020-01-01T00:00"), at("2026-01-01T00:30"))
    assert len(found.fire) == MOST_MISSED
    assert found.fire[-1] == at("2026-01-01T00:00")


def test_what_was_missed_for_years_is_made_up_once_also_where_nothing_is_due_now() -> None:
    mornings = Schedule(cron="* 0-11 * * *", missed=Missed.ONCE)
    found = due(mornings, at("2020-01-01T00:00"), at("2026-01-01T18:00"))
    assert found.fire == (at("2026-01-01T11:59"),)
    assert found.next_at == at("2026-01-02T00:00")


@settings(deadline=None)
@given(
    minute=st.integers(0, 59),
    hour=st.one_of(st.none(), st.integers(0, 23)),
    steps=st.lists(st.integers(1, 90_000), min_size=1, max_size=20),
    zone=st.sampled_from(["", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
)
def test_no_time_fires_twice_or_not_at_all_however_often_one_looks(
    minute: int, hour: int | None, steps: list[int], zone: str
) -> None:
    cron = f"{minute} {'*' if hour is None else hour} * * *"
    schedule = Schedule(cron=cron, time_zone=zone, missed=Missed.ALL)
    start = since = now = at("2026-03-27T12:00")
    fired: list[datetime] = []
    for step in steps:
        now += timedelta(seconds=step)
        found = due(schedule, since, now)
        assert not found.missed
        fired += found.fire
        since = fired[-1] if fired else since
    *passed, coming = fire_times(schedule, start, len(fired) + 1)
    assert fired == passed
    assert coming > now


def test_jitter_is_the_same_each_time_and_within_bounds() -> None:
    schedule = Schedule(cron="0 3 * * *", jitter_s=60)
    moments = fire_times(schedule, at("2026-01-01T00:00"), 50)
    first = [jitter(schedule, "t1", moment) for moment in moments]
    assert first == [jitter(schedule, "t1", moment) for moment in moments]
    assert first != [jitter(schedule, "t2", moment) for moment in moments]
    assert all(timedelta() <= one <= timedelta(seconds=60) for one in first)
    assert jitter(Schedule(cron="0 3 * * *"), "t1", moments[0]) == timedelta()


def test_late_is_a_minute_and_a_half() -> None:
    moment = at("2026-01-01T01:00")
    on_time = due(hourly(Missed.SKIP), at("2026-01-01T00:30"), moment + LATE)
    too_late = due(hourly(Missed.SKIP), at("2026-01-01T00:30"), moment + LATE * 1.01)
    assert (on_time.fire, too_late.fire) == ((moment,), ())


def test_asking_a_bad_one_for_its_times_raises() -> None:
    with pytest.raises(BadSchedule, match="five fields"):
        fire_times(Schedule(cron="x"), at("2026-01-01T00:00"), 1)
