"""The output of a container: Docker's multiplexed attach stream made plain bytes again.

Without a terminal, Docker puts stdout and stderr on one stream as frames: one byte of origin
(1 stdout, 2 stderr), three zero bytes, four bytes of big-endian length, then the payload. A frame
is neither a line nor a whole character, and a read may end anywhere in it.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from buildrunner.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildrunner.containers.http_client import Connection

_FRAME_HEADER = Struct(">II")
_ORIGINS = frozenset((0x00000000, 0x01000000, 0x02000000))
_READ_SIZE = 256 * 1024


class FrameDemultiplexer:
    """Takes the stream in pieces of any size, gives the payloads back, stdout and stderr merged.

    Keeps no payload: what comes in goes out at once, so that its memory is bounded by the piece.
    """

    __slots__ = ("_header", "_left")

    def __init__(self) -> None:
        self._left = 0  # bytes of the current frame that have not come yet
        self._header = b""  # the beginning of a header that was cut by the end of a piece

    def feed(self, data: bytes) -> bytes:
        """Payload bytes in ``data``, in order; may be empty."""
        position = self._left
        if position >= len(data):
            self._left -= len(data)
            return data
        payloads = [data[:position]]
        if self._header:  # then _left was 0
            data = self._header + data
            self._header = b""
        end = len(data)
        while position + 8 <= end:
            origin, size = _FRAME_HEADER.unpack_from(data, position)
            if origin not in _ORIGINS:
                raise EngineError(
                    "the engine's output stream is garbled: a frame has an unknown origin",
                    hint="Is there a proxy between buildrunner and the engine? Try without it.",
                )
            position += 8
            payloads.append(data[position : position + size])
            position += size
        if position > end:
            self._left = position - end
        else:
            self._left = 0
            self._header = data[position:]
        return b"".join(payloads)


class OutputStream:
    """An iterator of a container's output, one chunk a read, until the output ends.

    Back-pressure: nothing is read before the next chunk is asked for, so that a slow consumer
    slows the container down rather than filling memory. `close` may come from any thread.
    """

    __slots__ = ("_connection", "_frames")

    def __init__(self, connection: Connection) -> None:
        connection.set_timeout(None)
        self._connection: Connection | None = connection
        self._frames = FrameDemultiplexer()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while (connection := self._connection) is not None:
            try:
                data = connection.receive(_READ_SIZE)
            except OSError:
                data = b""  # the engine went away: wait_container tells of it
            if not data:
                break
            if payload := self._frames.feed(data):
                return payload
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Stop listening; the container goes on. A blocked reader sees the end."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        self.close()
