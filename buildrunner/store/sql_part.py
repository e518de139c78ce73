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
    made = _insert_if_new(connection, table).values(row)
    return connection.execute(made.returning(*table.primary_key)).first() is not None


def insert_all_new(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert those of the rows whose key, or another unique name, is not there; at once."""
    if rows:
        connection.execute(_insert_if_new(connection, table), rows)


def _insert_if_new(connection: Connection, table: Table) -> Any:
    # Only the one that is used: their imports take long.
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table).on_conflict_do_nothing()
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table).on_conflict_do_nothing()


def delete_some(
    connection: Connection, key: Column[int], which: ColumnElement[bool], limit: int
) -> int:
    """Delete rows that are chosen, up to a limit; how many.

    One large deletion would keep all other writers waiting.
    """
    some = select(key).where(which).limit(limit)
    return connection.execute(delete(key.table).where(key.in_(some))).rowcount
