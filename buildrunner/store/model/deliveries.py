"""Deliveries of webhooks, and the last seen commits of refs.

A delivery is stored before its sender gets an answer, and is handled from the store: a server
that is killed in between finds it again. Deliveries of one lane (a hook's repository) are handled
one after the other.

Rules for every implementation (contract suite: tests/contract/test_delivery_store.py) are those of
`store.sql.store`. Several servers may share the database: each delivery is claimed by one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import msgspec

RECEIVED = "received"
WAITING = "waiting"
HANDLED = "handled"
REFUSED = "refused"

KEPT_REFUSALS = 500


class NewDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery as it arrived.

    Attributes:
        hook: the hook that received it: ``github``, ``git/app``, ``pubsub/topic``.
        delivery_id: the sender's own id; the same for each try.
        headers: headers by lower-case name, without secret ones.
        body: the unchanged body.
        address: address of the sender.
        lane: deliveries of one lane are handled in order; empty for none.
    """

    hook: str
    delivery_id: str
    headers: dict[str, str]
    body: bytes
    address: str = ""
    lane: str = ""


class StoredDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery in the store.

    Attributes:
        number: ascending, unique.
        hook, delivery_id, headers, body, address: see `NewDelivery`; a refused delivery has no
            body.
        received_at: time of its arrival.
        status: ``received``; ``waiting`` for a retry; ``handled`` or ``refused``.
        attempts: number of tries since it arrived or waited.
        replays: number of times that a user had it handled again.
        outcome: its outcome; empty before it was handled, partial while it waits.
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


class Watched(NamedTuple):
    """A repository that a project watches. Each project has its own history of the refs.

    Attributes:
        project: the project; empty for the refs that a hook reported at its installation.
        repository: the key of the repository.
    """

    project: str
    repository: str


class KnownRef(msgspec.Struct, frozen=True):
    """The last seen commit of a ref, and its witness: ``delivery NUMBER``.

    Attributes:
        commit: the commit of the ref.
        seen_by: the witness.
        before: the previous commit, if the witness knows it.
    """

    commit: str
    seen_by: str
    before: str = ""
