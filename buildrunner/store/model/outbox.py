"""Changes of builds, and the messages about them that wait to be delivered.

A build's change of status is stored in the transaction that makes it. A dispatcher turns changes
into messages, and a sender delivers them: at least once, in order within a *lane*, also after a
crash. Messages that were delivered or given up stay for a while, so that users can see them.

Rules as in `store.sql.store`; contract suite: tests/contract/test_outbox_store.py.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

WAITING = "waiting"
DELIVERED = "delivered"
GIVEN_UP = "given_up"
STATES = (WAITING, DELIVERED, GIVEN_UP)


class BuildChange(msgspec.Struct, frozen=True, kw_only=True):
    """A new build, or a new status of a build.

    Attributes:
        id: ascending for each build.
        project_id, build_id, status: the build and its new status.
        trigger_id: id of its trigger; empty for none, and if the build was deleted.
        labels: its labels; empty if it was deleted.
        previous: id and status of the last build of its series before it that succeeded or failed,
            if this one did, too; None for none. A series is a trigger's builds of one branch or
            pull request.
        overtaken: a newer build of its series has ended before it.
    """

    id: int
    project_id: str
    build_id: str
    status: str
    trigger_id: str = ""
    labels: dict[str, str] = {}
    previous: tuple[str, str] | None = None
    overtaken: bool = False


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message to deliver. It holds no secrets, which are looked up when it is sent.

    Attributes:
        key: unique key, by which receivers can recognize duplicates.
        lane: messages of one lane are delivered one after the other, in order of creation.
        kind: kind of its sender: ``status``, ``webhook``, ...
        project_id, build_id: its project and build.
        target: its receiver, for users.
        message: the data for its sender; its size does not depend on the build.
        change_id: id of its change, whose document is kept for it; 0 for none.
        replaces: drop older messages of the lane that have not arrived: only the newest
            counts.
        problem: why it can't be sent; the message is then given up at once. Empty for none.
    """

    key: str
    lane: str
    kind: str
    project_id: str
    build_id: str
    target: str
    message: dict[str, Any]
    change_id: int = 0
    replaces: bool = False
    problem: str = ""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message in the outbox.

    Attributes:
        id: ascending.
        key, lane, kind, project_id, build_id, target, message, change_id: see `NewMessage`.
        created_at: time of its creation.
        next_try: time of the next try.
        attempts: number of tries.
        last_error: error of the last try; empty before the first, and after the delivery.
        state: ``waiting``, ``delivered`` or ``given_up``.
        claim: number of its claim; 0 without one.
        done_at: time at which it arrived or was given up; None while it waits.
    """

    id: int
    key: str
    lane: str
    kind: str
    project_id: str
    build_id: str
    target: str
    message: dict[str, Any]
    created_at: datetime
    next_try: datetime
    attempts: int = 0
    last_error: str = ""
    state: str = WAITING
    claim: int = 0
    done_at: datetime | None = None
    change_id: int = 0
