"""Writes a running build's document through its lease, also to a database that is away a while."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from buildrunner.errors import Conflict, LeaseLost, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.store.build_store import Document
    from buildrunner.store.server_store import BuildQueue
    from buildrunner.store.stored_build import Lease

_log = logging.getLogger(__name__)

_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)


class LeasedRecord:
    """The one writer of a build's document. Its methods are called by one thread.

    `save` writes at once, so that what is announced is stored before it is done. When the database
    does not take it, the build goes on: the newest document is written again until it is taken, and
    what recovery must know is in the build's own notes on this disk by then.

    Args:
        queue: where the build is.
        lease: our right to write it.
        on_lost: the lease is somebody else's. May be called from any thread; must end the process
            or raise.
    """

    def __init__(self, queue: BuildQueue, lease: Lease, *, on_lost: Callable[[], None]) -> None:
        self._queue = queue
        self._lease = lease
        self._on_lost = on_lost
        self._due: Document | None = None
        self._lock = threading.Lock()
        self._again: threading.Thread | None = None
        self._closing = threading.Event()
        self._ending = threading.Lock()
        self._finished = False

    def save(self, document: Document) -> None:
        """Store the document now; later if the database is away."""
        with self._lock:
            if self._due is not None:  # a thread is at it already, and will take this one
                self._due = document
                return
        if not self._try(document):
            self._write_later(document)

    def save_plan(self, plan: bytes) -> None:
        """Store the compiled plan; a database that is away goes without it."""
        try:
            self._queue.record_plan(self._lease, plan)
        except LeaseLost:
            self._on_lost()
        except StoreError as error:
            _log.warning("the plan of %s can't be stored: %s", self._lease.build_id, error)

    def finish(self, document: Document) -> None:
        """Store a final document. Returns when it is stored, however long the database is away.

        A build that has ended already stays as it is: the first writer of a final status wins.
        """
        self._closing.set()
        if self._again is not None:
            self._again.join()
        self._due = None
        attempt = 0
        pause = threading.Event()
        while not self._finish(document):
            pause.wait(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
            attempt += 1

    def lost(self) -> None:
        """A renewal was refused: tell ``on_lost``, unless it is that the build has ended by us."""
        with self._ending:
            if not self._finished:
                self._on_lost()

    def _finish(self, document: Document) -> bool:
        with self._ending:
            self._finished = self._try(document)
            return self._finished

    def _write_later(self, document: Document) -> None:
        with self._lock:
            self._due = document
        self._again = threading.Thread(target=self._work, name="record-again", daemon=True)
        self._again.start()

    def _work(self) -> None:
        attempt = 0
        while not self._closing.wait(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)]):
            attempt += 1
            with self._lock:
                document = self._due
            if document is None or not self._try(document):
                continue
            with self._lock:
                if self._due is document:
                    self._due = None
                    return

    def _try(self, document: Document) -> bool:
        """Whether nothing is left to write."""
        try:
            self._queue.record(self._lease, document)
        except LeaseLost:
            self._on_lost()
        except Conflict:
            return True
        except StoreError as error:
            _log.warning("build %s can't be recorded now: %s", self._lease.build_id, error)
            return False
        return True
