"""Triggers as the store returns them, for events to match, and the fires of their schedules.

Contract suite of the fires: tests/contract/test_schedule_store.py. Fires are deleted with their
trigger.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import msgspec

WAITING = "waiting"  # for its time, or for a server to handle it
FIRED = "fired"  # it made a build
SKIPPED = "skipped"  # because of the overlap policy, or because the trigger was disabled meanwhile
MISSED = "missed"  # the server was down, and the time is not made up for
FAILED = "failed"  # no build could be made


class TriggerVersion(NamedTuple):
    """One version of a trigger.

    Attributes:
        project, id: of the trigger.
        version: a number unique to this state of the trigger and its settings.
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
        settings: its own settings beside the resource; empty for none.
        size: number of bytes of the document and the settings as JSON.
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
        settings: its own settings beside the resource; empty for none.
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
        project_id, trigger_id: its trigger.
        fire_at: the scheduled time.
        run_at: time at which the build is made: ``fire_at`` and the jitter.
        state: ``waiting``, ``fired``, ``skipped``, ``missed`` or ``failed``.
        build_id: its build; empty for none.
        detail: reason of the state; a sentence.
    """

    project_id: str
    trigger_id: str
    fire_at: datetime
    run_at: datetime
    state: str = WAITING
    build_id: str = ""
    detail: str = ""
