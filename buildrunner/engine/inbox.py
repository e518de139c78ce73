"""The queue of calls that threads send to a loop, and the start of these threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from buildrunner.errors import BuildrunnerError

Result = TypeVar("Result")


class Inbox:
    """Calls that other threads send to the loop. Only the loop's thread removes them."""

    def __init__(self) -> None:
        self._news: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.pending: set[str] = set()
        """Names of the running parts. Only the loop's thread may read or change them."""

    def tell(self, handler: Callable[..., None], *arguments: object) -> None:
        """Let the loop's thread call ``handler``. Any thread or signal handler may call this."""
        self._news.put(partial(handler, *arguments))

    def spawn(
        self,
        part: str,
        work: Callable[[], Result],
        *,
        done: Callable[[Result], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Do a part of the loop's work in a new thread.

        Args:
            part: name of the part; it is in `pending` until the loop gets the report.
            work: does the part.
            done: gets the result, in the loop's thread.
            failed: gets the error, in the loop's thread. An error that is a bug is raised there
                instead.
        """

        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001  (`_failed` knows which are bugs)
                self.tell(self._ended, part, partial(_failed, failed, error))
            else:
                self.tell(self._ended, part, partial(done, result))

        self.pending.add(part)
        threading.Thread(target=run, name=f"build-{part}", daemon=True).start()

    def wait(self, timeout_s: float) -> Callable[[], None] | None:
        """Return the next call; None after the timeout, which may be infinite."""
        try:
            if timeout_s == float("inf"):
                return self._news.get()
            return self._news.get(timeout=max(0.0, min(timeout_s, threading.TIMEOUT_MAX)))
        except Empty:
            return None

    def _ended(self, part: str, then: Callable[[], None]) -> None:
        self.pending.discard(part)
        then()


def _failed(failed: Callable[[Exception], None], error: Exception) -> None:
    if not isinstance(error, BuildrunnerError | OSError):
        raise error
    failed(error)
