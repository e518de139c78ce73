"""The seam to what forges told the server: deliveries of webhooks, and where refs were last seen.

A delivery is kept as it came before its sender is answered, and is handled from here: a server
that is killed in between finds it again. Those of one lane, which is a repository, are handled one
after the other.

Rules for every implementation (contract suite: tests/contract/test_delivery_store.py): those of
`server_store`. Several servers may share the database: each delivery is claimed by one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

RECEIVED = "received"
WAITING = "waiting"
HANDLED = "handled"
REFUSED = "refused"

KEPT_REFUSALS = 500


class NewDelivery(msgspec.Struct, frozen=True, kw_only=True):
    """A delivery as it arrived.

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
    """The last seen commit of a ref, and its witness: ``delivery NUMBER``.

    Attributes:
        commit: where.
        seen_by: by whom.
        before: where it was before that, as far as who saw it knows.
    """

    commit: str
    seen_by: str
    before: str = ""
