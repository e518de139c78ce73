"""Converts a step's raw bytes to whole, masked, prefixed lines in the build's log.

Order of work for each chunk: mask, cut into lines, prefix, write to the sink. Lines of parallel
steps, and of one step's stdout and stderr, are never mixed: bytes without a newline wait for
the rest of their line. A line that stays open for a second (a progress bar), or grows beyond
64 KiB, is written unfinished. If another origin writes meanwhile, a newline is written first, and
the rest of the line gets its own prefix.

The masked bytes of a stream do not depend on how they were cut into chunks. So a build that is
resumed reads a step's output again from the beginning, and skips the stored part.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import msgspec

from buildrunner.containers.protocol import ErrorOutput
from buildrunner.engine.cancellation import Clock
from buildrunner.engine.log.masking import Masker


class LogChunk(msgspec.Struct, frozen=True):
    """Lines of one origin, already masked and prefixed, in Cloud Build's own form.

    The log is the concatenation of all chunks. A chunk ends with a newline, unless a step leaves
    its line open for a second (a progress bar) or writes more than 64 KiB without one: then the
    next chunk has the same origin and continues that line, or ends it.

    Attributes:
        data: lines, the last one perhaps open, with the step's own bytes.
        step: index of the step that wrote them; None for the build's own lines.
        at: the time at which the chunk was written.
        output: number of bytes of the step's own masked output in ``data``, without prefixes
            and added newlines. A resumed build skips this number of bytes.
        error: whether the output is from stderr.
    """

    data: bytes
    step: int | None
    at: datetime
    output: int = 0
    error: bool = False


class LogSink(Protocol):
    """Takes a build's log. ``write`` is called from one thread at a time, in log order."""

    def write(self, chunk: LogChunk) -> None:
        """Take one chunk. Must not block for long, since that delays the build's output."""
        ...

    def close(self) -> None:
        """End the log. All chunks are durable afterwards."""
        ...


class TeeSink:
    """Writes every chunk to each of ``sinks``, in order."""

    def __init__(self, *sinks: LogSink) -> None:
        self._sinks = sinks

    def write(self, chunk: LogChunk) -> None:
        """Write the chunk to all sinks."""
        for sink in self._sinks:
            sink.write(chunk)

    def close(self) -> None:
        """Close all sinks, in order."""
        for sink in self._sinks:
            sink.close()


OPEN_LINE_S = 1.0
"""The longest time for which an unfinished line is held back."""

_LOOK_EVERY_S = 0.25


class StoredLog(msgspec.Struct, frozen=True, kw_only=True):
    """The stored log of a build that is resumed.

    Attributes:
        output: bytes of masked output by step and stream (True is stderr).
        said: the build's own lines, each with prefix and newline.
        is_torn: the log does not end with a newline.
    """

    output: dict[tuple[int, bool], int] = {}
    said: frozenset[bytes] = frozenset()
    is_torn: bool = False


