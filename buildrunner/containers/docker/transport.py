"""Connections to one engine beneath the Docker SDK's client, and streamed answers.

The SDK sends its requests by `requests`, whose adapters choose the connections. `EngineAdapter`
opens the sockets of endpoint.py for every kind of address, limits the size of an answer, and turns
each failure into an error of ours. The SDK's own adapters have three gaps: they follow symbolic
links to a socket, their ssh connections can't be closed from another thread, and they don't notice
when the machine of a silent engine is gone.

This module imports `requests` and the SDK: it is imported with the first request, not before.
"""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from http.client import IncompleteRead
from typing import Any, NamedTuple

from docker import APIClient
from requests import PreparedRequest, RequestException, Response, Session, Timeout
from requests.adapters import HTTPAdapter
from urllib3 import BaseHTTPResponse, HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

from buildrunner.containers.docker.endpoint import Endpoint, open_socket, ssh_failure
from buildrunner.containers.docker.errors import EndlessLine, Refusal, broken, message_of
from buildrunner.errors import EngineUnavailable

_READ_SIZE = 256 * 1024
_MIB = 1024 * 1024
_HEAD_BYTES = 64 * 1024
_ERROR_BYTES = _MIB
_IDLE_CONNECTIONS = 32


class AnswerLimits(NamedTuple):
    """The largest size of the answer to one request.

    Attributes:
        size_bytes: of its body.
        values: JSON values in it. A value of 2 bytes takes up to 200 bytes in memory.
    """

    size_bytes: int
    values: int


_TRUSTED = AnswerLimits(64 * _MIB, 5_000_000)
_UNTRUSTED = AnswerLimits(8 * _MIB, 200_000)


class EngineClient(APIClient):
    """The SDK's client of an engine, without connections: adapters are mounted on it.

    The SDK's own constructor reads the Docker config of the process, and fails if one login in it
    can't be read. Then no build could run, and nothing could be cleaned up.

    Args:
        base_url: begins the URL of every request.
        version: of the API.
        timeout_s: seconds that the engine may be silent.
    """

    def __init__(self, base_url: str, version: str, timeout_s: float) -> None:
        Session.__init__(self)
        self.base_url = base_url
        self.timeout = timeout_s  # type: ignore[assignment]  # types-docker says int
        self._version = version
        self._general_configs: dict[str, Any] = {}


