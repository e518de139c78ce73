"""News of changed builds from PostgreSQL, so that servers of one database need not poll for them.

Every transaction that queues a build, changes a status, or asks for a cancel sends one notification
(`tell_others`). A server that hears it looks at the database. Nothing depends on a notification:
each loop also looks by itself from time to time, and a notification that is lost delays it until
then. SQLite has no notifications, and one server only.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func
from sqlalchemy import select as select_rows

from buildrunner.errors import StoreError
from buildrunner.retry import backoff

if TYPE_CHECKING:
    from buildrunner.store.sql.database import Database

_CHANNEL = "buildrunner_builds"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0

_log = logging.getLogger("buildrunner.server")


def tell_others(connection: Connection) -> None:
    """Notify the listeners once the transaction has been committed. Does nothing on SQLite."""
    if connection.dialect.name == "postgresql":
        connection.execute(select_rows(func.pg_notify(_CHANNEL, "")))


class ChangeListener:
    """A thread that listens for changes of builds. `start` and `stop` once.

    Args:
        database: where the changes are made, by this process or another one.
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
        """Start the thread; on SQLite there is nothing to listen to."""
        if not self._database.is_sqlite:
            self._thread.start()

    def stop(self) -> None:
        """End the thread and its connection. Idempotent."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        os.close(self._wake)  # the thread sees the end of the pipe
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
                    self._heard()  # whatever changed before
                    self._listen(connection)
            except StoreError as error:
                failures += 1
                if failures == 1:
                    _log.warning("changes: %s; the server looks for changes by itself", error)
                self.is_listening = False
                self._stopped.wait(backoff(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S))
        self.is_listening = False

    def _listen(self, connection: Any) -> None:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        poll.register(self._wakes, select.POLLIN)
        while True:
            poll.poll()
            if self._stopped.is_set():
                return
            if list(connection.notifies(timeout=0)):
                self._heard()
