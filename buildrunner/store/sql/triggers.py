"""Triggers, and the bindings of hooks, in SQL."""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    func,
    insert,
    select,
    tuple_,
    update,
)

from buildrunner.errors import Conflict, NotFound
from buildrunner.store.build_store import Document
from buildrunner.store.model.deliveries import REFUSED
from buildrunner.store.records import instant_of
from buildrunner.store.sql.database import (
    Database,
    SqlPart,
    insert_new,
)
from buildrunner.store.sql.filter import PageTokens, bounded
from buildrunner.store.sql.rows import AnyRow, page_of
from buildrunner.store.sql.schema import (
    deliveries,
    hooks,
    trigger_settings,
    triggers,
)

_name = func.coalesce(triggers.c.name, "")


class SqlTriggers(SqlPart):
    """Triggers, and the settings beside them."""

    def __init__(self, database: Database, page_tokens: PageTokens) -> None:
        super().__init__(database)
        self._page_tokens = page_tokens

    def create(
        self,
        project_id: str,
        location: str,
        document: Document,
        settings: Document | None = None,
    ) -> Document:
        """Keep a trigger with what is set beside it; its ``id`` and ``createTime`` are set.

        Raises `Conflict` on its name.
        """
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

    def get(self, project_id: str, id_or_name: str) -> Document:
        """Return one trigger. Raises `NotFound`."""
        with self._database.read() as connection:
            return _document(_find(connection, project_id, id_or_name))

    def page(
        self, project_id: str, *, page_size: int = 50, page_token: str = ""
    ) -> tuple[list[Document], str]:
        """Triggers by name, and the next page's token. Raises `PageTokenError`."""
        size, parent = bounded(page_size), ("triggers", project_id)
        found = (
            select(_name.label("name"), triggers.c.id, triggers.c.document)
            .where(triggers.c.project_id == project_id)
            .order_by(_name, triggers.c.id)
        )
        if page_token:
            after = self._page_tokens.read(page_token, parent, (str, str))
            found = found.where(tuple_(_name, triggers.c.id) > after)
        with self._database.read() as connection:
            rows, goes_on = page_of(connection, found, size)
        token = self._page_tokens.write(parent, tuple(rows[-1][:2])) if goes_on else ""
        return [_document(row) for row in rows], token

    def replace(
        self,
        project_id: str,
        trigger_id: str,
        document: Document,
        *,
        was: Document | None = None,
    ) -> Document | None:
        """Replace a trigger's document; None when it is not as it ``was`` any more.

        Raises `NotFound`, `Conflict` on its name.
        """
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

    def delete(self, project_id: str, id_or_name: str) -> None:
        """Delete a trigger; its builds remain. Raises `NotFound`."""
        with self._database.write() as connection:
            found = _find(connection, project_id, id_or_name, lock=True)
            connection.execute(
                delete(triggers).where(
                    triggers.c.project_id == project_id, triggers.c.id == found.id
                )
            )

    def every(self) -> list[tuple[str, Document, Document]]:
        """The triggers of all projects: project, document and settings, in no certain order."""
        beside = and_(
            trigger_settings.c.project_id == triggers.c.project_id,
            trigger_settings.c.trigger_id == triggers.c.id,
        )
        found = select(
            triggers.c.project_id, triggers.c.document, trigger_settings.c.settings
        ).select_from(triggers.outerjoin(trigger_settings, beside))
        decode = msgspec.json.decode
        with self._database.read() as connection:
            return [
                (row.project_id, decode(row.document), decode(row.settings or b"{}"))
                for row in connection.execute(found)
            ]

    def settings(self, project_id: str, trigger_id: str) -> Document:
        """A trigger's own settings; empty for none, also when there is no such trigger."""
        found = select(trigger_settings.c.settings).where(
            trigger_settings.c.project_id == project_id,
            trigger_settings.c.trigger_id == trigger_id,
        )
        with self._database.read() as connection:
            return decoded_settings(connection.execute(found).scalar())

    def set_settings(self, project_id: str, trigger_id: str, settings: Document) -> None:
        """Replace them; empty removes them. Raises `NotFound`."""
        key = {"project_id": project_id, "trigger_id": trigger_id}
        same = and_(
            trigger_settings.c.project_id == project_id,
            trigger_settings.c.trigger_id == trigger_id,
        )
        with self._database.write() as connection:
            lock_trigger(connection, project_id, trigger_id)
            connection.execute(delete(trigger_settings).where(same))
            if settings:
                row = {**key, "settings": msgspec.json.encode(settings)}
                insert_new(connection, trigger_settings, row)


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


def lock_trigger(connection: Connection, project_id: str, trigger_id: str) -> None:
    """Make sure that a trigger is there, and stays, until the transaction ends."""
    found = (
        select(triggers.c.id)
        .where(triggers.c.project_id == project_id, triggers.c.id == trigger_id)
        .with_for_update()
    )
    if connection.execute(found).first() is None:
        raise NotFound(f'there is no trigger "{trigger_id}" in project {project_id}')


def decoded_settings(settings: bytes | None) -> Document:
    """Decode a trigger's settings; empty for none."""
    return {} if settings is None else msgspec.json.decode(settings)


class SqlHooks(SqlPart):
    """The bindings of webhooks."""

    def add(self, name: str, binding: Document) -> Document:
        """Bind a hook that is bound to nothing; what it is bound to now."""
        with self._database.write() as connection:
            insert_new(connection, hooks, _row(name, binding))
        return self.get(name)

    def put(self, name: str, binding: Document) -> None:
        """Bind a hook, or bind it anew."""
        with self._database.write() as connection:
            connection.execute(delete(hooks).where(hooks.c.name == name))
            connection.execute(insert(hooks).values(_row(name, binding)))

    def get(self, name: str) -> Document:
        """Return the binding of a hook. Raises `NotFound`."""
        with self._database.read() as connection:
            found = select(hooks.c.binding).where(hooks.c.name == name)
            binding = connection.execute(found).scalar()
        if binding is None:
            raise _unknown(name)
        return _decoded(binding)

    def all(self) -> dict[str, Document]:
        """Return the bindings of all hooks, by their names."""
        with self._database.read() as connection:
            found = connection.execute(select(hooks).order_by(hooks.c.name))
            return {row.name: _decoded(row.binding) for row in found}

    def delete(self, name: str) -> None:
        """Bind a hook to nothing. Raises `NotFound`."""
        with self._database.write() as connection:
            if not connection.execute(delete(hooks).where(hooks.c.name == name)).rowcount:
                raise _unknown(name)

    def heard(self) -> dict[str, datetime]:
        """When the newest genuine delivery of each hook came."""
        found = (
            select(deliveries.c.hook, func.max(deliveries.c.received_at).label("at"))
            .where(deliveries.c.status != REFUSED)
            .group_by(deliveries.c.hook)
        )
        with self._database.read() as connection:
            return {row.hook: instant_of(row.at) for row in connection.execute(found)}


def _row(name: str, binding: Document) -> Document:
    return {"name": name, "binding": msgspec.json.encode(binding)}


def _decoded(binding: bytes) -> Document:
    found: Document = msgspec.json.decode(binding)
    return found


def _unknown(name: str) -> NotFound:
    return NotFound(f"the hook {name} is bound to nothing", hint="`buildrunner hooks list`")