class EngineConnection(HTTPConnection):
    """An HTTP connection to an engine.

    Args:
        endpoint: where the engine is.
        opened: gets every connection that is open.
        arguments: see `HTTPConnection`.
    """

    def __init__(
        self, *arguments: Any, endpoint: Endpoint, opened: OpenConnections, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self._endpoint = endpoint
        self._opened = opened
        self.stream: socket.socket | None = None
        """The socket, also after the HTTP part of the conversation."""

    def connect(self) -> None:
        """Open the socket. Raises EngineUnavailable."""
        self.sock = self.stream = open_socket(self._endpoint)
        self.sock.settimeout(self.timeout)
        self._opened.add(self)

    def shut_down(self) -> None:
        """End the conversation, from any thread: a thread that reads sees the end."""
        if self.stream is not None:
            with contextlib.suppress(OSError):
                self.stream.shutdown(socket.SHUT_RDWR)


class OpenConnections:
    """The connections of one adapter that may be in use. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: weakref.WeakSet[EngineConnection] = weakref.WeakSet()

    def add(self, connection: EngineConnection) -> None:
        """Note a connection."""
        with self._lock:
            self._connections.add(connection)

    def shut_down(self) -> None:
        """End all conversations."""
        with self._lock:
            for connection in self._connections:
                connection.shut_down()


class EngineAdapter(HTTPAdapter):
    """Sends the requests of a `requests.Session` to an engine. Thread-safe.

    Args:
        endpoint: where the engine is.
        keep: whether connections are reused. False for streamed answers, since closing such an
            answer would hit the connection's next request.
    """

    def __init__(self, endpoint: Endpoint, *, keep: bool) -> None:
        super().__init__()
        self._endpoint = endpoint
        self._limits = _TRUSTED if endpoint.trusted else _UNTRUSTED
        self._opened = OpenConnections()
        self._pool = self._new_pool() if keep else None

    def _new_pool(self) -> HTTPConnectionPool:
        pool = HTTPConnectionPool(
            "docker",
            maxsize=_IDLE_CONNECTIONS,
            endpoint=self._endpoint,
            opened=self._opened,
        )
        pool.ConnectionCls = EngineConnection
        return pool

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        """Return the pool of connections for a request: an engine has no proxy."""
        return self._pool or self._new_pool()

    def request_url(self, request: PreparedRequest, _: Mapping[str, str] | None) -> str:
        """Return the path in the request line."""
        return request.path_url

    def send(
        self, request: PreparedRequest, stream: bool = False, *arguments: Any, **options: Any
    ) -> Response:
        """Send a request and wait for its answer: the head with ``stream``, else all of it.

        Raises:
            Refusal: the engine answered with an error.
            EngineUnavailable: the engine did not answer.
        """
        try:
            response = super().send(request, True, *arguments, **options)
        except Timeout as error:
            raise EngineUnavailable(
                "the container engine did not answer in time",
                hint="It is overloaded or hangs: look at its log (journalctl -u docker).",
            ) from error
        except RequestException as error:
            raise ssh_failure(self._endpoint) or broken(_reason(error)) from error
        if sum(len(name) + len(text) for name, text in response.headers.items()) > _HEAD_BYTES:
            response.close()
            raise broken(f"the head of its answer is larger than {_HEAD_BYTES >> 10} KiB")
        if response.status_code >= 400 or response.is_redirect:
            connection = response.raw.connection
            message = message_of(_whole(response.raw, _ERROR_BYTES))
            if self._pool is None and connection is not None:
                connection.close()
            raise Refusal(response.status_code, message)
        if not stream:
            body = _whole(response.raw, self._limits.size_bytes)
            self._check_values(body)
            response.raw = io.BytesIO(body)
        return response

    def _check_values(self, body: bytes) -> None:
        """Refuse an answer that would take much memory as JSON, whatever its declared type."""
        values = body.count(b",") + body.count(b"[") + body.count(b"{")
        if values > self._limits.values:
            raise broken(f"its answer has more than {self._limits.values:,} values")

    def shut_down(self) -> None:
        """End all conversations, from any thread."""
        self._opened.shut_down()

    def close(self) -> None:
        """Drop idle connections."""
        if self._pool is not None:
            self._pool.close()
        super().close()


class Stream:
    """The body of an answer that is read while it arrives. Owns its connection.

    One thread reads; any thread may `close`. A garbage-collected stream is closed.
    """

    def __init__(self, response: Response) -> None:
        self._response = response
        connection = response.raw.connection
        # Already released if the body is empty.
        self._connection = connection if isinstance(connection, EngineConnection) else None
        self._lock = threading.Lock()  # guards the two fields below
        self._is_read = False
        self._is_closed = False
        # Errors reference the frames that read a stream, in a cycle: the garbage collector would
        # find the open socket first.
        self._drop = weakref.finalize(self, _drop, response, self._connection)
        self._drop.atexit = False

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it arrives. Leaving early closes the stream.

        Raises:
            EngineUnavailable: the stream breaks off, or another thread has closed it.
        """
        try:
            while piece := self._piece():
                yield piece
        finally:
            self.close()

    def _piece(self) -> bytes:
        with self._lock:
            if self._is_closed:
                raise broken("this end has closed it")
            self._is_read = True
        try:
            return _piece(self._response.raw)
        finally:
            with self._lock:
                self._is_read = False
                is_closed = self._is_closed
            if is_closed:
                self._drop()

    def lines(self, limit: int) -> Iterator[bytes]:
        """Yield the body's lines without line ends, except blank lines.

        Args:
            limit: the most bytes of a line.

        Raises:
            EngineUnavailable: the stream breaks off.
            EndlessLine: a line exceeds the limit.
        """
        rest = b""
        for piece in self.pieces():
            *lines, rest = (rest + piece).split(b"\n")
            if len(rest) > limit:
                raise EndlessLine("the engine's answer has a line without end")
            yield from (line for line in lines if line.strip())
        if rest.strip():
            yield rest

    def wait_for_ever(self) -> None:
        """Remove the time limit on the engine's silence; `close` still ends the stream."""
        if self._connection is not None and self._connection.stream is not None:
            self._connection.stream.settimeout(None)

    def receive(self, size: int) -> bytes:
        """Return the next bytes after the HTTP upgrade; empty at the end of the stream.

        Raises:
            OSError: the connection broke.
        """
        if self._connection is None or self._connection.stream is None:
            return b""
        return self._connection.stream.recv(size)

    def send(self, data: bytes) -> None:
        """Send bytes after the HTTP upgrade.

        Raises:
            EngineUnavailable: the connection broke.
        """
        if self._connection is None or self._connection.stream is None:
            raise broken("it has closed the connection")
        try:
            self._connection.stream.sendall(data)
        except OSError as error:
            raise broken(_reason(error)) from error

    def close(self) -> None:
        """Close the connection; a thread that reads sees the end."""
        if self._connection is not None:
            self._connection.shut_down()
        with self._lock:
            self._is_closed = True
            is_read = self._is_read
        # Otherwise the reader closes it: a socket must not be closed while it is read.
        if not is_read:
            self._drop()


def _drop(response: Response, connection: EngineConnection | None) -> None:
    response.close()
    if connection is not None:
        connection.close()


def _whole(raw: BaseHTTPResponse, limit: int) -> bytes:
    size = 0
    pieces = []
    while piece := _piece(raw):
        size += len(piece)
        if size > limit:
            raw.close()
            raise broken(f"its answer is larger than {limit // _MIB} MiB")
        pieces.append(piece)
    return b"".join(pieces)


def _piece(raw: BaseHTTPResponse) -> bytes:
    """Return the next piece of a body; empty at its end."""
    try:
        return raw.read1(_READ_SIZE, decode_content=False)
    except ReadTimeoutError as error:
        raise broken("it fell silent in the middle of an answer") from error
    except (HTTPError, OSError) as error:
        raise broken(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Return the message of the first error in a chain."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        if isinstance(error, IncompleteRead):  # below is how the next length could not be read
            return "its answer is incomplete"
        error = earlier
    return str(error) or type(error).__name__


class Upload:
    """A request's body in pieces, sent in chunks of some 256 KiB even if the pieces are small.

    Attributes:
        failure: the error that the iterator of pieces raised.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.failure: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        gathered: list[bytes] = []
        size = 0
        try:
            for piece in self._pieces:
                gathered.append(piece)
                size += len(piece)
                if size >= _READ_SIZE:
                    yield b"".join(gathered)
                    gathered, size = [], 0
        except Exception as error:
            self.failure = error
            raise
        yield b"".join(gathered)
