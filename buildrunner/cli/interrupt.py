"""Ctrl-C and friends: the first asks the build to stop, no later one leaves anything behind."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """While entered, signals that would end the process cancel the build instead.

    Only the first counts: the engine kills and removes everything within two seconds, and a second
    Ctrl-C must not keep it from that.

    Args:
        cancel: asks the build to stop; called from the signal handler, so it takes no lock.
        notice: tells the person; called from the signal handler too.
    """

    def __init__(self, cancel: Callable[[], None], notice: Callable[[str], None]) -> None:
        self._cancel = cancel
        self._notice = notice
        self._before: dict[int, Any] = {}
        self.caught = False

    def __enter__(self) -> Interruption:
        for number in _SIGNALS:
            # What a parent told us to ignore (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, _number: int, _frame: object) -> None:
        if self.caught:
            self._notice("Already cancelling: removing containers, volumes and networks ...")
            return
        self.caught = True
        self._cancel()
        self._notice("Cancelling ...")
