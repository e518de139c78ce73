"""Claims under a lease, for deliveries, fires of schedules and messages of the outbox.

A claimed row has ``claimed_until``, the end of its lease. A server that neither settles a row nor
renews its lease until then loses the row to the next server that claims.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, select, tuple_, update

from buildrunner.store.records import microseconds
from buildrunner.store.sql.database import Database
from buildrunner.store.sql.rows import AnyRow


def claim(
    database: Database,
    table: Table,
    candidates: Select[Any],
    *,
    free: ColumnElement[bool],
    until: datetime,
    one_at_a_time: Select[Any] | None = None,
    **values: Any,
) -> Sequence[AnyRow]:
    """Claim rows and return them, unordered. Most calls find nothing and lock nothing.

    Args:
        database: the server's database.
        table: a table with the column ``claimed_until``.
        candidates: selects the primary keys of rows to claim.
        free: the condition that no other server has claimed or settled a candidate meanwhile.
        until: the end of the lease.
        one_at_a_time: selects a row whose lock lets one server claim at a time, if candidates
            depend on each other. None: candidates that another server has locked are skipped.
        values: further columns to set.
    """
    keys = list(table.primary_key.columns)
    with database.read() as connection:
        found = connection.execute(candidates).all()
    if not found:
        return ()
    with database.write() as connection:
        if one_at_a_time is None:
            mine = select(*keys).where(tuple_(*keys).in_(found), free)
            found = connection.execute(mine.with_for_update(skip_locked=True)).all()
        else:
            if not database.is_sqlite:  # SQLite has one writer at a time
                connection.execute(one_at_a_time)
            found = connection.execute(candidates).all()
        taken = (
            update(table)
            .where(tuple_(*keys).in_(found), free)
            .values(claimed_until=microseconds(until), **values)
            .returning(*table.c)
        )
        return connection.execute(taken).all() if found else ()
