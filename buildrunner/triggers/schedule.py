"""Fire times of scheduled triggers. Pure: the time is an argument.

Daylight saving time, as Debian's cron has it: a fixed time in the skipped hour (``30 2 * * *`` on
the day when 02:00 becomes 03:00) fires once, at the first moment after it (03:00); in the doubled
hour it fires once, the first time. Schedules with ``*`` in the hour run in each hour that
passes: not in the skipped hour, and in both of the doubled hours.

Source: Cloud Build's ``cron`` of triggers, and Cloud Scheduler's "Cron job format and time zone".
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec

LATE = timedelta(seconds=90)
"""A fire time that is longer ago than this was missed."""

MOST_MISSED = 100
"""Maximum number of runs that ``missed: all`` makes up for: the newest ones."""

_SHORT = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
"""Names that other crons accept, and the five fields that they stand for."""

_LONGEST = 200
_MOST_LOOKED_AT = 10_000


class Missed(enum.Enum):
    """The treatment of fire times while the server was down. The hosted service skips them."""

    SKIP = "skip"
    ONCE = "once"
    ALL = "all"


class Overlap(enum.Enum):
    """The treatment of a fire time while the trigger's last scheduled build still runs.

    The hosted service allows it.
    """

    ALLOW = "allow"
    SKIP = "skip"
    CANCEL = "cancel"


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """The fire times of a trigger.

    Attributes:
        cron: five fields: minute, hour, day of the month, month, day of the week.
        time_zone: name in the IANA database; empty is UTC.
        jitter_s: maximum delay of a run in seconds. The delay is always the same for one fire time.
        missed: the treatment of times while the server was down.
        overlap: the treatment of a time while the last build runs.
    """

    cron: str
    time_zone: str = ""
    jitter_s: int = 0
    missed: Missed = Missed.SKIP
    overlap: Overlap = Overlap.ALLOW


class BadSchedule(ValueError):
    """Raised for an invalid schedule; the message says what is wrong and how to fix it."""


def check_schedule(schedule: Schedule) -> str:
    """Return the problem of a schedule; empty if it is valid."""
    try:
        next(_times(schedule, datetime(2024, 1, 1, tzinfo=UTC)))
    except BadSchedule as error:
        return str(error)
    except StopIteration:
        return f"{schedule.cron!r} never comes"
    return "" if 0 <= schedule.jitter_s <= 3600 else "jitter must be from 0 to 3600 seconds"


def fire_times(schedule: Schedule, after: datetime, count: int) -> list[datetime]:
    """Return the next ``count`` fire times after a moment, in UTC, without jitter.

    Raises:
        BadSchedule: the schedule is invalid.
    """
    times = _times(schedule, after)
    return [moment for moment, _ in zip(times, range(count), strict=False)]


def jitter(schedule: Schedule, key: str, moment: datetime) -> timedelta:
    """Return the delay of a build after one scheduled time.

    Args:
        schedule: the schedule with the fire time.
        key: the trigger, so that triggers of one time don't all fire at once.
        moment: the fire time.
    """
    if not schedule.jitter_s:
        return timedelta()
    digest = hashlib.sha256(f"{key} {moment.isoformat()}".encode()).digest()
    return timedelta(seconds=int.from_bytes(digest[:8], "big") % (schedule.jitter_s + 1))


class Due(msgspec.Struct, frozen=True):
    """The fire times that are due.

    Attributes:
        fire: fire times to run now, oldest first.
        missed: missed fire times that are not made up for.
        next_at: the first fire time after now.
    """

    fire: tuple[datetime, ...]
    missed: tuple[datetime, ...]
    next_at: datetime


def due(schedule: Schedule, since: datetime, now: datetime) -> Due:
    """Return the fire times that are due after ``since`` up to ``now``, both aware.

    A fire time that is more than `LATE` ago was missed.

    Args:
        schedule: a valid schedule.
        since: the last fire time that was handled, or when the schedule was created.
        now: the current time.

    Raises:
        BadSchedule: the schedule is invalid, or has no further fire time.
    """
    passed: list[datetime] = []
    next_at: datetime | None = None
    for number, moment in enumerate(_times(schedule, since)):
        if moment > now:
            next_at = moment
            break
        passed.append(moment)
        if number >= _MOST_LOOKED_AT:  # after a long downtime, only the newest ones count
            return due(schedule, _newest(schedule, now), now)
    if next_at is None:
        raise BadSchedule(f"{schedule.cron!r} never comes again")
    on_time = [moment for moment in passed if now - moment <= LATE]
    late = [moment for moment in passed if now - moment > LATE]
    made_up: list[datetime] = []
    match schedule.missed:
        case Missed.SKIP:
            pass
        case Missed.ONCE:
            made_up = late[-1:] if not on_time else []
        case Missed.ALL:
            made_up = late[-MOST_MISSED:]
    given_up = tuple(moment for moment in late if moment not in made_up)
    return Due((*made_up, *on_time), given_up, next_at)


def _newest(schedule: Schedule, now: datetime) -> datetime:
    """Return a moment before the newest passed fire times: one more than are made up for."""
    passed = _times(schedule, now, back=True)
    oldest = min(moment for moment, _ in zip(passed, range(MOST_MISSED + 1), strict=False))
    return min(oldest, now - LATE)


def _times(schedule: Schedule, after: datetime, *, back: bool = False) -> Iterator[datetime]:
    """Return all fire times after a moment, in UTC; if ``back``, those before it, newest first."""
    from cronsim import CronSim, CronSimError

    if schedule.cron in _SHORT:
        raise BadSchedule(f"{schedule.cron!r} is no schedule: write {_SHORT[schedule.cron]}")
    if len(schedule.cron) > _LONGEST or len(schedule.cron.split()) != 5:
        raise BadSchedule(
            f"{schedule.cron!r} is no schedule: five fields are needed, such as 0 3 * * 1-5"
        )
    try:
        times = CronSim(schedule.cron, after.astimezone(_zone(schedule.time_zone)), reverse=back)
    except CronSimError as error:
        raise BadSchedule(f"{schedule.cron!r} is no schedule: {_lowered(error)}") from error
    return (moment.astimezone(UTC) for moment in times)


def _zone(name: str) -> ZoneInfo:
    from zoneinfo import ZoneInfoNotFoundError

    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadSchedule(f"{name!r} is no time zone, such as Europe/Berlin or UTC") from error


def _lowered(error: Exception) -> str:
    text = str(error)
    return text[:1].lower() + text[1:]
