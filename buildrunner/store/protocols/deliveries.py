"""The seam to what forges told the server: deliveries of webhooks, and where refs were last seen.

A delivery is kept as it came before its sender is answered, and is handled from here: a server
that is killed in between finds it again. Those of one lane, which is a repository, are handled one
after the other.

Rules for every implementation (contract suite: tests/contract/test_delivery_store.py): those of
`server_store`. Several servers may share the database: each delivery is claimed by one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

import msgspec

from buildrunner.store.build_store import Document

RECEIVED = "received"
WAITING = "waiting"
HANDLED = "handled"
REFUSED = "refused"

KEPT_REFUSALS = 500


class NewDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """What arrived.

    Attributes:
        hook: where: ``github``, ``git/app``, ``pubsub/topic``.
        delivery_id: the sender's own id for it; the same for each try.
        headers: by lower-case name, without any that holds a secret.
        body: as it was sent.
        address: who sent it.
        lane: what it must be handled in the order of; empty: none.
    """

    hook: str
    delivery_id: str
    headers: dict[str, str]
    body: bytes
    address: str = ""
    lane: str = ""


class StoredDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery as it is in the store.

    Attributes:
        number: rising, unique.
        hook, delivery_id, headers, body, address: see `NewDelivery`; a refused one has no body.
        received_at: when it came.
        status: ``received``; ``waiting`` to be tried again; ``handled`` or ``refused``.
        attempts: how often somebody began to handle it since it came or waited.
        replays: how often somebody had it handled again.
        outcome: what came of it; empty before it was handled, and so far while it waits.
        lane: see `NewDelivery`.
    """

    number: int
    hook: str
    delivery_id: str
    received_at: datetime
    status: str
    headers: dict[str, str] = {}
    body: bytes = b""
    address: str = ""
    attempts: int = 0
    replays: int = 0
    outcome: dict[str, Any] = {}
    lane: str = ""


class KnownRef(msgspec.Struct, frozen=True):
    """Where a ref was last seen, and by whom: ``delivery NUMBER``.

    Attributes:
        commit: where.
        seen_by: by whom.
        before: where it was before that, as far as who saw it knows.
    """

    commit: str
    seen_by: str
    before: str = ""


class DeliveryStore(Protocol):
    """Deliveries and refs."""

    def add_deliveries(
        self, new: Sequence[NewDelivery], *, now: datetime
    ) -> list[tuple[StoredDelivery, bool]]:
        """Keep deliveries, all in one transaction; each, and whether it is new.

        One of the same hook and id that is there already is returned in its place.
        """
        ...

    def refuse_delivery(self, new: NewDelivery, reason: str, *, now: datetime) -> int:
        """Record a refused delivery without its body; return the number of the record.

        Only the newest `KEPT_REFUSALS` records of refused deliveries are kept.
        """
        ...

    def count_refusals(self, repeats: Mapping[int, int]) -> None:
        """Add repeats to records of refused deliveries: number of the record -> how many."""
        ...

    def claim_deliveries(
        self, *, now: datetime, lease_s: float, limit: int
    ) -> list[StoredDelivery]:
        """Take the oldest that nobody handles, in their order; empty when there are none.

        Also those that waited and are due. Of a lane in which somebody has one, none are taken.
        Who neither finishes nor holds them within ``lease_s`` seconds loses them to the next.
        """
        ...

    def hold_deliveries(self, numbers: Collection[int], *, now: datetime, lease_s: float) -> None:
        """They are still being handled: claim them for longer."""
        ...

    def release_deliveries(self, claimed: Sequence[StoredDelivery]) -> None:
        """Give back what was claimed and not begun."""
        ...

    def postpone_delivery(
        self, claimed: StoredDelivery, outcome: Mapping[str, Any], *, until: datetime
    ) -> None:
        """Have it handled again later, with what came of it so far; it holds up no others.

        One that somebody finished, or wanted replayed, since it was claimed stays as it is.
        """
        ...

    def finish_deliveries(
        self, handled: Sequence[tuple[StoredDelivery, Mapping[str, Any]]]
    ) -> None:
        """These are handled, with what came of them. Idempotent.

        One that somebody wanted replayed since it was claimed stays to be handled.
        """
        ...

    def replay_delivery(self, number: int) -> StoredDelivery:
        """Have it handled once more.

        Raises:
            NotFound: no such delivery.
            Conflict: it was refused.
        """
        ...

    def get_delivery(self, number: int) -> StoredDelivery:
        """One delivery. Raises `NotFound`."""
        ...

    def list_deliveries(
        self, *, hook: str = "", limit: int = 50, before: int = 0
    ) -> list[StoredDelivery]:
        """The newest first, without bodies; older than number ``before`` when that is given."""
        ...

    def forget_deliveries(self, *, before: datetime, limit: int) -> int:
        """Delete those that came before a moment and are handled or refused, up to ``limit``; how
        many.
        """
        ...

    def known_refs(self, repository: str, ref: str | None = None) -> dict[str, KnownRef]:
        """Where a repository's refs, or one of them, were last seen, by full name."""
        ...

    def note_ref(self, repository: str, ref: str, commit: str, seen_by: str) -> KnownRef | None:
        """Remember where a ref is (empty: it is gone); what was known before.

        Of several who see it at one commit the first is remembered, also among servers.
        """
        ...

    def note_refs(
        self, repositories: Collection[str], ref: str, now: KnownRef
    ) -> list[KnownRef | None]:
        """The same for one repository that goes by several names, at once.

        Forges may tell of two pushes in the wrong order: the ref is not put back to where the push
        that is known began.
        """
        ...

    def note_first_look(self, repository: str, refs: Mapping[str, str], seen_by: str) -> None:
        """Remember where the refs of a repository are; those that are known stay as they are.

        Args:
            repository: its key.
            refs: commit by full name.
            seen_by: see `KnownRef`.
        """
        ...

    def every_trigger(self) -> list[tuple[str, Document, Document]]:
        """The triggers of all projects: project, document and settings, in no certain order."""
        ...

    def add_hook(self, name: str, binding: Document) -> Document:
        """Bind a hook that is bound to nothing; what it is bound to now."""
        ...

    def put_hook(self, name: str, binding: Document) -> None:
        """Bind a hook, or bind it anew."""
        ...

    def get_hook(self, name: str) -> Document:
        """What a hook is bound to. Raises `NotFound`."""
        ...

    def list_hooks(self) -> dict[str, Document]:
        """What hooks are bound to, by their names."""
        ...

    def delete_hook(self, name: str) -> None:
        """Bind a hook to nothing. Raises `NotFound`."""
        ...

    def heard_hooks(self) -> dict[str, datetime]:
        """When the newest genuine delivery of each hook came."""
        ...
