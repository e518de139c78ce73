"""A server of a database that several servers share."""

from __future__ import annotations

from datetime import datetime

import msgspec


class KnownServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that uses the database.

    Attributes:
        name: the name of its worker; the same after a restart.
        url: where the other servers reach it, without a slash at its end.
        started_at: when it was started last.
    """

    name: str
    url: str
    started_at: datetime
