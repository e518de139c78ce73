"""An engine's answer: its head, then its body as it comes, with strict limits on both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.containers.http_connection import broken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from buildrunner.containers.http_connection import Connection

_HEAD_LIMIT = 64 * 1024
_LINE_LIMIT = 4 * 1024
_BODY_LIMIT = 64 * 1024 * 1024
_PIECE_SIZE = 256 * 1024


class Response:
    """The head of an answer, and its body on demand.

    Attributes:
        status: HTTP status.
        headers: by lower-case name; the last one wins.
    """

    __slots__ = ("_connection", "_give_back", "headers", "status")

    def __init__(
        self,
        connection: Connection,
        give_back: Callable[[Connection], None],
        status: int,
        headers: dict[str, str],
    ) -> None:
        self._give_back = give_back
        self._connection: Connection | None = connection
        self.status = status
        self.headers = headers

    def body(self) -> bytes:
        """All of the body (at most 64 MiB). The connection is free for others afterwards."""
        size = 0
        pieces = []
        for piece in self.pieces():
            size += len(piece)
            if size > _BODY_LIMIT:
                self.close()
                raise broken("its answer is larger than 64 MiB")
            pieces.append(piece)
        return b"".join(pieces)

    def pieces(self) -> Iterator[bytes]:
        """The body as it comes. Leaving early drops the connection."""
        connection = self._connection
        if connection is None:
            return
        try:
            if "chunked" in self.headers.get("transfer-encoding", "").lower():
                yield from _chunked(connection)
            elif self.status in (204, 304):
                pass
            elif "content-length" in self.headers:
                yield from _exactly(connection, _natural(self.headers["content-length"], 10))
            else:
                self.headers["connection"] = "close"
                while piece := connection.receive():
                    yield piece
            self._release()
        except TimeoutError as error:
            raise broken("it fell silent in the middle of an answer") from error
        except OSError as error:
            raise broken(str(error)) from error
        finally:
            self.close()

    def wait_for_ever(self) -> None:
        """From now on the engine may be silent as long as it likes; `close` ends it."""
        if self._connection is not None:
            self._connection.set_timeout(None)

    def upgraded(self) -> Connection:
        """The raw byte stream after a ``101``; the caller owns it now."""
        connection = self._connection
        if connection is None:
            raise broken("the stream was taken already")
        self._connection = None
        return connection

    def close(self) -> None:
        """Drop the connection unless it was given back; releases a thread that reads the body."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self.headers.get("connection", "").lower() == "close":
            connection.close()
        else:
            self._give_back(connection)


def read_head(connection: Connection, give_back: Callable[[Connection], None]) -> Response:
    """Wait for status line and headers.

    Args:
        connection: where the request was sent.
        give_back: takes the connection once the body was read to its end.
    """
    while True:
        head = connection.receive_until(b"\r\n\r\n", _HEAD_LIMIT).decode("latin-1").split("\r\n")
        version, _, rest = head[0].partition(" ")
        code = rest[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0") or not (code.isascii() and code.isdigit()):
            raise broken("it does not speak HTTP")
        if code != "100":
            break
    headers: dict[str, str] = {}
    for line in head[1:]:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip():
            raise broken("a header line is malformed")
        headers[name.lower()] = value.strip()
    if version == "HTTP/1.0":
        headers["connection"] = "close"
    return Response(connection, give_back, int(code), headers)


def _chunked(connection: Connection) -> Iterator[bytes]:
    while True:
        line = connection.receive_until(b"\r\n", _LINE_LIMIT).decode("latin-1")
        size = _natural(line.partition(";")[0].strip(), 16)
        if size == 0:
            break
        yield from _exactly(connection, size)
        if connection.receive_until(b"\r\n", _LINE_LIMIT):
            raise broken("a chunk is longer than it said")
    while connection.receive_until(b"\r\n", _LINE_LIMIT):
        pass  # trailers


def _exactly(connection: Connection, size: int) -> Iterator[bytes]:
    while size:
        piece = connection.receive(min(size, _PIECE_SIZE))
        if not piece:
            raise broken("its answer ended too early")
        size -= len(piece)
        yield piece


def _natural(text: str, base: int) -> int:
    """A length as HTTP writes it: digits only (``int`` would take signs and underscores too)."""
    if not text or len(text) > 16 or not text.isalnum() or not text.isascii():
        raise broken(f"{text!r} is not a length")
    try:
        return int(text, base)
    except ValueError as error:
        raise broken(f"{text!r} is not a length") from error
