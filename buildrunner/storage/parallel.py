"""Runs several transfers concurrently."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from buildrunner.errors import StorageError

WORKERS = 8
"""Concurrent transfers; Google's client keeps ten connections."""

_LOOK_S = 0.25

T = TypeVar("T")


def in_parallel(
    jobs: Sequence[Callable[[], T]],
    *,
    cancel: threading.Event,
    workers: int = WORKERS,
    discard: Callable[[T], None] | None = None,
) -> Generator[T, None, None]:
    """Yield the results of ``jobs``, in order, while later ones already run.

    No job begins more than twice ``workers`` places ahead of the next result. The first error, in
    the order of the jobs, is raised; running jobs then end by themselves. The caller must exhaust
    or close the iterator. Unused results go to ``discard``, from any thread.

    Raises:
        StorageError: ``cancel`` is set.
    """
    run = _Run(jobs, discard)
    for _ in range(min(workers, len(jobs))):
        threading.Thread(target=run.work, args=(2 * workers,), name="transfer", daemon=True).start()
    try:
        for index in range(len(jobs)):
            yield run.result(index, cancel)
    finally:
        run.stop()


def interruptible(job: Callable[[], T], cancel: threading.Event) -> T:
    """Return the result of an uninterruptible job, which is abandoned once ``cancel`` is set.

    Raises:
        StorageError: ``cancel`` is set.
    """
    return next(in_parallel([job], cancel=cancel))


class _Run:
    def __init__(
        self, jobs: Sequence[Callable[[], Any]], discard: Callable[[Any], None] | None
    ) -> None:
        self._jobs = jobs
        self._discard = discard
        self._stopped = False
        self._next = 0
        self._wanted = 0
        self._results: dict[int, tuple[Any, BaseException | None]] = {}
        self._changed = threading.Condition()

    def work(self, ahead: int) -> None:
        while (index := self._take(ahead)) is not None:
            value, failure = None, None
            try:
                value = self._jobs[index]()
            except BaseException as error:  # noqa: BLE001  (it goes to the thread that waits)
                failure = error
            with self._changed:
                self._results[index] = (value, failure)
                self._changed.notify_all()
                if self._stopped:
                    self._discard_results()

    def _take(self, ahead: int) -> int | None:
        with self._changed:
            while self._next < len(self._jobs) and self._next >= self._wanted + ahead:
                self._changed.wait()
            if self._next >= len(self._jobs):
                return None
            self._next += 1
            return self._next - 1

    def result(self, index: int, cancel: threading.Event) -> Any:
        with self._changed:
            self._wanted = index
            self._changed.notify_all()
            while index not in self._results:
                self._changed.wait(_LOOK_S)
                if cancel.is_set():
                    raise StorageError("the transfer was stopped")
            value, failure = self._results.pop(index)
        if failure is not None:
            raise failure
        return value

    def stop(self) -> None:
        with self._changed:
            self._next = len(self._jobs)
            self._stopped = True
            self._discard_results()
            self._changed.notify_all()

    def _discard_results(self) -> None:
        for value, failure in self._results.values():
            if failure is None and self._discard is not None:
                self._discard(value)
        self._results.clear()
