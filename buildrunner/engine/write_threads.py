"""A few threads that write files, and never have more to write than fits in little memory.

The kernel lets one thread at a time make a file in a folder, or write to a file. So a thread takes,
if there are any, jobs for folders and files that no other thread is busy with.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

_THREADS = max(2, min(4, os.cpu_count() or 1))
_WAITING_BYTES = 8 * 1024 * 1024
# Jobs are handed on in bundles: waking a thread takes as long as writing a small file.
_BUNDLE_BYTES = 128 * 1024
_BUNDLE_JOBS = 16
_JOB_BYTES = 1024  # what a job itself takes, and more


class _Bundle:
    """Jobs that one thread does, one after another."""

    def __init__(self) -> None:
        self.jobs: list[Callable[[], None]] = []
        self.places: set[int] = set()
        self.size_bytes = 0


class WriteThreads:
    """Threads that run jobs in any order, from ``with`` to its end.

    One thread gives the jobs. The first exception of a job comes out of the next `put` or `settle`;
    jobs that were not begun by then never are.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._done = threading.Condition(self._lock)
        self._filling = _Bundle()
        self._waiting: deque[_Bundle] = deque()
        self._running: list[_Bundle] = []
        self._held_bytes = 0
        self._error: BaseException | None = None
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"write-{number}", daemon=True)
            for number in range(_THREADS)
        ]

    def __enter__(self) -> WriteThreads:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._stopping = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join()

    def put(self, job: Callable[[], None], place: int, size_bytes: int) -> None:
        """Have a job done, soon; waits while too much is waiting already.

        Args:
            job: writes; called in another thread.
            place: stands for the folder or file to which it writes.
            size_bytes: what it holds in memory.
        """
        bundle = self._filling
        bundle.jobs.append(job)
        bundle.places.add(place)
        bundle.size_bytes += size_bytes + _JOB_BYTES
        if bundle.size_bytes >= _BUNDLE_BYTES or len(bundle.jobs) >= _BUNDLE_JOBS:
            self._hand_on()

    def settle(self) -> None:
        """Wait until every job is done."""
        if self._filling.jobs:
            self._hand_on()
        with self._lock:
            while self._held_bytes and self._error is None:
                self._done.wait()
            self._raise()

    def _hand_on(self) -> None:
        with self._lock:
            while self._held_bytes > _WAITING_BYTES and self._error is None:
                self._done.wait()
            self._raise()
            self._waiting.append(self._filling)
            self._held_bytes += self._filling.size_bytes
            self._work.notify()
        self._filling = _Bundle()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (bundle := self._next()) is not None:
            error = None
            try:
                for job in bundle.jobs:
                    job()
            except BaseException as raised:  # noqa: BLE001  (it is raised where the jobs come from)
                error = raised
            with self._lock:
                self._running.remove(bundle)
                self._held_bytes -= bundle.size_bytes
                if self._error is None:
                    self._error = error
                self._done.notify()

    def _next(self) -> _Bundle | None:
        with self._lock:
            while not self._waiting and not self._stopping:
                self._work.wait()
            if self._stopping or self._error is not None:
                return None
            busy = set().union(*(bundle.places for bundle in self._running))
            found = next(
                (bundle for bundle in self._waiting if busy.isdisjoint(bundle.places)),
                self._waiting[0],
            )
            self._waiting.remove(found)
            self._running.append(found)
            return found
