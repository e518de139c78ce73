"""Public keys of identity tokens in SQL."""

from __future__ import annotations

import msgspec
from sqlalchemy import delete, insert, select

from buildrunner.store.model.identity import IdentityKey
from buildrunner.store.records import instant_of, microseconds
from buildrunner.store.sql.database import SqlPart
from buildrunner.store.sql.schema import identity_keys


class SqlIdentityKeys(SqlPart):
    """The public keys of all servers of the database."""

    def all(self) -> list[IdentityKey]:
        """Return the keys, oldest first."""
        found = select(identity_keys).order_by(identity_keys.c.created_at, identity_keys.c.id)
        with self._database.read() as connection:
            return [
                IdentityKey(
                    id=row.id,
                    owner=row.owner,
                    jwk=msgspec.json.decode(row.jwk, type=dict[str, str]),
                    created_at=instant_of(row.created_at),
                    published_until=instant_of(row.published_until),
                )
                for row in connection.execute(found)
            ]

    def put(self, key: IdentityKey) -> None:
        """Store a key, in place of one with its id."""
        row = {
            "id": key.id,
            "owner": key.owner,
            "jwk": msgspec.json.encode(key.jwk),
            "created_at": microseconds(key.created_at),
            "published_until": microseconds(key.published_until),
        }
        with self._database.write() as connection:
            connection.execute(delete(identity_keys).where(identity_keys.c.id == key.id))
            connection.execute(insert(identity_keys).values(row))

    def delete(self, key_id: str) -> None:
        """Delete a key. Idempotent."""
        with self._database.write() as connection:
            connection.execute(delete(identity_keys).where(identity_keys.c.id == key_id))
