"""Keeps a build's lease while its process works, and hears of the wish to cancel it."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

from buildrunner.errors import LeaseLost, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from buildrunner.store.server_store import BuildQueue
    from buildrunner.store.stored_build import Lease

LEASE_S = 30.0
RENEW_S = 5.0

_log = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews a lease from a thread of its own.

    While the database is away it tries again at every turn, also beyond the lease's end: nobody
    takes a build from a living process of its own machine, and whoever takes it for another reason
    gets a higher fence, which the first renewal after that tells us (ADR 0022).

    Args:
        queue: where the lease is.
        lease: what to keep.
        on_cancel: somebody wants the build cancelled; called once, from the thread.
        on_lost: the lease is somebody else's; called once, from the thread, which then ends.
        now: the time.
        every_s: pause between renewals.
    """

    def __init__(
        self,
        queue: BuildQueue,
        lease: Lease,
        *,
        on_cancel: Callable[[], None],
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
        # A pipe, as a signal handler may write to it whatever the threads are doing.
        self._wakes, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)

    def start(self) -> None:
        """Begin, with a renewal at once."""
        self._thread.start()

    def look(self) -> None:
        """Renew at once: there may be a wish to cancel. A signal handler may call this."""
        try:
            os.write(self._wake, b"!")
        except (BlockingIOError, OSError):
            return  # it will look anyway, or has ended

    def close(self) -> None:
        """End the thread; the lease stays as it is."""
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
        """Whether the lease may still be ours."""
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
            self._on_cancel()
        return True
