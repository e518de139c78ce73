"""A task that one of several servers of a database does.

On PostgreSQL the server holds an advisory lock, which the database releases as soon as the server's
connection ends. A database on SQLite has one server.
"""

from __future__ import annotations

import zlib
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

from buildrunner.errors import StoreError

if TYPE_CHECKING:
    from buildrunner.store.sql.database import Database

_SPACE: Final = 0x6272  # keeps our locks apart from those of other programs


class Leadership:
    """One server's wish to be the one that does a task. For one thread.

    Args:
        database: of the servers.
        name: of the task.
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
        """Leave the task to another server, which may take it at once. Idempotent."""
        connection, self._connection = self._connection, None
        if connection is not None:
            # The database notices the end of a connection a moment later. One that is broken has
            # no lock to release.
            with suppress(self._database.driver_error):
                connection.execute("SELECT pg_advisory_unlock_all()")
        try:
            self._stack.close()
        except StoreError:
            return  # the connection was broken
