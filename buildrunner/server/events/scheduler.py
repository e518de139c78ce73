"""Fires triggers by schedule: one thread in each server, but each fire time only once among them.

A turn has two steps, each of which can be interrupted anywhere. First the due fire times are
stored: their key is the trigger and the time, so several servers write the same rows. Then one
server claims each fire time and makes a build, whose request id is the same key. If a server dies
in between, the next server makes the same build from the row. Projects take turns, and a turn ends
after some seconds: the schedules of a project delay those of others, and make none be missed.

The clock is read again at each turn, so nothing drifts; `schedule.due` decides what is due.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import Any, Final

from msgspec.structs import replace

from buildrunner.errors import (
    BuildrunnerError,
    ConfigError,
    Conflict,
    NotFound,
    QuotaExceeded,
    StoreError,
    UsageError,
)
from buildrunner.server.context import ServerContext
from buildrunner.server.loop import Loop
from buildrunner.server.services.queueing import RunFacts, TriggerQueue, reason_of
from buildrunner.server.services.triggers import known_trigger
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.store.model.triggers import (
    FAILED,
    FIRED,
    MISSED,
    SKIPPED,
    Fire,
    ScheduledTrigger,
)
from buildrunner.triggers.build import TriggeredBuild, known_facts, manual_run, unsourced_run
from buildrunner.triggers.repository import Revision
from buildrunner.triggers.schedule import BadSchedule, Overlap, due, jitter
from buildrunner.triggers.settings import TriggerSettings, read_settings

WHO: Final = "schedule"
FIRE_LABEL: Final = "fire_time"
_LOOK_S = 10.0  # the longest delay until a change on another server is noticed
_LEASE_S = 60.0
_AT_ONCE = 20
_WORK_S = 10.0  # then it looks again, so that no time is noticed when it counts as missed
_DISABLED = "the trigger was disabled"
_UNSCHEDULED = "the trigger no longer has a schedule"
_MISSED = "the server was down, or too busy"

_log = logging.getLogger("buildrunner.server")


class Scheduler:
    """The thread that fires triggers. Thread-safe. Call `start` once.

    Args:
        context: the server's context. Its clock decides what is due.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._store = context.store
        self._queue = TriggerQueue(context)
        self._reported: dict[str, str] = {}
        self._loop = Loop("schedules", self._turn, _LOOK_S)

    def start(self) -> None:
        """Start the thread."""
        self._loop.start()

    def wake(self) -> None:
        """Check at once, since a trigger has changed. Cheap."""
        self._loop.wake()

    def stop(self) -> None:
        """End after the current turn. Idempotent."""
        self._loop.stop()

    def _turn(self) -> float | None:
        next_at = self.turn()
        return None if next_at is None else (next_at - self._context.clock()).total_seconds()

    def turn(self) -> datetime | None:
        """Handle everything that is due now. Returns the next due time, if known.

        Raises:
            StoreError: the database does not answer. Nothing is lost.
        """
        now = self._context.clock()
        times: list[datetime] = []
        before = set(self._store.schedules.all())
        scheduled = self._store.schedules.triggers()
        for project, trigger_id in before - {(one.project_id, one.id) for one in scheduled}:
            self._store.schedules.stop(project, trigger_id, _UNSCHEDULED)
        for trigger in scheduled:
            next_at = self._looked_at(trigger, now)
            if next_at is not None:
                times.append(next_at)
        ends = now + timedelta(seconds=_WORK_S)
        while self._context.clock() < ends and (
            fires := self._store.schedules.claim_fires(now=now, lease_s=_LEASE_S, limit=_AT_ONCE)
        ):
            for fire in fires:
                self._see_to(fire)
        waiting = self._store.schedules.next_run_at()
        if waiting is not None:
            times.append(max(waiting, now + timedelta(seconds=1)))
        return min(times, default=None)

    def _looked_at(self, trigger: ScheduledTrigger, now: datetime) -> datetime | None:
        """Call `_look_at`; a bug with one trigger does not stop the others."""
        try:
            return self._look_at(trigger, now)
        except Exception as error:
            if isinstance(error, StoreError) and not error.is_refusal:
                raise
            _log.exception("the schedule of trigger %s can't be looked at", trigger.id)
            return None

    def _look_at(self, trigger: ScheduledTrigger, now: datetime) -> datetime | None:
        """Store the due fire times of one trigger. Returns its next fire time."""
        project, trigger_id = trigger.project_id, trigger.id
        if trigger.disabled:
            self._store.schedules.stop(project, trigger_id, _DISABLED)
            return None
        try:
            schedule = _settings_of(trigger).schedule(trigger.cron)
            spec = f"{schedule.cron} {schedule.time_zone}"
            since = self._store.schedules.since(project, trigger_id, spec, now=now)
            found = due(schedule, since, now)
        except NotFound:  # deleted meanwhile
            return None
        except BadSchedule as error:
            if self._reported.get(trigger_id) != str(error):
                self._reported[trigger_id] = str(error)
                _log.warning("trigger %s never fires: %s", trigger.name, error)
            return None
        fires = [
            _fire(project, trigger_id, moment, moment, state=MISSED, detail=_MISSED)
            for moment in found.missed
        ]
        fires += [
            _fire(project, trigger_id, moment, moment + jitter(schedule, trigger_id, moment))
            for moment in found.fire
        ]
        if fires:
            until = max(fire.fire_at for fire in fires)
            self._store.schedules.note_fires(project, trigger_id, fires, until=until)
        return found.next_at

    def _see_to(self, fire: Fire) -> None:
        """Make the build of a claimed fire, or record why there is none."""
        try:
            settled = self._settled(fire)
            if settled.state != FIRED:
                _log.info("schedule of trigger %s: %s", fire.trigger_id, settled.detail)
            self._store.schedules.settle_fire(settled)
        except NotFound:  # the trigger was deleted, and its fires with it
            return
        except StoreError as error:
            if not error.is_refusal:
                raise
            self._store.schedules.settle_fire(_failed(fire, error))

    def _settled(self, fire: Fire) -> Fire:
        """Return the final state of a fire.

        Raises:
            StoreError: the state is not known yet. The fire stays, and is claimed again.
        """
        document = self._store.triggers.get(fire.project_id, fire.trigger_id)
        if document.get("disabled") or not document.get("cron"):
            detail = _DISABLED if document.get("disabled") else _UNSCHEDULED
            return replace(fire, state=SKIPPED, detail=detail)
        try:
            settings = self._queue.settings(fire.project_id, fire.trigger_id)
        except ConfigError as error:
            return replace(fire, state=FAILED, detail=reason_of(error))
        if settings.overlap is not Overlap.ALLOW:
            running = self._unfinished(fire)
            if running and settings.overlap is Overlap.SKIP:
                return replace(fire, state=SKIPPED, detail=f"build {running[0]} is not over")
            self._cancel(fire.project_id, running)
        try:
            return self._made(fire, document)
        except BuildrunnerError as error:
            if isinstance(error, StoreError) and not isinstance(error, QuotaExceeded):
                if error.is_refusal:
                    return _failed(fire, error)
                raise
            return replace(fire, state=FAILED, detail=str(error))
        except Exception as error:  # noqa: BLE001  (else the fire is claimed again and again)
            return _failed(fire, error)

    def _made(self, fire: Fire, document: dict[str, Any]) -> Fire:
        """Create the build of a fire. Returns the fire with its state and the build's id."""
        known = known_trigger(self._context, fire.project_id, document)
        trigger = known.trigger
        moment = fire.fire_at.isoformat().replace("+00:00", "Z")
        facts = RunFacts(
            who=WHO,
            labels={FIRE_LABEL: moment},
            request_id=f"schedule/{fire.trigger_id}/{moment}",
        )
        made: TriggeredBuild | None = None
        try:
            made = manual_run(trigger, None, known.repository)
            stored = self._queue.queue(fire.project_id, document, made, facts)
        except (ConfigError, UsageError) as error:
            made = made or unsourced_run(trigger, known_facts(trigger, Revision()), {})
            failed = self._queue.fail(fire.project_id, document, made, facts, error)
            return replace(fire, state=FAILED, detail=reason_of(error), build_id=failed.id)
        return replace(fire, state=FIRED, build_id=stored.id)

    def _unfinished(self, fire: Fire) -> list[str]:
        """Return unfinished builds of other fire times of the trigger."""
        found = []
        for one in self._store.schedules.fires(
            fire.project_id, fire.trigger_id, limit=_AT_ONCE, only_fired=True
        ):
            if one.fire_at == fire.fire_at:
                continue
            try:
                stored = self._store.builds.get(fire.project_id, one.build_id)
            except NotFound:  # retention deleted it
                continue
            if stored.status not in FINAL_STATUSES:
                found.append(stored.id)
        return found

    def _cancel(self, project: str, builds: list[str]) -> None:
        for build_id in builds:
            try:
                self._store.builds.request_cancel(
                    project,
                    build_id,
                    now=self._context.clock(),
                    reason="cancelled by the next run of its schedule (overlap: cancel)",
                )
            except Conflict:  # the build has ended
                continue
        if builds:
            self._context.wake()


def _failed(fire: Fire, error: Exception) -> Fire:
    """Return a fire that has failed by a bug, or by a value that can't be stored."""
    _log.error("schedule of trigger %s: no build can be made", fire.trigger_id, exc_info=error)
    text = f"internal error, see the server's log: {type(error).__name__}"
    return replace(fire, state=FAILED, detail=text)


def _settings_of(trigger: ScheduledTrigger) -> TriggerSettings:
    try:
        return read_settings(trigger.settings)
    except ConfigError:  # reported when the trigger fires: `_settled` makes no build
        return TriggerSettings()


def _fire(project: str, trigger_id: str, moment: datetime, run_at: datetime, **more: str) -> Fire:
    return Fire(project_id=project, trigger_id=trigger_id, fire_at=moment, run_at=run_at, **more)
