"""Notes of changes of builds, made in the transaction that changes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, literal, select

from buildrunner.store.sql_schema import build_changes, builds

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

_NAMES = ("build_id", "project_id", "status", "document")


def note_new(connection: Connection, row: dict[str, Any]) -> None:
    """Note a new build, whose row this is."""
    values = {"build_id": row["id"], **{name: row[name] for name in _NAMES[1:]}}
    connection.execute(insert(build_changes).values(values))


def note_change(
    connection: Connection, which: ColumnElement[bool], columns: dict[str, Any]
) -> None:
    """Note that a build gets another status. To be called before it does.

    Args:
        connection: of the transaction that changes it.
        which: selects the build.
        columns: what it becomes: ``status`` and ``document`` count.
    """
    changed = select(
        builds.c.id,
        builds.c.project_id,
        literal(columns["status"], builds.c.status.type),
        literal(columns["document"], builds.c.document.type),
    ).where(which, builds.c.status != columns["status"])
    connection.execute(insert(build_changes).from_select(_NAMES, changed))
