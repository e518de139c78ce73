"""One byte stream to an engine: a socket, and what was read from it too early."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import TYPE_CHECKING

from buildrunner.errors import EngineUnavailable

if TYPE_CHECKING:
    import threading

_READ_SIZE = 64 * 1024
_STOP_INTERVAL_S = 0.1  # how often a stoppable request looks at its stop event


class Stopped(Exception):
    """The caller's stop event was set while an answer was awaited."""


def broken(reason: str) -> EngineUnavailable:
    """The error for an engine that went away, or does not speak as it should."""
    return EngineUnavailable(
        f"the container engine broke off the conversation: {reason}",
        hint="Look at the engine's own log (journalctl -u docker), then try again.",
    )


class Connection:
    """One byte stream to the engine: a socket and what was read from it too early.

    Used by one thread at a time; `close` may be called from any thread and releases a reader.
    """

    __slots__ = ("_early", "_socket", "_stop", "used")

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._early = b""
        self._stop: threading.Event | None = None
        self.used = False

    def stop_on(self, stop: threading.Event | None) -> None:
        """Raise Stopped from a receive soon after ``stop`` is set (None: no longer)."""
        self._stop = stop
        if stop is not None:
            self._socket.settimeout(_STOP_INTERVAL_S)

    def set_timeout(self, seconds: float | None) -> None:
        """How long any single send or receive may take; None for no limit."""
        self._socket.settimeout(seconds)

    def fileno(self) -> int:
        """File descriptor of the socket; -1 once closed."""
        return self._socket.fileno()

    def is_stale(self) -> bool:
        """Whether the peer closed it, or spoke unasked, while it was idle."""
        if self._early or self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def receive(self, size: int = _READ_SIZE) -> bytes:
        """What is there next, at most ``size`` bytes; empty at the end of the stream."""
        if self._early:
            early = self._early
            self._early = early[size:]
            return early[:size] if len(early) > size else early
        return self._receive(size)

    def _receive(self, size: int) -> bytes:
        if self._stop is None:
            return self._socket.recv(size)
        while not self._stop.is_set():
            try:
                return self._socket.recv(size)
            except TimeoutError:
                continue
        raise Stopped

    def receive_until(self, end: bytes, limit: int) -> bytes:
        """All up to ``end``, which is taken off and not returned."""
        data = self._early
        while (found := data.find(end)) < 0:
            if len(data) > limit:
                raise broken(f"more than {limit} bytes of header")
            more = self._receive(_READ_SIZE)
            if not more:
                raise broken("it closed the connection")
            data += more
        self._early = data[found + len(end) :]
        return data[:found]

    def close(self) -> None:
        """Close it; a thread that blocks on it is released."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
