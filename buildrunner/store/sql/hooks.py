"""What hooks are bound to, in SQL."""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import delete, func, insert, select

from buildrunner.errors import NotFound
from buildrunner.store.build_store import Document
from buildrunner.store.model.deliveries import REFUSED
from buildrunner.store.records import instant_of
from buildrunner.store.sql.database import SqlPart, insert_new
from buildrunner.store.sql.schema import deliveries, hooks


class SqlHooks(SqlPart):
    """What each webhook may fire."""

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
        """What a hook is bound to. Raises `NotFound`."""
        with self._database.read() as connection:
            found = select(hooks.c.binding).where(hooks.c.name == name)
            binding = connection.execute(found).scalar()
        if binding is None:
            raise _unknown(name)
        return _decoded(binding)

    def all(self) -> dict[str, Document]:
        """What hooks are bound to, by their names."""
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
