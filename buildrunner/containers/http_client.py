"""A lean HTTP/1.1 client for one container engine.

Why our own: a step costs a handful of small requests, and what counts is how soon the first one
leaves the process. ``http.client`` takes 28 ms to import (it pulls in the whole email package),
docker-py 94 ms; this one takes the 3 ms that ``socket`` needs. An engine speaks a small, regular
part of HTTP/1.1 (content-length and chunked bodies, no redirects, no compression, no cookies), and
that part is all there is here, with strict limits: a peer that leaves it is dropped.

Connections are kept alive in one pool that all threads share; a request takes one, and gives it
back when its answer has been read to the end. A streaming answer, an attach (``101 UPGRADED``) or
a pending ``wait`` keeps its own connection meanwhile, so that nothing waits for anything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.containers.http_connection import Connection, Stopped, broken
from buildrunner.containers.http_response import read_head
from buildrunner.errors import EngineUnavailable

if TYPE_CHECKING:
    import socket
    import threading
    from collections.abc import Callable, Iterable, Mapping

    from buildrunner.containers.http_response import Response

ANSWER_TIMEOUT_S = 300.0
"""How long an engine may be silent before it counts as gone. Generous: making or starting a
container may copy a large folder of its image into a volume first."""

_CHUNK_SIZE = 256 * 1024
_IDLE_CONNECTIONS = 8

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/:@")


def quoted(text: str) -> str:
    """``text`` percent-encoded for a path or a query (``/``, ``:`` and ``@`` stay readable)."""
    return "".join(chr(byte) if byte in _UNRESERVED else f"%{byte:02X}" for byte in text.encode())


class PendingResponse:
    """A request that was sent and whose answer was not read yet."""

    __slots__ = ("_connection", "_give_back")

    def __init__(self, connection: Connection, give_back: Callable[[Connection], None]) -> None:
        self._connection = connection
        self._give_back = give_back

    def head(self) -> Response:
        """Wait for status line and headers."""
        try:
            return read_head(self._connection, self._give_back)
        except TimeoutError as error:
            self._connection.close()
            raise EngineUnavailable(
                f"the container engine did not answer within {ANSWER_TIMEOUT_S:.0f} s",
                hint="It is overloaded or hangs: look at its log (journalctl -u docker).",
            ) from error
        except OSError as error:
            self._connection.close()
            raise broken(str(error)) from error
        except (EngineUnavailable, Stopped):
            self._connection.close()
            raise

    def close(self) -> None:
        """Drop it."""
        self._connection.close()


class HttpClient:
    """Requests to one engine over pooled connections. Thread-safe.

    Args:
        connect: opens a new socket to the engine, or raises EngineUnavailable.
        host: value of the Host header.
    """

    def __init__(self, connect: Callable[[], socket.socket], *, host: str = "docker") -> None:
        self._connect = connect
        self._host = host
        self._idle: list[Connection] = []  # append and pop are atomic: no lock

    def request(
        self,
        method: str,
        target: str,
        *,
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> Response:
        """Send a request and wait for the head of its answer (see `send`)."""
        return self.send(method, target, body=body, headers=headers, timeout_s=timeout_s).head()

    def send(
        self,
        method: str,
        target: str,
        *,
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
        stop: threading.Event | None = None,
    ) -> PendingResponse:
        """Send a request; its answer is awaited with ``head()``.

        Args:
            method: HTTP method.
            target: path and query, encoded (see `quoted`).
            body: bytes, or pieces that are sent chunked as they come.
            headers: further headers.
            timeout_s: how long the engine may be silent; None for ever.
            stop: when set, reading the answer ends with Stopped and the connection is dropped;
                the engine may be silent for ever then.

        Raises:
            EngineUnavailable: no connection, or the engine went away.
        """
        head = [f"{method} {target} HTTP/1.1", f"Host: {self._host}"]
        head += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if isinstance(body, bytes):
            if body or method in ("POST", "PUT"):
                head.append(f"Content-Length: {len(body)}")
        else:
            head.append("Transfer-Encoding: chunked")
        start = ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")
        connection = self._send_head(start + body if isinstance(body, bytes) else start, timeout_s)
        if not isinstance(body, bytes):
            _send_chunks(connection, body)
        if stop is not None:
            connection.stop_on(stop)
        return PendingResponse(connection, self.give_back)

    def give_back(self, connection: Connection) -> None:
        """Take back a connection whose last answer was read to the end."""
        connection.stop_on(None)
        if len(self._idle) < _IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Drop all idle connections; later requests open new ones."""
        while self._idle:
            self._idle.pop().close()

    def _send_head(self, data: bytes, timeout_s: float | None) -> Connection:
        while True:
            connection = self._take()
            try:
                connection.set_timeout(timeout_s)
                connection.send(data)
            except OSError as error:
                connection.close()
                if connection.used:
                    continue  # it went stale in the pool, and nothing of ours was read
                raise broken(str(error)) from error
            connection.used = True
            return connection

    def _take(self) -> Connection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return Connection(self._connect())
            if not connection.is_stale():
                return connection
            connection.close()


def _send_chunks(connection: Connection, pieces: Iterable[bytes]) -> None:
    """Send pieces as chunks of some 256 KiB, however small or large the pieces are.

    An engine that refuses may answer and close before it has read all: its answer then says more
    than our broken pipe, so that a failing send only ends the sending.
    """
    try:
        gathered: list[bytes] = []
        size = 0
        for piece in pieces:
            gathered.append(piece)
            size += len(piece)
            if size >= _CHUNK_SIZE:
                connection.send(b"%x\r\n%b\r\n" % (size, b"".join(gathered)))
                gathered, size = [], 0
        if size:
            connection.send(b"%x\r\n%b\r\n" % (size, b"".join(gathered)))
        connection.send(b"0\r\n\r\n")
    except (BrokenPipeError, ConnectionResetError):
        return
    except BaseException:
        connection.close()
        raise
