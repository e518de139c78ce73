"""Keeps the lease of a build while its process works, and receives cancel requests."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

from buildrunner.errors import Conflict, InvalidRecord, LeaseLost, StoreError, StoreUnavailable
from buildrunner.store.build_store import Document
from buildrunner.store.model.builds import LEASE_S, BuildQueue, Lease
from buildrunner.store.model.deployments import RecordedDeployment

RENEW_S = 5.0

_log = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews a lease in its own thread.

    During an outage of the database it retries, also after the lease has expired: no worker takes a
    build from a living process of its own machine, and a worker that takes it for another reason
    gets a higher fence, which our next renewal reports (ADR 0022).

    Args:
        queue: queue with the lease.
        lease: the lease to keep.
        on_cancel: called once, in the thread, with the reason of a cancel request.
        on_lost: called once, in the thread, if another worker has the lease; the thread then ends.
        now: returns the current time.
        every_s: seconds between renewals.
    """

    def __init__(
        self,
        queue: BuildQueue,
        lease: Lease,
        *,
        on_cancel: Callable[[str], None],
        on_lost: Callable[[], None],
        now: Callable[[], datetime],
        every_s: float = RENEW_S,
    ) -> None:
        self._queue = queue
        self._lease = lease
        self._on_cancel = on_cancel
        self._on_lost = on_lost
        self._now = now
        self._every_s = every_s
        self._ending = False
        self._cancelled = False
        # A pipe, since a signal handler may write to it at any time.
        self._wakes, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        """Start the thread, with a renewal at once."""
        self._thread.start()

    def look(self) -> None:
        """Renew at once: there may be a cancel request. A signal handler may call this."""
        try:
            os.write(self._wake, b"!")
        except (BlockingIOError, OSError):
            return  # the thread renews soon anyway, or has ended

    def close(self) -> None:
        """End the thread; the lease remains unchanged."""
        self._ending = True
        self.look()
        self._thread.join()
        os.close(self._wakes)
        os.close(self._wake)
        self._wake = self._wakes = -1

    def _run(self) -> None:
        import select

        poll = select.poll()
        poll.register(self._wakes, select.POLLIN)
        while not self._ending:
            if not self._renew():
                return
            if poll.poll(self._every_s * 1000):
                os.read(self._wakes, 4096)

    def _renew(self) -> bool:
        """Renew the lease; return whether it may still be ours."""
        try:
            wanted = self._queue.renew(self._lease, now=self._now(), lease_s=LEASE_S)
        except LeaseLost:
            if not self._ending:
                self._on_lost()
            return False
        except StoreError as error:
            _log.warning("the lease of %s can't be renewed now: %s", self._lease.build_id, error)
            return True
        if wanted and not self._cancelled:
            self._cancelled = True
            self._on_cancel(wanted)
        return True


_PAUSES_S = (0.1, 0.2, 0.5, 1.0, 2.0)


class LeasedRecord:
    """The only writer of a build's document. One thread calls its methods.

    `save` writes at once, so that work is announced before it is done. If the database
    does not answer, the build continues: the newest document is written again until that succeeds.
    The data for recovery is in the build's own notes on this disk by then. A document that the
    server refuses is not written again, since a retry would be refused, too.

    Args:
        queue: queue with the build.
        lease: the lease of the build.
        on_lost: called in any thread if another worker has the lease; must end the process or
            raise.

    Attributes:
        taken: the last stored document; None before the first one.
    """

    def __init__(self, queue: BuildQueue, lease: Lease, *, on_lost: Callable[[], None]) -> None:
        self._queue = queue
        self._lease = lease
        self._on_lost = on_lost
        self._due: Document | None = None
        self._deployed: list[RecordedDeployment] = []
        self._lock = threading.Lock()
        self._again: threading.Thread | None = None
        self._closing = threading.Event()
        self._ending = threading.Lock()
        self._finished = False
        self.taken: Document | None = None

    def save(self, document: Document) -> None:
        """Store the document now, or later if the database does not answer.

        Raises:
            InvalidRecord: the server refuses the document.
        """
        with self._lock:
            if self._due is not None:  # a running thread will store this one
                self._due = document
                return
        if not self._try(document):
            self._write_later(document)

    def save_plan(self, plan: bytes) -> None:
        """Store the compiled plan. A failure of the database is only logged."""
        try:
            self._queue.record_plan(self._lease, plan)
        except LeaseLost:
            self._on_lost()
        except StoreError as error:
            _log.warning("the plan of %s can't be stored: %s", self._lease.build_id, error)

    def save_deployments(self, made: Sequence[RecordedDeployment]) -> None:
        """Record a step's deployments; if the database does not answer, before the build ends."""
        self._deployed += made
        self._record_deployments()

    def finish(self, document: Document) -> None:
        """Store a final document. Returns when it is stored, however long that takes.

        A build that has ended already is not changed: the first writer of a final status wins.

        Raises:
            InvalidRecord: the server refuses the document.
        """
        self._closing.set()
        if self._again is not None:
            self._again.join()
        self._due = None
        attempt = 0
        pause = threading.Event()
        while not (self._record_deployments() and self._finish(document)):
            pause.wait(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])
            attempt += 1

    def lost(self) -> None:
        """Handle a refused renewal: call ``on_lost``, unless we have ended the build."""
        with self._ending:
            if not self._finished:
                self._on_lost()

    def _record_deployments(self) -> bool:
        """Record the waiting deployments; return whether none waits any more."""
        if not self._deployed:
            return True
        try:
            self._queue.record_deployments(self._lease, self._deployed)
        except LeaseLost:
            self._on_lost()
        except InvalidRecord as error:  # a retry would be refused, too
            _log.error("deployments of %s are not recorded: %s", self._lease.build_id, error)
        except StoreError as error:
            _log.warning("deployments of %s can't be recorded now: %s", self._lease.build_id, error)
            return False
        self._deployed = []
        return True

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
            try:
                if document is None or not self._try(document):
                    continue
            except InvalidRecord as error:  # the next document may be accepted
                _log.error("build %s can't be recorded: %s", self._lease.build_id, error)
            with self._lock:
                if self._due is document:
                    self._due = None
                    return

    def _try(self, document: Document) -> bool:
        """Store a document; return False if it must be retried. Raises `InvalidRecord`."""
        try:
            self._queue.record(self._lease, document)
        except LeaseLost:
            self._on_lost()
        except Conflict:
            return True
        except InvalidRecord:
            raise
        except StoreError as error:
            _log.warning("build %s can't be recorded now: %s", self._lease.build_id, error)
            return False
        self.taken = document
        return True


T = TypeVar("T")

WAIT_LIMIT_S = 60.0
_PAUSE_S = 0.5


def until_available(ask: Callable[[], T], *, wait_limit_s: float = WAIT_LIMIT_S) -> T:
    """Return the result of ``ask``, retried while the database does not answer.

    A process that gave up at once would use up the build's attempts during a restart.

    Raises:
        StoreUnavailable: the database did not answer for ``wait_limit_s`` seconds.
    """
    end = time.monotonic() + wait_limit_s
    while True:
        try:
            return ask()
        except StoreUnavailable as error:
            if time.monotonic() >= end:
                raise
            _log.warning("the database does not answer yet: %s", error)
        time.sleep(_PAUSE_S)
