"""Triggers in SQL."""

from __future__ import annotations

import msgspec
from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, tuple_, update

from buildrunner.errors import Conflict, NotFound
from buildrunner.store.build_store import Document
from buildrunner.store.sql.database import SqlPart, insert_new
from buildrunner.store.sql.filter import PageTokens, bounded
from buildrunner.store.sql.rows import AnyRow
from buildrunner.store.sql.schema import trigger_settings, triggers

_name = func.coalesce(triggers.c.name, "")


class SqlTriggers(SqlPart):
    """The part of `ServerStore` that is about triggers."""

    _page_tokens: PageTokens

    def create_trigger(
        self,
        project_id: str,
        location: str,
        document: Document,
        settings: Document | None = None,
    ) -> Document:
        """See `ServerStore.create_trigger`."""
        row = {
            "project_id": project_id,
            "id": document["id"],
            "name": document.get("name") or None,
            "location": location,
            "document": msgspec.json.encode(document),
        }
        with self._database.write() as connection:
            if not insert_new(connection, triggers, row):
                raise _name_taken(document)
            if settings:
                beside = {
                    "project_id": project_id,
                    "trigger_id": document["id"],
                    "settings": msgspec.json.encode(settings),
                }
                connection.execute(insert(trigger_settings).values(beside))
        return document

    def get_trigger(self, project_id: str, id_or_name: str) -> Document:
        """See `ServerStore.get_trigger`."""
        with self._database.read() as connection:
            return _document(_find(connection, project_id, id_or_name))

    def list_triggers(
        self, project_id: str, *, page_size: int = 50, page_token: str = ""
    ) -> tuple[list[Document], str]:
        """See `ServerStore.list_triggers`."""
        size, parent = bounded(page_size), ("triggers", project_id)
        found = (
            select(_name.label("name"), triggers.c.id, triggers.c.document)
            .where(triggers.c.project_id == project_id)
            .order_by(_name, triggers.c.id)
            .limit(size + 1)
        )
        if page_token:
            after = self._page_tokens.read(page_token, parent, (str, str))
            found = found.where(tuple_(_name, triggers.c.id) > after)
        with self._database.read() as connection:
            rows = connection.execute(found).all()
        more = len(rows) > size
        token = self._page_tokens.write(parent, tuple(rows[size - 1][:2])) if more else ""
        return [_document(row) for row in rows[:size]], token

    def replace_trigger(
        self,
        project_id: str,
        trigger_id: str,
        document: Document,
        *,
        was: Document | None = None,
    ) -> Document | None:
        """See `ServerStore.replace_trigger`."""
        with self._database.write() as connection:
            found = _find(connection, project_id, trigger_id, lock=True)
            before = _document(found)
            if was is not None and before != was:
                return None
            kept = [name for name in ("id", "createTime") if name in before]
            after: Document = {**document, **{name: before[name] for name in kept}}
            name = after.get("name") or None
            taken = select(triggers.c.id).where(
                triggers.c.project_id == project_id,
                triggers.c.name == name,
                triggers.c.id != found.id,
            )
            if name and connection.execute(taken).first():
                raise _name_taken(document)
            connection.execute(
                update(triggers)
                .where(triggers.c.project_id == project_id, triggers.c.id == found.id)
                .values(name=name, document=msgspec.json.encode(after))
            )
        return after

    def delete_trigger(self, project_id: str, id_or_name: str) -> None:
        """See `ServerStore.delete_trigger`."""
        with self._database.write() as connection:
            found = _find(connection, project_id, id_or_name, lock=True)
            connection.execute(
                delete(triggers).where(
                    triggers.c.project_id == project_id, triggers.c.id == found.id
                )
            )


def _document(row: AnyRow) -> Document:
    document: Document = msgspec.json.decode(row.document)
    return document


def _find(
    connection: Connection, project_id: str, id_or_name: str, *, lock: bool = False
) -> AnyRow:
    """The trigger of that id or else of that name."""
    ways: tuple[ColumnElement[bool], ...] = (
        triggers.c.id == id_or_name,
        triggers.c.name == id_or_name,
    )
    for way in ways:
        found = select(triggers).where(triggers.c.project_id == project_id, way)
        row = connection.execute(found.with_for_update() if lock else found).first()
        if row is not None:
            return row
    raise NotFound(f'there is no trigger "{id_or_name}" in project {project_id}')


def _name_taken(document: Document) -> Conflict:
    return Conflict(f'a trigger "{document.get("name") or document["id"]}" exists already')
