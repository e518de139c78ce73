"""How a person, a server or a signal asks a running build to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class CancelToken:
    """Set once, never unset.

    `cancel` takes no lock, so that a signal handler may call it whatever the main thread is doing
    at that moment (a `threading.Event` would deadlock when it is being waited for).
    """

    def __init__(self) -> None:
        self._cancelled = False
        self._listeners: list[Callable[[], None]] = []

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Ask for the stop; more calls change nothing."""
        if self._cancelled:
            return
        self._cancelled = True
        for listener in tuple(self._listeners):
            listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` on `cancel`, or at once when that was before.

        It may be called twice when both happen at the same moment, and from a signal handler: it
        must be quick, take no lock and not mind a second call (``SimpleQueue.put`` is such a one).
        """
        self._listeners.append(listener)
        if self._cancelled:
            listener()
