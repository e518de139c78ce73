"""The server's store on SQLite or PostgreSQL; see `server_store` for what it promises."""

from __future__ import annotations

from sqlalchemy import select

from buildrunner.store.sql.access import SqlAccess
from buildrunner.store.sql.builds import SqlBuilds, SqlLists
from buildrunner.store.sql.database import BUSY_TIMEOUT_S, Database
from buildrunner.store.sql.deliveries import SqlDeliveries, SqlRefs
from buildrunner.store.sql.filter import PageTokens
from buildrunner.store.sql.hooks import SqlHooks
from buildrunner.store.sql.migrate import migrate
from buildrunner.store.sql.notifiers import SqlNotifiers
from buildrunner.store.sql.outbox import SqlOutbox
from buildrunner.store.sql.queue import SqlQueue, SqlWaiting
from buildrunner.store.sql.retention import SqlRetention
from buildrunner.store.sql.schedules import SqlSchedules
from buildrunner.store.sql.schema import FORMS, PAGE_TOKENS, keys
from buildrunner.store.sql.triggers import SqlTriggers


class SqlStore(
    SqlBuilds,
    SqlLists,
    SqlQueue,
    SqlWaiting,
    SqlTriggers,
    SqlSchedules,
    SqlOutbox,
    SqlNotifiers,
    SqlDeliveries,
    SqlHooks,
    SqlRefs,
    SqlAccess,
    SqlRetention,
):
    """A `ServerStore`. Thread-safe; several processes may have the same database open.

    Args:
        database: with up-to-date tables; closed with the store.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        with database.read() as connection:
            found = {row.name: bytes(row.value) for row in connection.execute(select(keys))}
        self._page_tokens = PageTokens(found[PAGE_TOKENS])
        self._form_key = found[FORMS]

    def form_key(self) -> bytes:
        """See `ServerStore.form_key`."""
        return self._form_key

    def ping(self) -> None:
        """See `ServerStore.ping`."""
        with self._database.read() as connection:
            connection.execute(select(1))

    def close(self) -> None:
        """See `ServerStore.close`."""
        self._database.close()


def open_store(address: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> SqlStore:
    """Open a database, after bringing its tables up to date.

    Args:
        address: ``sqlite:////folder/server.db`` (made when missing, readable by its user only) or
            ``postgresql://user:password@host/name`` (which must exist).
        busy_timeout_s: how long a write waits for another's lock before it fails.

    Raises:
        UsageError: the address is of no known form.
        StoreError: the database can't be used, or belongs to a newer version.
    """
    database = Database(address, busy_timeout_s=busy_timeout_s)
    try:
        migrate(database)
        return SqlStore(database)
    except BaseException:
        database.close()
        raise
