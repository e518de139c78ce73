"""Schedules and settings of triggers, in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, func, select, update

from buildrunner.errors import NotFound
from buildrunner.store.model.triggers import FIRED, SKIPPED, WAITING, Fire, ScheduledTrigger
from buildrunner.store.records import instant_of, microseconds
from buildrunner.store.sql.claims import claim
from buildrunner.store.sql.database import SqlPart, insert_new
from buildrunner.store.sql.rows import AnyRow
from buildrunner.store.sql.schema import fires as _fires
from buildrunner.store.sql.schema import schedules, trigger_settings, triggers
from buildrunner.store.sql.triggers import decoded_settings, lock_trigger

_KEPT = timedelta(days=90)  # how long a fire that is over can be looked at


class SqlSchedules(SqlPart):
    """The fires of triggers by the clock."""

    def triggers(self) -> list[ScheduledTrigger]:
        """All triggers with a ``cron``, of all projects."""
        found = (
            select(
                triggers.c.project_id,
                triggers.c.id,
                triggers.c.name,
                triggers.c.disabled,
                triggers.c.cron,
                trigger_settings.c.settings,
            )
            .select_from(
                triggers.outerjoin(
                    trigger_settings,
                    (trigger_settings.c.project_id == triggers.c.project_id)
                    & (trigger_settings.c.trigger_id == triggers.c.id),
                )
            )
            .where(triggers.c.cron.is_not(None))
        )
        with self._database.read() as connection:
            return [
                ScheduledTrigger(
                    project_id=row.project_id,
                    id=row.id,
                    name=row.name or "",
                    disabled=row.disabled,
                    cron=msgspec.json.decode(row.cron),
                    settings=decoded_settings(row.settings),
                )
                for row in connection.execute(found)
            ]

    def since(self, project_id: str, trigger_id: str, spec: str, *, now: datetime) -> datetime:
        """Up to when the fire times of a schedule were dealt with.

        Args:
            project_id: the trigger's project.
            trigger_id: the trigger.
            spec: text of its schedule. With a new text the schedule begins at ``now``.
            now: the time.

        Raises:
            NotFound: no such trigger.
        """
        same = _schedule_of(project_id, trigger_id)
        found = select(schedules.c.spec, schedules.c.since).where(same)
        with self._database.read() as connection:
            row = connection.execute(found).first()
        if row is not None and row.spec == spec:
            return instant_of(row.since)
        with self._database.write() as connection:
            lock_trigger(connection, project_id, trigger_id)
            row = connection.execute(found.with_for_update()).first()
            if row is not None and row.spec == spec:  # another server was first
                return instant_of(row.since)
            connection.execute(delete(schedules).where(same))
            values = {
                "project_id": project_id,
                "trigger_id": trigger_id,
                "spec": spec,
                "since": microseconds(now),
            }
            insert_new(connection, schedules, values)
        return instant_of(microseconds(now))

    def note_fires(
        self, project_id: str, trigger_id: str, fires: Sequence[Fire], *, until: datetime
    ) -> None:
        """Keep fire times that came, each once; all up to ``until`` are dealt with now."""
        with self._database.write() as connection:
            try:
                lock_trigger(connection, project_id, trigger_id)
            except NotFound:  # deleted meanwhile
                return
            for fire in fires:
                insert_new(connection, _fires, _row(fire))
            _forget_old(connection, project_id, trigger_id, until)
            same = _schedule_of(project_id, trigger_id)
            connection.execute(
                update(schedules)
                .where(same, schedules.c.since < microseconds(until))
                .values(since=microseconds(until))
            )

    def stop(self, project_id: str, trigger_id: str, detail: str) -> None:
        """The trigger has no schedule for now: what waits of it becomes skipped. Idempotent."""
        same = _schedule_of(project_id, trigger_id)
        with self._database.read() as connection:  # most calls find nothing: lock nobody out
            if connection.execute(select(schedules.c.since).where(same)).first() is None:
                return
        waiting = and_(
            _fires.c.project_id == project_id,
            _fires.c.trigger_id == trigger_id,
            _fires.c.state == WAITING,
        )
        with self._database.write() as connection:
            connection.execute(delete(schedules).where(same))
            connection.execute(update(_fires).where(waiting).values(state=SKIPPED, detail=detail))

    def claim_fires(self, *, now: datetime, lease_s: float, limit: int) -> list[Fire]:
        """Claim waiting fires whose time has come, oldest first; no other server gets them.

        A fire that is not settled within the lease is claimed again.
        """
        moment = microseconds(now)
        due = and_(
            _fires.c.state == WAITING, _fires.c.run_at <= moment, _fires.c.claimed_until <= moment
        )
        keys = select(*_fires.primary_key.columns).where(due)
        oldest = keys.order_by(_fires.c.run_at, _fires.c.fire_at).limit(limit)
        until = now + timedelta(seconds=lease_s)
        rows = claim(self._database, _fires, oldest, free=due, until=until)
        return sorted(map(_fire, rows), key=lambda fire: (fire.run_at, fire.fire_at))

    def settle_fire(self, fire: Fire) -> None:
        """Write down what became of a fire: its state, build and detail. Final states stay."""
        values = {"state": fire.state, "build_id": fire.build_id, "detail": fire.detail}
        with self._database.write() as connection:
            still = _is(fire) & (_fires.c.state == WAITING)
            connection.execute(update(_fires).where(still).values(values))

    def next_run_at(self) -> datetime | None:
        """Return the time of the earliest waiting fire."""
        found = select(func.min(_fires.c.run_at)).where(_fires.c.state == WAITING)
        with self._database.read() as connection:
            first = connection.execute(found).scalar()
        return None if first is None else instant_of(first)

    def fires(
        self, project_id: str, trigger_id: str, *, limit: int = 50, only_fired: bool = False
    ) -> list[Fire]:
        """Return the fires of a trigger's schedule, newest first; ``only_fired``: only builds."""
        found = (
            select(_fires)
            .where(_fires.c.project_id == project_id, _fires.c.trigger_id == trigger_id)
            .order_by(_fires.c.fire_at.desc())
            .limit(limit)
        )
        if only_fired:
            found = found.where(_fires.c.state == FIRED)
        with self._database.read() as connection:
            return [_fire(row) for row in connection.execute(found)]

    def all(self) -> list[tuple[str, str]]:
        """Project and id of all triggers whose fire times are being dealt with."""
        found = select(schedules.c.project_id, schedules.c.trigger_id)
        with self._database.read() as connection:
            return [(row.project_id, row.trigger_id) for row in connection.execute(found)]


