"""Notifiers, in SQL."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, delete, select

from buildrunner.errors import NotFound
from buildrunner.store.sql.database import SqlPart
from buildrunner.store.sql.schema import notifiers


class SqlNotifiers(SqlPart):
    """Notifiers: who is notified of builds."""

    def put(self, project_id: str, name: str, document: dict[str, Any]) -> None:
        """Keep one, in place of the one of that name."""
        row = {
            "project_id": project_id,
            "name": name,
            "document": msgspec.json.encode(document),
        }
        with self._database.write() as connection:
            connection.execute(delete(notifiers).where(_is(project_id, name)))
            connection.execute(notifiers.insert().values(row))

    def get(self, project_id: str, name: str) -> dict[str, Any]:
        """One of them. Raises `NotFound`."""
        found = select(notifiers.c.document).where(_is(project_id, name))
        with self._database.read() as connection:
            document = connection.execute(found).scalar()
        if document is None:
            raise _not_found(project_id, name)
        return _decoded(document)

    def of_project(self, project_id: str) -> dict[str, dict[str, Any]]:
        """All of a project by name, in the order of their names."""
        found = (
            select(notifiers.c.name, notifiers.c.document)
            .where(notifiers.c.project_id == project_id)
            .order_by(notifiers.c.name)
        )
        with self._database.read() as connection:
            return {row.name: _decoded(row.document) for row in connection.execute(found)}

    def delete(self, project_id: str, name: str) -> None:
        """Forget one. Raises `NotFound`."""
        with self._database.write() as connection:
            if not connection.execute(delete(notifiers).where(_is(project_id, name))).rowcount:
                raise _not_found(project_id, name)


def _is(project_id: str, name: str) -> ColumnElement[bool]:
    return and_(notifiers.c.project_id == project_id, notifiers.c.name == name)


def _decoded(document: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(document)
    return found


def _not_found(project_id: str, name: str) -> NotFound:
    return NotFound(f"there is no notifier {name} in project {project_id}")
