"""The store of a server: builds, queue, triggers, schedules, outbox, deliveries, tokens.

`ServerStore` is composed of a small store for each subject. A build is kept as its *document* (the
Build resource in protobuf JSON form, camelCase keys). The store also keeps values that do not
belong to the resource: the request, the place in the queue, the lease of the process that runs the
build, its plan, a request to cancel it.

Rules that every method follows (contract suite: tests/contract/test_server_store.py):

* Thread-safe; several processes may open one database; no method blocks for longer than a
  statement.
* A method is one transaction. Its result is durable, also against a power cut.
* Only the holder of a build's lease writes its document while it is WORKING. Each claim gets a
  higher *fence* than all earlier ones; a write with an older one raises `LeaseLost`.
* A final status never changes; its first writer wins.
* Every failure is a `StoreError`; instants are aware UTC datetimes; ``now`` is always an argument.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select

from buildrunner.store.sql.access import SqlAuditLog, SqlIdentityKeys, SqlSessions, SqlTokens
from buildrunner.store.sql.builds import SqlBuilds
from buildrunner.store.sql.database import BUSY_TIMEOUT_S, Database
from buildrunner.store.sql.deliveries import SqlDeliveries, SqlRefs
from buildrunner.store.sql.deployments import SqlDeployments
from buildrunner.store.sql.filter import PageTokens
from buildrunner.store.sql.migrate import migrate
from buildrunner.store.sql.outbox import SqlNotifiers, SqlOutbox
from buildrunner.store.sql.queue import SqlQueue
from buildrunner.store.sql.retention import SqlRetention
from buildrunner.store.sql.schema import FORMS, PAGE_TOKENS, keys
from buildrunner.store.sql.servers import ChangeListener, Leadership, SqlServers
from buildrunner.store.sql.triggers import SqlHooks, SqlSchedules, SqlTriggers


class ServerStore:
    """The database of a server, SQLite or PostgreSQL. Thread-safe.

    Args:
        database: the database, with up-to-date tables; closed with the store.

    Attributes:
        builds: builds, and their approvals.
        queue: the queue, a `BuildQueue`.
        retention: deletes old builds.
        deployments: deployments of builds.
        triggers: triggers and their settings.
        schedules: schedules of triggers.
        outbox: messages to other machines, and changes of builds.
        notifiers: notifiers of builds.
        deliveries: deliveries of webhooks.
        hooks: bindings of webhooks.
        refs: the last seen commits of branches and tags.
        tokens: access tokens.
        sessions: sessions of browsers.
        audit: the audit log.
        identity_keys: the public keys that verify identity tokens.
        servers: the servers of the database, and the server that has each build's log.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listener: ChangeListener | None = None
        with database.read() as connection:
            found = {row.name: bytes(row.value) for row in connection.execute(select(keys))}
        page_tokens = PageTokens(found[PAGE_TOKENS])
        self._form_key = found[FORMS]
        self.builds = SqlBuilds(database, page_tokens)
        self.queue = SqlQueue(database)
        self.retention = SqlRetention(database)
        self.deployments = SqlDeployments(database, page_tokens)
        self.triggers = SqlTriggers(database, page_tokens)
        self.schedules = SqlSchedules(database)
        self.outbox = SqlOutbox(database)
        self.notifiers = SqlNotifiers(database)
        self.deliveries = SqlDeliveries(database)
        self.hooks = SqlHooks(database)
        self.refs = SqlRefs(database)
        self.tokens = SqlTokens(database)
        self.sessions = SqlSessions(database)
        self.audit = SqlAuditLog(database)
        self.identity_keys = SqlIdentityKeys(database)
        self.servers = SqlServers(database)

    def form_key(self) -> bytes:
        """Return the key by which all servers of the database sign forms."""
        return self._form_key

    def ping(self) -> None:
        """Raise `StoreError` unless the database answers."""
        with self._database.read() as connection:
            connection.execute(select(1))

    def listener(self, heard: Callable[[], None]) -> ChangeListener:
        """Return a listener, not started, that calls ``heard`` after changes of builds."""
        self._listener = ChangeListener(self._database, heard)
        return self._listener

    @property
    def hears_changes(self) -> bool:
        """Return whether a listener hears of every change of builds, also by other servers."""
        return self._listener is not None and self._listener.is_listening

    def leadership(self, name: str) -> Leadership:
        """Return this server's candidacy for a task, which is not granted yet."""
        return Leadership(self._database, name)

    def close(self) -> None:
        """Close the database. Idempotent."""
        self._database.close()


def open_store(address: str, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> ServerStore:
    """Open a database, and bring its tables up to date.

    Args:
        address: ``sqlite:////folder/server.db`` (created if missing, readable by its user only) or
            ``postgresql://user:password@host/name`` (which must exist).
        busy_timeout_s: seconds that a write waits for another's lock before it fails.

    Raises:
        UsageError: the address has an unknown form.
        StoreError: the database can't be used, or belongs to a newer version.
    """
    database = Database(address, busy_timeout_s=busy_timeout_s)
    try:
        migrate(database)
        return ServerStore(database)
    except BaseException:
        database.close()
        raise