def _schedule_of(project_id: str, trigger_id: str) -> ColumnElement[bool]:
    return and_(schedules.c.project_id == project_id, schedules.c.trigger_id == trigger_id)


def _forget_old(connection: Connection, project_id: str, trigger_id: str, now: datetime) -> None:
    connection.execute(
        delete(_fires).where(
            _fires.c.project_id == project_id,
            _fires.c.trigger_id == trigger_id,
            _fires.c.state != WAITING,
            _fires.c.fire_at < microseconds(now - _KEPT),
        )
    )


def _is(fire: Fire) -> ColumnElement[bool]:
    return and_(
        _fires.c.project_id == fire.project_id,
        _fires.c.trigger_id == fire.trigger_id,
        _fires.c.fire_at == microseconds(fire.fire_at),
    )


def _row(fire: Fire) -> dict[str, object]:
    return {
        "project_id": fire.project_id,
        "trigger_id": fire.trigger_id,
        "fire_at": microseconds(fire.fire_at),
        "run_at": microseconds(fire.run_at),
        "state": fire.state,
        "build_id": fire.build_id,
        "detail": fire.detail,
        "claimed_until": 0,
    }


def _fire(row: AnyRow) -> Fire:
    return Fire(
        project_id=row.project_id,
        trigger_id=row.trigger_id,
        fire_at=instant_of(row.fire_at),
        run_at=instant_of(row.run_at),
        state=row.state,
        build_id=row.build_id,
        detail=row.detail,
    )
