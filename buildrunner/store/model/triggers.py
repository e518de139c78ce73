"""Triggers as the server's store returns them to the code that matches events with them."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec


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
