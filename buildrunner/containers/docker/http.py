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

import contextlib
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping

from buildrunner.errors import EngineUnavailable

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
        return self.is_readable(0)

    def is_readable(self, timeout_s: float) -> bool:
        """Wait until something can be read: data, or the end of the stream."""
        if self._early or self._socket.fileno() < 0:
            return True
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

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

    def is_readable(self, timeout_s: float) -> bool:
        """Wait until more of the body, or its end, has come; True when the body was read."""
        return self._connection is None or self._connection.is_readable(timeout_s)

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
