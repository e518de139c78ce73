"""One deadline for all traffic with hosts that may be slow on purpose."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any


class Deadline:
    """Closes connections at a point in time, even while they wait. A context manager.

    A socket's timeout limits a single operation. A peer that sends a byte now and then
    keeps a connection open forever, unless something else ends it.

    Args:
        seconds: the time until the end, counted from the start of the context.
    """

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.is_over = False

    def __enter__(self) -> Deadline:
        """Start the clock."""
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the clock."""
        self._timer.cancel()
        with self._lock:
            for held in self._sockets:
                held.close()
            self._sockets.clear()

    def watch(self, connection: socket.socket) -> None:
        """Close this connection when the time is over; at once if it is over already."""
        with self._lock:
            # A copy stays valid when TLS takes over the connection's own descriptor.
            self._sockets.append(connection.dup())
        if self.is_over:
            self._end()

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Watch each new connection of httpx, as its request extension ``trace``."""
        if event.endswith(".connect_tcp.complete"):
            self.watch(info["return_value"].get_extra_info("socket"))

    def _end(self) -> None:
        with self._lock:
            self.is_over = True
            for held in self._sockets:
                with suppress(OSError):
                    held.shutdown(socket.SHUT_RDWR)
