"""Triggers as the store returns them, for events to match, and the fires of their schedules.

Contract suite of the fires: tests/contract/test_schedule_store.py. They are deleted with their
trigger.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import msgspec

WAITING = "waiting"  # for its time, or for a server to see to it
FIRED = "fired"  # there is a build
SKIPPED = "skipped"  # by the overlap policy, or the trigger was disabled meanwhile
MISSED = "missed"  # the server was down, and nobody makes up for it
FAILED = "failed"  # no build could be made of it


class TriggerVersion(NamedTuple):
    """A trigger as it was after one of its changes.

    Attributes:
        project, id: of the trigger.
        version: a number that no other state of the trigger or of its settings has.
    """

    project: str
    id: str
    version: int


class StoredTrigger(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger with its settings.

    Attributes:
        project: of the trigger.
        version: see `TriggerVersion`.
        document: the BuildTrigger.
        settings: its own settings beside the resource, as they were set; empty for none.
        size: number of bytes of both as JSON.
    """

    project: str
    version: int
    document: dict[str, Any]
    settings: dict[str, Any]
    size: int


class ScheduledTrigger(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger that has a ``cron``.

    Attributes:
        project_id, id, name, disabled: of the trigger.
        cron: the field of the BuildTrigger.
        settings: its own settings beside the resource, as they were set; empty for none.
    """

    project_id: str
    id: str
    name: str
    disabled: bool
    cron: dict[str, Any]
    settings: dict[str, Any] = {}


class Fire(msgspec.Struct, frozen=True, kw_only=True):
    """One scheduled time of one trigger, which is stored at most once.

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
