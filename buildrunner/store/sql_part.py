"""What the parts of the SQL store have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, select

from buildrunner.store.sql_schema import FENCE, counters

if TYPE_CHECKING:
    from sqlalchemy import Column, ColumnElement, Connection, Table

    from buildrunner.store.sql_database import Database


class SqlPart:
    """A part of the store, on a database whose tables are up to date."""

    def __init__(self, database: Database) -> None:
        self._database = database


def lock_queue(connection: Connection) -> int:
    """Let nobody else claim until the transaction ends; the highest fence so far.

    Limits are counts over many rows: locking the rows alone would let two servers each take the
    last free place.
    """
    locked = select(counters.c.value).where(counters.c.name == FENCE).with_for_update()
    return int(connection.execute(locked).scalar_one())


def insert_new(connection: Connection, table: Table, row: dict[str, Any]) -> bool:
    """Insert a row unless one of that key, or of another unique name, is there; whether it was."""
    # Only the one that is used: their imports take long.
    made: Any
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        made = sqlite.insert(table)
    else:
        from sqlalchemy.dialects import postgresql

        made = postgresql.insert(table)
    made = made.values(row).on_conflict_do_nothing()
    return connection.execute(made.returning(*table.primary_key)).first() is not None


def delete_some(
    connection: Connection, key: Column[int], which: ColumnElement[bool], limit: int
) -> int:
    """Delete rows that are chosen, up to a limit; how many.

    One large deletion would keep all other writers waiting.
    """
    some = select(key).where(which).limit(limit)
    return connection.execute(delete(key.table).where(key.in_(some))).rowcount
