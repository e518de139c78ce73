"""Demultiplexes the output of a container from Docker's stream.

Without a terminal, Docker puts stdout and stderr on one stream as frames: one byte of origin
(1 stdout, 2 stderr), three zero bytes, four bytes of big-endian length, then the payload. A frame
is neither a line nor a whole character, and a read may end anywhere in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from struct import Struct
from typing import TYPE_CHECKING
from urllib.parse import quote

from buildrunner.containers.docker.api import DockerApi
from buildrunner.containers.docker.errors import Refusal
from buildrunner.containers.protocol import ErrorOutput
from buildrunner.errors import EngineError, EngineUnavailable

if TYPE_CHECKING:
    from buildrunner.containers.docker.transport import Stream

_FRAME_HEADER = Struct(">II")
_STDERR = 0x02000000
_ORIGINS = frozenset((0x00000000, 0x01000000, _STDERR))
_READ_SIZE = 256 * 1024
_ENDED = ("stopped", "exited", "removing")  # Podman's names of the state of an ended container


class FrameDemultiplexer:
    """Converts pieces of the stream, of any size, to payloads; stderr becomes `ErrorOutput`.

    Stores no payload: memory is bounded by the size of a piece.
    """

    __slots__ = ("_error", "_header", "_left")

    def __init__(self) -> None:
        self._left = 0  # bytes of the current frame that are still missing
        self._error = False  # the current frame is of stderr
        self._header = b""  # the beginning of a header that was cut by the end of a piece

    @property
    def is_torn(self) -> bool:
        """Return whether the stream stopped inside a frame."""
        return bool(self._left or self._header)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the payloads in ``data``, in order; adjacent payloads of one origin are merged."""
        position = self._left
        if position >= len(data):
            self._left -= len(data)
            return [_of(data, error=self._error)]
        runs: list[bytes] = []
        payloads = [data[:position]] if position else []
        if self._header:  # here _left was 0
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
            if (origin == _STDERR) is not self._error:
                if payloads:
                    runs.append(_of(b"".join(payloads), error=self._error))
                    payloads = []
                self._error = origin == _STDERR
            position += 8
            payloads.append(data[position : position + size])
            position += size
        if position > end:
            self._left = position - end
        else:
            self._left = 0
            self._header = data[position:]
        if payloads:
            runs.append(_of(b"".join(payloads), error=self._error))
        return runs


def _of(payload: bytes, *, error: bool) -> bytes:
    return ErrorOutput(payload) if error else payload


class OutputStream:
    """An iterator over a container's output, until the output ends.

    Back-pressure: nothing is read before the next chunk is requested, so a slow consumer slows the
    container down rather than filling memory. Any thread may call `close`.

    If the connection breaks, the rest is read from the engine's log of the container.

    Args:
        attached: the engine's answer to the attach request; read past HTTP.
        runs_on: returns whether the container still runs. Called when the engine closes the
            connection.
        rest: returns the output after the received bytes of stdout (False) and stderr (True).
    """

    __slots__ = ("_attached", "_frames", "_given", "_rest", "_resumed", "_runs", "_runs_on")

    def __init__(
        self,
        attached: Stream,
        *,
        runs_on: Callable[[], bool],
        rest: Callable[[Mapping[bool, int]], Iterator[bytes]],
    ) -> None:
        attached.wait_for_ever()
        self._attached: Stream | None = attached
        self._frames = FrameDemultiplexer()
        self._runs: list[bytes] = []  # chunks of the last read, in reverse order
        self._given = {False: 0, True: 0}
        self._runs_on = runs_on
        self._rest = rest
        self._resumed: Iterator[bytes] = iter(())

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while True:
            while self._runs:
                if run := self._runs.pop():
                    self._given[isinstance(run, ErrorOutput)] += len(run)
                    return run
            attached = self._attached
            if attached is None:
                return next(self._resumed)
            try:
                data, is_broken = attached.receive(_READ_SIZE), False
            except OSError:
                data, is_broken = b"", True
            if data:
                self._runs = self._frames.feed(data)
                self._runs.reverse()
            elif self._attached is not None:  # closed by the other side
                self.close()
                if is_broken or self._frames.is_torn or self._runs_on():
                    self._resumed = self._rest(self._given)

    def close(self) -> None:
        """Stop reading. The container continues; a blocked reader sees the end."""
        attached, self._attached = self._attached, None
        if attached is not None:
            attached.close()


LOG_OPTIONS = {"max-size": "1t", "max-file": "2"}
"""Options of the engine's log of a container: nothing is dropped while the build may need it."""


def follow(
    api: DockerApi, container_id: str, given: Mapping[bool, int] | None = None
) -> Iterator[bytes]:
    """Yield all output of a container with a log; ends when the container has ended.

    The engine's followed log may end before the last bytes (seen in 4 of 24 containers on
    Docker 20.10). So the log is then read once more, and the missing part is yielded.

    Podman drops all lines of a followed log that it has not sent 250 ms after the end of the
    container (seen in 59 of 60 containers with 9,000 lines on Podman 5.4). So the followed log
    counts only while the container runs, and the rest comes from the second reading.

    Args:
        api: the engine.
        container_id: the container.
        given: bytes of stdout (False) and stderr (True) to skip.
    """
    known = {False: 0, True: 0, **(given or {})}
    for following in (True, False):
        passed = {False: 0, True: 0}
        for chunk in _read(api, container_id, follow=following):
            if following and not _is_faithful(api, container_id):
                break
            error = isinstance(chunk, ErrorOutput)
            new = chunk[max(0, known[error] - passed[error]) :]
            passed[error] += len(chunk)
            known[error] = max(known[error], passed[error])
            if new:
                yield ErrorOutput(new) if error else new


def _is_faithful(api: DockerApi, container_id: str) -> bool:
    """Return whether the followed log has no gaps so far."""
    if api.capabilities().follows_logs_to_the_end:
        return True
    try:
        with api.client() as client:
            return client.inspect_container(container_id)["State"]["Status"] not in _ENDED
    except Refusal as refusal:
        raise refusal.as_error("the container's log can't be followed") from refusal


def rest_of_broken(api: DockerApi, container_id: str, given: Mapping[bool, int]) -> Iterator[bytes]:
    """Yield the output that an attached connection did not deliver before it broke. See `follow`.

    Raises:
        EngineUnavailable: the engine kept no log of the container, or has stopped.
    """
    try:
        yield from follow(api, container_id, given)
    except EngineError as error:
        raise EngineUnavailable(
            "the step's log is cut here: the connection that carried the step's output broke, and "
            f"the container engine does not send the rest ({error})",
            hint="Check the network to the engine, and the engine's own log, then try again.",
        ) from error


def _read(api: DockerApi, container_id: str, *, follow: bool) -> Iterator[bytes]:
    query = {"stdout": 1, "stderr": 1, "follow": int(follow)}
    try:
        log = api.stream("GET", f"/containers/{quote(container_id)}/logs", params=query)
    except Refusal as refusal:
        raise refusal.as_error("the container's log can't be read") from refusal
    log.wait_for_ever()
    frames = FrameDemultiplexer()
    for piece in log.pieces():
        yield from frames.feed(piece)
