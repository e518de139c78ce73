"""The seam between the scheduler and the database: what triggers fired by the clock.

Beside it stand a trigger's own settings that Cloud Build's resource has no fields for. All of this
goes with the trigger when that is deleted.

Rules as in `server_store`; contract suite: tests/contract/test_schedule_store.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from buildrunner.store.build_store import Document

WAITING = "waiting"  # for its time, or for a server to see to it
FIRED = "fired"  # there is a build
SKIPPED = "skipped"  # by the overlap policy, or the trigger was disabled meanwhile
MISSED = "missed"  # the server was down, and nobody makes up for it
FAILED = "failed"  # no build could be made of it


class ScheduledTrigger(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger that has a ``cron``.

    Attributes:
        project_id: its project.
        document: the BuildTrigger.
        settings: its own settings beside the resource, as they were set; empty for none.
    """

    project_id: str
    document: dict[str, Any]
    settings: dict[str, Any] = {}

    @property
    def id(self) -> str:
        """The trigger's id."""
        return str(self.document["id"])


class Fire(msgspec.Struct, frozen=True, kw_only=True):
    """One fire time of one trigger. There is at most one of each, whoever notices it.

    Attributes:
        project_id, trigger_id: whose.
        fire_at: the time that the schedule names.
        run_at: when the build is made: jitter later.
        state: ``waiting``, ``fired``, ``skipped``, ``missed`` or ``failed``.
        build_id: what it made; empty for nothing.
        detail: why it is as it is; a sentence.
    """

    project_id: str
    trigger_id: str
    fire_at: datetime
    run_at: datetime
    state: str = WAITING
    build_id: str = ""
    detail: str = ""


class ScheduleStore(Protocol):
    """Schedules, and the settings of triggers."""

    def trigger_settings(self, project_id: str, trigger_id: str) -> Document:
        """A trigger's own settings; empty for none, also when there is no such trigger."""
        ...

    def set_trigger_settings(self, project_id: str, trigger_id: str, settings: Document) -> None:
        """Replace them; empty removes them. Raises `NotFound`."""
        ...

    def scheduled_triggers(self) -> list[ScheduledTrigger]:
        """All triggers with a ``cron``, of all projects."""
        ...

    def schedule_since(
        self, project_id: str, trigger_id: str, spec: str, *, now: datetime
    ) -> datetime:
        """Up to when the fire times of a schedule were dealt with.

        Args:
            project_id: the trigger's project.
            trigger_id: the trigger.
            spec: text of its schedule. With a new text the schedule begins at ``now``.
            now: the time.

        Raises:
            NotFound: no such trigger.
        """
        ...

    def note_fires(
        self, project_id: str, trigger_id: str, fires: Sequence[Fire], *, until: datetime
    ) -> None:
        """Keep fire times that came, each once; all up to ``until`` are dealt with now."""
        ...

    def stop_schedule(self, project_id: str, trigger_id: str, detail: str) -> None:
        """The trigger has no schedule for now: what waits of it becomes skipped. Idempotent."""
        ...

    def claim_fires(self, *, now: datetime, lease_s: float, limit: int) -> list[Fire]:
        """Take waiting fires whose time has come, oldest first; no other server gets them.

        Whoever does not `settle_fire` within the lease loses them to the next who asks.
        """
        ...

    def settle_fire(self, fire: Fire) -> None:
        """Write down what became of a fire: its state, build and detail. Final states stay."""
        ...

    def next_run_at(self) -> datetime | None:
        """When the earliest waiting fire is due."""
        ...

    def list_fires(
        self, project_id: str, trigger_id: str, *, limit: int = 50, only_fired: bool = False
    ) -> list[Fire]:
        """What the clock made of a trigger, the newest first; ``only_fired``: builds alone."""
        ...

    def schedules(self) -> list[tuple[str, str]]:
        """Project and id of all triggers whose fire times are being dealt with."""
        ...
