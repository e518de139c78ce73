"""Ctrl-C and friends: the first asks the build to stop, no later one leaves anything behind."""

from __future__ import annotations

import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STOP = b"\0"  # no signal has this number


class Interruption:
    """While entered, signals that would end the process cancel the build instead.

    Only the first counts: the engine kills and removes everything within two seconds, and a second
    Ctrl-C must not keep it from that.

    A thread of its own reads the signals from a socket to which the interpreter writes them at
    once. Python runs a signal handler only when its main thread next executes Python code, and a
    signal that arrives while that thread is about to wait for a lock leaves it waiting.

    Args:
        cancel: asks the build to stop; called from another thread.
        notice: tells the person; called from another thread too.
    """

    def __init__(self, cancel: Callable[[], None], notice: Callable[[str], None]) -> None:
        self._cancel = cancel
        self._notice = notice
        self._before: dict[int, Any] = {}
        self.caught = False

    def __enter__(self) -> Interruption:
        self._received, self._sent = socket.socketpair()
        self._sent.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._sent.fileno(), warn_on_full_buffer=False)
        self._reader = threading.Thread(target=self._read, name="signals", daemon=True)
        self._reader.start()
        for number in _SIGNALS:
            # What a parent told us to ignore (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, _leave_to_reader)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._sent.send(_STOP)
        self._reader.join()
        self._sent.close()
        self._received.close()

    def _read(self) -> None:
        while True:
            for number in self._received.recv(64):
                if number == _STOP[0]:
                    return
                if number in self._before:
                    self._on_signal()

    def _on_signal(self) -> None:
        if self.caught:
            self._notice("Already cancelling: removing containers, volumes and networks ...")
            return
        self.caught = True
        self._cancel()
        self._notice("Cancelling ...")


def _leave_to_reader(_number: int, _frame: object) -> None:
    """Handle a signal in place of the default, which would end the process."""
