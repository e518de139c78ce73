"""Follows a build over an unreliable network: yields every byte of the log once, in order.

The client keeps the position: after a lost connection, the stream continues behind the last
complete message. Data that a server sends twice is dropped.
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.errors import ServerError, ServerUnavailable
from buildrunner.retry import backoff

if TYPE_CHECKING:
    import httpx
    from httpx_sse import ServerSentEvent

# The server sends a comment every 15 s: a connection that is silent for longer is dead.
_SILENCE_S = 40.0
_CONNECT_S = 10.0
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0


class LogPiece(msgspec.Struct, frozen=True, tag=True):
    """Bytes of the log, in order.

    Attributes:
        offset: position of the first byte in the log.
        data: the bytes.
        chunks: the parts of ``data`` in order, if the caller requested them: the number of bytes,
            the time of arrival (microseconds since 1970), the step (-1: the build itself).
    """

    offset: int
    data: bytes
    chunks: tuple[tuple[int, int, int], ...] = ()


class EventPiece(msgspec.Struct, frozen=True, tag=True):
    """A build event, as JSON (see `buildrunner.engine.events`)."""

    sequence: int
    line: bytes


class StateChange(msgspec.Struct, frozen=True, tag=True):
    """The present state of the build; ``waiting`` is its `WaitReason` until it begins."""

    status: str
    waiting: dict[str, Any] | None


class StreamEnd(msgspec.Struct, frozen=True, tag=True):
    """The build has ended, and its whole log was sent."""

    status: str


StreamItem = LogPiece | EventPiece | StateChange | StreamEnd


class BuildStream:
    """One build's stream.

    Args:
        http: connections to the server.
        path: of the stream.
        check: raises the error for an answer that reports a failure.
        unreachable: returns the error for a connection that failed.
    """

    def __init__(
        self,
        http: httpx.Client,
        path: str,
        *,
        check: Callable[[httpx.Response], None],
        unreachable: Callable[[httpx.TransportError], ServerUnavailable],
    ) -> None:
        self._http = http
        self._path = path
        self._check = check
        self._unreachable = unreachable
        self._offset = 0
        self._sequence: int | None = None
        self._chunks = False

    def items(
        self,
        *,
        offset: int,
        sequence: int | None,
        chunks: bool,
        stop: threading.Event,
        on_lost: Callable[[ServerError], object],
        wait_limit_s: float,
    ) -> Iterator[StreamItem]:
        """See `ServerClient.follow`."""
        self._offset, self._sequence, self._chunks = offset, sequence, chunks
        lost_at: float | None = None
        failures = 0
        while not stop.is_set():
            try:
                for item in self._connection():
                    lost_at, failures = None, 0
                    if stop.is_set():
                        return
                    yield item
                    if isinstance(item, StreamEnd):
                        return
                failure = ServerUnavailable("the server ended the stream")
            except ServerUnavailable as error:
                failure = error
            now = time.monotonic()
            if lost_at is None:
                lost_at = now
                on_lost(failure)
            if now - lost_at > wait_limit_s:
                raise failure
            failures += 1
            stop.wait(backoff(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S))

    def _connection(self) -> Iterator[StreamItem]:
        """Yield the data of one connection; raises `ServerUnavailable` if it breaks."""
        import httpx
        from httpx_sse import SSEError, connect_sse

        query: dict[str, Any] = {"offset": self._offset}
        if self._sequence is not None:
            query["events"] = self._sequence
        if self._chunks:
            query["chunks"] = "true"
        timeout = httpx.Timeout(_SILENCE_S, connect=_CONNECT_S)
        try:
            with connect_sse(
                self._http, "GET", self._path, params=query, timeout=timeout
            ) as source:
                self._check(source.response)
                for message in source.iter_sse():
                    item = self._item(message)
                    if item is not None:
                        yield item
        except SSEError as error:  # this is a TransportError, too
            raise ServerUnavailable("the server sends no stream of events") from error
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _item(self, message: ServerSentEvent) -> StreamItem | None:
        if not message.data:
            return None  # such as the pause before a reconnect
        try:
            body = msgspec.json.decode(message.data)
            match message.event:
                case "log":
                    return self._log(body)
                case "event":
                    return self._event(body["sequence"], message.data.encode())
                case "state":
                    return StateChange(body["status"], body.get("waiting"))
                case "end":
                    return StreamEnd(body["status"])
                case _:
                    return None  # an event of a newer server
        except (msgspec.DecodeError, RecursionError, KeyError, TypeError, ValueError) as error:
            raise ServerUnavailable("the server's stream is damaged") from error

    def _log(self, body: dict[str, Any]) -> LogPiece | None:
        text = body.get("text")
        data = base64.b64decode(body["base64"]) if text is None else text.encode()
        offset = body["offset"]
        if offset > self._offset:
            raise ServerUnavailable(f"the server left out bytes {self._offset} to {offset}")
        if offset < self._offset:  # the server repeats data
            data, body = data[self._offset - offset :], {}
        if not data:
            return None
        piece = LogPiece(self._offset, data, tuple(map(tuple, body.get("chunks", ()))))
        self._offset += len(data)
        return piece

    def _event(self, sequence: int, line: bytes) -> EventPiece | None:
        if self._sequence is None or sequence <= self._sequence:
            return None
        self._sequence = sequence
        return EventPiece(sequence, line)
