"""Bytes from the thread that fetches them to the thread that reads them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

from buildrunner.errors import StorageError

_PIECE_BYTES = 256 * 1024
_PIECES_AHEAD = 16
_LOOK_S = 0.25


class Abandoned(Exception):
    """Nobody reads any more."""


class Pipe:
    """What the client writes to in one thread, and another thread reads from: a few MiB at most."""

    def __init__(self) -> None:
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_PIECES_AHEAD)
        self._buffer = bytearray()
        self._skip = 0
        self._abandoned = threading.Event()

    def skip(self, count: int) -> None:
        """Leave out so many bytes of what comes."""
        self._skip = count

    def write(self, data: bytes) -> int:
        """Take bytes; blocks while the reader is slow."""
        left_out = min(self._skip, len(data))
        self._skip -= left_out
        self._buffer += data[left_out:]
        if len(self._buffer) >= _PIECE_BYTES:
            self._hand_over()
        return len(data)

    def finish(self, error: BaseException | None) -> None:
        """No more bytes, because of ``error`` if there is one."""
        try:
            self._hand_over()
            self._put(error)
        except Abandoned:
            pass

    def pieces(self, cancel: threading.Event) -> Iterator[bytes]:
        """What was written, as it comes."""
        while True:
            try:
                piece = self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                piece = b""
            if cancel.is_set():
                raise StorageError("the transfer was stopped")
            if piece is None:
                return
            if isinstance(piece, BaseException):
                raise piece
            if piece:
                yield piece

    def abandon(self) -> None:
        """Let the writer fail at its next write."""
        self._abandoned.set()

    def _hand_over(self) -> None:
        if self._buffer:
            self._put(bytes(self._buffer))
            self._buffer.clear()

    def _put(self, piece: bytes | BaseException | None) -> None:
        while not self._abandoned.is_set():
            try:
                self._queue.put(piece, timeout=_LOOK_S)
            except queue.Full:
                continue
            return
        raise Abandoned
