"""The request of a user, a server or a signal to stop a running build."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime


class CancelToken:
    """A flag that is set once and never unset.

    `cancel` takes no lock, so that a signal handler may call it at any moment. (A
    `threading.Event` would deadlock while the main thread waits for it.)
    """

    def __init__(self) -> None:
        self._cancelled = False
        self.reason = ""
        """The first request's origin, as text for users: ``cancelled by Ctrl-C``."""
        self._listeners: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        """Return whether `cancel` was called."""
        return self._cancelled

    def cancel(self, reason: str = "cancelled") -> None:
        """Request the stop. Later calls change nothing."""
        if self._cancelled:
            return
        self.reason = reason
        self._cancelled = True
        for listener in tuple(self._listeners):
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` on `cancel`, or at once if `cancel` was called before.

        The listener may be called from a signal handler. It may be called twice if `listen` and
        `cancel` are called at the same time. So it must be quick, take no lock and tolerate a
        second call (as ``SimpleQueue.put`` does).
        """
        self._listeners.append(listener)
        if self._cancelled:
            listener()


class Clock:
    """The real time. Tests pass their own."""

    def now(self) -> datetime:
        """Return the current time, in UTC and with its time zone."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return the seconds of a clock that never goes backwards."""
        return time.monotonic()

    def chance(self) -> float:
        """Return a random number from 0 to 1, for jitter."""
        import random  # `random` loads hashlib: import it only for a retry

        return random.random()  # noqa: S311  (no secret depends on it)
