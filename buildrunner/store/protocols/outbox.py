"""The seam between what happens to builds and those who must hear of it.

A build's change of status is written down in the transaction that makes it. Somebody turns changes
into messages, and a sender delivers them: at least once, in order within a *lane*, whatever dies
meanwhile. What was delivered or given up stays for a while, so that it can be looked at.

Rules as in `server_store`; contract suite: tests/contract/test_outbox_store.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

WAITING = "waiting"
DELIVERED = "delivered"
GIVEN_UP = "given_up"
STATES = (WAITING, DELIVERED, GIVEN_UP)


class BuildChange(msgspec.Struct, frozen=True, kw_only=True):
    """A build that came into being, or has a new status.

    Attributes:
        id: rising for each build.
        project_id, build_id, status: which build, and what it became.
        document: the Build as of then.
    """

    id: int
    project_id: str
    build_id: str
    status: str
    document: dict[str, Any]


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Something to deliver. No secret is in it: those are looked up when it is sent.

    Attributes:
        key: unique; receivers can tell by it that they had the message before.
        lane: messages of one lane are delivered one after the other, in the order of their making.
        kind: who knows how to send it: ``status``, ``webhook``, ...
        project_id, build_id: what it is about.
        target: where it goes, for people.
        message: what its sender needs.
        replaces: older messages of the lane that have not arrived are dropped: only the newest
            counts.
        problem: why there is nothing to send: it is given up as it comes. Empty for none.
    """

    key: str
    lane: str
    kind: str
    project_id: str
    build_id: str
    target: str
    message: dict[str, Any]
    replaces: bool = False
    problem: str = ""


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """A message in the outbox.

    Attributes:
        id: rising.
        key, lane, kind, project_id, build_id, target, message: see `NewMessage`.
        created_at: when it was put in.
        next_try: when it is sent next.
        attempts: how often it was tried.
        last_error: what came of the last try; empty before the first, and when it arrived.
        state: ``waiting``, ``delivered`` or ``given_up``.
        claim: of its claim; 0 outside of one.
        done_at: when it arrived or was given up; None while it waits.
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


class OutboxStore(Protocol):
    """Changes of builds, and messages about them."""

    def build_changes(self, *, limit: int) -> list[BuildChange]:
        """The oldest changes that nobody has dealt with."""
        ...

    def announce(
        self,
        changes: Sequence[BuildChange],
        messages: Sequence[tuple[int, NewMessage]],
        *,
        now: datetime,
    ) -> int:
        """Deal with changes: they go, and the messages come, in one transaction.

        Args:
            changes: those that were looked at. Of several servers with the same one, one counts.
            messages: each with the id of its change.
            now: the time; they are due at once.

        Returns:
            How many messages came in.
        """
        ...

    def put_message(self, new: NewMessage, *, now: datetime) -> Message:
        """Put in a message that follows from no change.

        Raises:
            Conflict: there is one of that key.
        """
        ...

    def claim_messages(self, *, now: datetime, lease_s: float, limit: int) -> list[Message]:
        """Take messages that are due, at most the first of each lane; nobody else gets them.

        What is neither delivered, put off nor given up within the lease is given out again.
        """
        ...

    def change_message(self, message: Message, new: Message) -> None:
        """It has another kind and content now. Without effect when the claim was lost."""
        ...

    def delivered(self, message: Message, *, now: datetime) -> None:
        """It arrived. Without effect when the claim was lost."""
        ...

    def put_off(
        self, message: Message, *, next_try: datetime, error: str, tried: bool = True
    ) -> None:
        """It did not arrive: it is tried again. Without effect when the claim was lost.

        Args:
            message: which was claimed.
            next_try: when.
            error: why it did not arrive.
            tried: somebody tried to deliver it: that is counted.
        """
        ...

    def give_up(self, message: Message, *, error: str, now: datetime) -> None:
        """It is kept, but neither sent again nor in the way of others of its lane."""
        ...

    def get_message(self, message_id: int) -> Message:
        """One message. Raises `NotFound`."""
        ...

    def list_messages(
        self,
        *,
        project_id: str = "",
        build_id: str = "",
        state: str = "",
        limit: int = 100,
        before: int = 0,
    ) -> list[Message]:
        """Messages, the newest first.

        Args:
            project_id: of that project only, unless empty.
            build_id: about that build only, unless empty.
            state: in that state only, unless empty.
            limit: at most so many.
            before: with lower ids only; 0 for no limit.
        """
        ...

    def count_messages(self, state: str) -> int:
        """How many messages are in a state."""
        ...

    def retry_message(self, message_id: int, *, now: datetime) -> Message:
        """Send it at once, also one that was given up.

        Raises:
            NotFound: there is none.
            Conflict: it arrived already, or there never was anything to send.
        """
        ...

    def drop_message(self, message_id: int) -> None:
        """Forget it. Raises `NotFound`."""
        ...

    def forget_messages(self, *, before: datetime, limit: int) -> int:
        """Forget those that arrived or were given up before then, up to ``limit``; how many."""
        ...


class NotifierStore(Protocol):
    """Who is told of a project's builds. A notifier is kept as its document."""

    def put_notifier(self, project_id: str, name: str, document: dict[str, Any]) -> None:
        """Keep one, in place of the one of that name."""
        ...

    def get_notifier(self, project_id: str, name: str) -> dict[str, Any]:
        """One of them. Raises `NotFound`."""
        ...

    def list_notifiers(self, project_id: str) -> dict[str, dict[str, Any]]:
        """All of a project by name, in the order of their names."""
        ...

    def delete_notifier(self, project_id: str, name: str) -> None:
        """Forget one. Raises `NotFound`."""
        ...
