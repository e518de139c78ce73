"""Several servers on one database: addresses, common tasks, and notifications of changes.

On PostgreSQL, a server that does a task for all servers holds an advisory lock. The database
releases the lock as soon as the server's connection ends. A database on SQLite has one server.

Every transaction that queues a build, changes a status, or requests a cancel sends one notification
(`notify_servers`). A server that receives it checks the database. A notification may be lost: each
loop also checks periodically. SQLite has no notifications.
"""

from __future__ import annotations

import logging
import os
import threading
import zlib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from select import POLLIN, poll
from typing import Any, Final

from sqlalchemy import Connection, delete, func, insert, select

from buildrunner.errors import NotFound, StoreError
from buildrunner.retry import backoff
from buildrunner.store.model.builds import KnownServer
from buildrunner.store.records import instant_of, microseconds
from buildrunner.store.sql.database import Database, SqlPart, insert_new
from buildrunner.store.sql.schema import log_homes, servers


class SqlServers(SqlPart):
    """The servers of the database, with their addresses for each other."""

    def put(self, server: KnownServer) -> None:
        """Store a server, replacing one of that name."""
        row = {
            "name": server.name,
            "url": server.url,
            "started_at": microseconds(server.started_at),
        }
        with self._database.write() as connection:
            connection.execute(delete(servers).where(servers.c.name == server.name))
            connection.execute(insert(servers).values(row))

    def all(self) -> list[KnownServer]:
        """Return all servers by name, also stopped ones."""
        with self._database.read() as connection:
            found = connection.execute(select(servers).order_by(servers.c.name))
            return [
                KnownServer(name=row.name, url=row.url, started_at=instant_of(row.started_at))
                for row in found
            ]

    def forget(self, name: str) -> None:
        """Delete a server that will not come back. Its logs can't be read any more.

        Raises:
            NotFound: no server has that name.
        """
        with self._database.write() as connection:
            gone = delete(servers).where(servers.c.name == name)
            if not connection.execute(gone).rowcount:
                raise NotFound(f"there is no server {name}")

    def log_home(self, build_id: str) -> str:
        """Return the name of the server that has a build's log; empty before its claim."""
        found = select(log_homes.c.server).where(log_homes.c.build_id == build_id)
        with self._database.read() as connection:
            return connection.execute(found).scalar() or ""


def note_log_home(connection: Connection, build_id: str, server: str) -> None:
    """Record the server that takes the log of a build. The first one keeps it."""
    insert_new(connection, log_homes, {"build_id": build_id, "server": server})


def forget_log_home(connection: Connection, build_id: str) -> None:
    """Let the next server that claims a build take its log, from the beginning."""
    connection.execute(delete(log_homes).where(log_homes.c.build_id == build_id))


_SPACE: Final = 0x6272  # distinguishes our locks from those of other programs


class Leadership:
    """One server's candidacy for a task. For one thread.

    Args:
        database: the servers' database.
        name: name of the task.
    """

    def __init__(self, database: Database, name: str) -> None:
        self._database = database
        self._number = zlib.crc32(name.encode()) & 0x7FFFFFFF
        self._connection: Any = None
        self._stack = ExitStack()

    def leads(self) -> bool:
        """Return whether this server does the task now.

        Raises:
            StoreError: the database does not answer.
        """
        if self._database.is_sqlite:
            return True
        if self._connection is None:
            self._connection = self._stack.enter_context(self._database.apart())
        try:
            return self._holds()
        except self._database.driver_error as error:
            self.close()
            raise self._database.explained(error) from error

    def _holds(self) -> bool:
        mine = (
            "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND classid = %s AND objid = %s AND objsubid = 2 AND pid = pg_backend_pid())"
        )
        key = (_SPACE, self._number)
        if self._connection.execute(mine, key).fetchone()[0]:
            return True
        take = "SELECT pg_try_advisory_lock(%s::int, %s::int)"
        return bool(self._connection.execute(take, key).fetchone()[0])

    def close(self) -> None:
        """Release the task, which another server may take at once. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # The database notices the end of a connection a moment later. A broken connection has
            # no lock to release.
            with suppress(self._database.driver_error):
                connection.execute("SELECT pg_advisory_unlock_all()")
        try:
            self._stack.close()
        except StoreError:
            return  # the connection was broken


_CHANNEL = "buildrunner_builds"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0

_log = logging.getLogger("buildrunner.server")


def notify_servers(connection: Connection) -> None:
    """Notify the listeners once the transaction has been committed. Does nothing on SQLite."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_notify(_CHANNEL, "")))


class ChangeListener:
    """A thread that listens for changes of builds. `start` and `stop` once.

    Args:
        database: the database with the changes, made by this or another process.
        heard: called in the thread after a change, and after each reconnection. It must be cheap.

    Attributes:
        is_listening: whether `heard` is called after each change; False while it is not connected.
    """

    def __init__(self, database: Database, heard: Callable[[], None]) -> None:
        self._database = database
        self._heard = heard
        self.is_listening = False
        self._wakes, self._wake = os.pipe()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="changes", daemon=True)

    def start(self) -> None:
        """Start the thread; does nothing on SQLite."""
        if not self._database.is_sqlite:
            self._thread.start()

    def stop(self) -> None:
        """End the thread and its connection. Idempotent."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        os.close(self._wake)  # the thread notices the end of the pipe
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._wakes)

    def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            try:
                with self._database.listening(_CHANNEL) as connection:
                    failures = 0
                    self.is_listening = True
                    self._heard()  # there may have been changes before
                    self._listen(connection)
            except StoreError as error:
                failures += 1
                if failures == 1:
                    _log.warning("changes: %s; the server looks for changes by itself", error)
                self.is_listening = False
                self._stopped.wait(backoff(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S))
        self.is_listening = False

    def _listen(self, connection: Any) -> None:
        watched = poll()
        watched.register(connection.fileno(), POLLIN)
        watched.register(self._wakes, POLLIN)
        while True:
            watched.poll()
            if self._stopped.is_set():
                return
            if list(connection.notifies(timeout=0)):
                self._heard()