class LogPipeline:
    """Writes the log of a build, one line at a time. Any thread may write.

    Args:
        sink: takes the log.
        clock: the clock for the times of chunks.
        on_failure: called once, from the writing thread, if the sink fails. Later
            output is dropped, since the build will be stopped.
        stored: the stored part of the log, if the build is resumed.
    """

    def __init__(
        self,
        sink: LogSink,
        clock: Clock,
        on_failure: Callable[[Exception], None],
        stored: StoredLog | None = None,
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._on_failure = on_failure
        self._broken = False
        self._stored = stored or StoredLog()
        self._is_torn = self._stored.is_torn
        self._open: StepStream | None = None
        self._waiting: set[StepStream] = set()
        self._flusher: threading.Thread | None = None
        self._closed = threading.Event()
        self.lock = threading.Lock()
        """The caller must hold this lock for a method whose docstring says "Needs the lock"."""
        self.masker: Masker | None = None
        """Set before the first step starts; None while there are no secrets."""

    def line(self, text: str) -> None:
        """Write lines of the build itself, without a prefix."""
        data = self.masked(text)
        with self.lock:
            self._end_open_line(None)
            self._hand_on(data, None)

    def line_once(self, text: str) -> None:
        """Write a line of the build, unless the build wrote it before it was resumed."""
        if not self.has_said(self.masked(text)):
            self.line(text)

    def has_said(self, data: bytes) -> bool:
        """Return whether the build wrote these lines before it was resumed."""
        return data in self._stored.said

    def step(self, index: int, prefix: str) -> StepLog:
        """Return the log of one step. An empty ``prefix`` adds none (a build with one step)."""
        stored = self._stored.output
        streams = tuple(
            StepStream(
                self, index, prefix.encode(), self._clock, error, stored.get((index, error), 0)
            )
            for error in (False, True)
        )
        return StepLog(self, streams[0], streams[1])

    def flush_idle(self, now: float) -> None:
        """Write lines that have been open for `OPEN_LINE_S` at ``now`` (monotonic seconds)."""
        with self.lock:
            for stream in sorted(self._waiting, key=lambda one: (one.index, one.error)):
                if now - stream.open_since >= OPEN_LINE_S:
                    self.emit(stream, stream.take_tail())
                    self._waiting.discard(stream)

    def close(self) -> None:
        """Stop watching open lines. All steps have finished their logs before."""
        self._closed.set()
        if self._flusher is not None:
            self._flusher.join()

    def masked(self, text: str) -> bytes:
        """Return ``text`` and a newline, with every secret masked."""
        return self.masked_text(text).encode("utf-8", "surrogateescape") + b"\n"

    def masked_text(self, text: str) -> str:
        """Return ``text`` with every secret masked."""
        return text if self.masker is None else self.masker.mask_text(text)

    def emit(self, stream: StepStream, data: bytes, *, end: bytes = b"") -> None:
        """Write masked bytes of one stream with a prefix before each line. Needs the lock.

        ``end`` is written after them, and does not count as output of the step.
        """
        output = len(data)
        data += end
        if not data:
            return
        self._end_open_line(stream)
        ended = data.endswith(b"\n")
        if stream.prefix:
            inner = data[:-1] if ended else data
            inner = inner.replace(b"\n", b"\n" + stream.prefix)
            head = b"" if self._open is stream else stream.prefix
            data = b"".join((head, inner, b"\n" if ended else b""))
        self._hand_on(data, stream.index, output, error=stream.error)
        self._open = None if ended else stream

    def is_open(self, stream: StepStream) -> bool:
        """Return whether the log ends with an open line of ``stream``. Needs the lock."""
        return self._open is stream

    def look_after(self, stream: StepStream) -> None:
        """Register an open line of ``stream`` for `flush_idle`. Needs the lock."""
        self._waiting.add(stream)
        if self._flusher is None:
            self._flusher = threading.Thread(target=self._flush_by_time, daemon=True)
            self._flusher.start()

    def let_go(self, stream: StepStream) -> None:
        """Unregister ``stream``, which has no open line. Needs the lock."""
        self._waiting.discard(stream)

    def _flush_by_time(self) -> None:
        while not self._closed.wait(_LOOK_EVERY_S):
            self.flush_idle(self._clock.monotonic())

    def _end_open_line(self, writer: StepStream | None) -> None:
        if self._is_torn:  # torn by a crash
            self._is_torn = False
            self._hand_on(b"\n", None)
        if self._open is not None and self._open is not writer:
            self._hand_on(b"\n", self._open.index, error=self._open.error)
            self._open = None

    def _hand_on(
        self, data: bytes, step: int | None, output: int = 0, *, error: bool = False
    ) -> None:
        if self._broken:
            return
        try:
            self._sink.write(LogChunk(data, step, self._clock.now(), output, error))
        except Exception as problem:  # noqa: BLE001  (any error of a sink stops the build)
            self._broken = True
            self._on_failure(problem)


LONGEST_OPEN_LINE = 64 * 1024
"""The most bytes of an open line that are held back, to limit memory."""

_RECENT_BYTES = 8 * 1024
_LAST_LINES = 20


class StepLog:
    """The log of one step. Only the step's own thread writes."""

    def __init__(self, pipeline: LogPipeline, output: StepStream, errors: StepStream) -> None:
        self._pipeline = pipeline
        self._output = output
        self._errors = errors
        self._recent = b""

    def write(self, chunk: bytes) -> None:
        """Take bytes of the container, cut anywhere; `ErrorOutput` is from stderr."""
        stream = self._errors if isinstance(chunk, ErrorOutput) else self._output
        self._remember(stream.write(chunk))

    def line(self, text: str) -> None:
        """Write a line about this step after the step's output so far."""
        data = self._pipeline.masked(text)
        if self._pipeline.has_said(self._output.prefix + data):
            return
        with self._pipeline.lock:
            self._output.end_line()
            self._errors.end_line()
            self._pipeline.emit(self._output, b"", end=data)

    def remember(self, text: str) -> None:
        """Add a line to `last_lines`, for a step whose program did not run."""
        self._remember(self._pipeline.masked(text))

    def finish(self) -> None:
        """Write the rest of the step's output, and end its last line."""
        self._remember(self._output.finish())
        self._remember(self._errors.finish())

    def last_lines(self) -> tuple[str, ...]:
        """Return the end of the step's output: at most 20 lines, masked, without prefix."""
        text = self._recent.decode("utf-8", "replace")
        lines = text.rstrip("\n").split("\n") if text else []
        if len(self._recent) == _RECENT_BYTES and len(lines) > 1:
            del lines[0]  # its beginning was dropped
        return tuple(lines[-_LAST_LINES:])

    def _remember(self, data: bytes) -> None:
        self._recent = (self._recent + data if len(data) < _RECENT_BYTES else data)[-_RECENT_BYTES:]


class StepStream:
    """Stdout or stderr of one step: masks it, skips the stored part, and holds its open line."""

    def __init__(
        self,
        pipeline: LogPipeline,
        index: int,
        prefix: bytes,
        clock: Clock,
        error: bool,
        stored: int,
    ) -> None:
        self.index = index
        self.prefix = prefix
        self.error = error
        self.open_since = 0.0
        """Arrival time of the oldest byte of the open line (monotonic seconds)."""
        self._pipeline = pipeline
        self._clock = clock
        self._mask = pipeline.masker.stream() if pipeline.masker else None
        self._left_out = stored
        self._tail = bytearray()

    def write(self, chunk: bytes) -> bytes:
        """Take bytes. Returns those that can be shown by now."""
        if self._mask is not None:
            chunk = self._mask.feed(chunk)
        shown = chunk
        if self._left_out:
            chunk = self._new(chunk)
        if not chunk:
            return shown
        with self._pipeline.lock:
            cut = chunk.rfind(b"\n") + 1
            if cut:
                self._pipeline.emit(self, self.take_tail() + chunk[:cut])
                chunk = chunk[cut:]
            self._keep(chunk)
        return shown

    def finish(self) -> bytes:
        """Write and return the rest at the end of the stream, and end its last line."""
        rest = self._mask.finish() if self._mask is not None else b""
        with self._pipeline.lock:
            self._tail += self._new(rest)
            self.end_line()
        return rest

    def take_tail(self) -> bytes:
        """Remove and return the open line. Needs the pipeline's lock."""
        tail = bytes(self._tail)
        self._tail.clear()
        return tail

    def end_line(self) -> None:
        """Write the open line with a newline. Needs the pipeline's lock."""
        self._pipeline.let_go(self)
        tail = self.take_tail()
        if tail or self._pipeline.is_open(self):
            self._pipeline.emit(self, tail, end=b"" if tail.endswith(b"\n") else b"\n")

    def _new(self, data: bytes) -> bytes:
        """Return the part that is not stored yet."""
        new = data[self._left_out :]
        self._left_out -= len(data) - len(new)
        return new

    def _keep(self, rest: bytes) -> None:
        if not rest:
            if not self._tail:
                self._pipeline.let_go(self)
            return
        if not self._tail:
            self.open_since = self._clock.monotonic()
        self._tail += rest
        if len(self._tail) > LONGEST_OPEN_LINE:
            self._pipeline.emit(self, self.take_tail())
            self._pipeline.let_go(self)
        else:
            self._pipeline.look_after(self)
