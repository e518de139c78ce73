"""What hooks are bound to, in SQL."""

from __future__ import annotations

from datetime import datetime

import msgspec
from sqlalchemy import delete, func, insert, select

from buildrunner.errors import NotFound
from buildrunner.store.build_store import Document
from buildrunner.store.protocols.deliveries import REFUSED
from buildrunner.store.records import instant_of
from buildrunner.store.sql.database import SqlPart, insert_new
from buildrunner.store.sql.schema import deliveries, hooks


class SqlHooks(SqlPart):
    """The part of `DeliveryStore` that is about hooks."""

    def add_hook(self, name: str, binding: Document) -> Document:
        """See `DeliveryStore.add_hook`."""
        with self._database.write() as connection:
            insert_new(connection, hooks, _row(name, binding))
        return self.get_hook(name)

    def put_hook(self, name: str, binding: Document) -> None:
        """See `DeliveryStore.put_hook`."""
        with self._database.write() as connection:
            connection.execute(delete(hooks).where(hooks.c.name == name))
            connection.execute(insert(hooks).values(_row(name, binding)))

    def get_hook(self, name: str) -> Document:
        """See `DeliveryStore.get_hook`."""
        with self._database.read() as connection:
            found = select(hooks.c.binding).where(hooks.c.name == name)
            binding = connection.execute(found).scalar()
        if binding is None:
            raise _unknown(name)
        return _decoded(binding)

    def list_hooks(self) -> dict[str, Document]:
        """See `DeliveryStore.list_hooks`."""
        with self._database.read() as connection:
            found = connection.execute(select(hooks).order_by(hooks.c.name))
            return {row.name: _decoded(row.binding) for row in found}

    def delete_hook(self, name: str) -> None:
        """See `DeliveryStore.delete_hook`."""
        with self._database.write() as connection:
            if not connection.execute(delete(hooks).where(hooks.c.name == name)).rowcount:
                raise _unknown(name)

    def heard_hooks(self) -> dict[str, datetime]:
        """See `DeliveryStore.heard_hooks`."""
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
