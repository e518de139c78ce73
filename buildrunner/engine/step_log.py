"""One step's output on its way into the log: masked, and held back until a line is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.containers.engine_types import ErrorOutput

if TYPE_CHECKING:
    from buildrunner.engine.clock import Clock
    from buildrunner.engine.log_pipeline import LogPipeline

LONGEST_OPEN_LINE = 64 * 1024
"""Bytes of an open line that are kept back, which bounds the memory of a step without newlines."""

_RECENT_BYTES = 8 * 1024
_LAST_LINES = 20


class StepLog:
    """One step's output on its way into the log. One thread writes (the step's own)."""

    def __init__(self, pipeline: LogPipeline, output: StepStream, errors: StepStream) -> None:
        self._pipeline = pipeline
        self._output = output
        self._errors = errors
        self._recent = b""

    def write(self, chunk: bytes) -> None:
        """Take bytes as the container wrote them, cut anywhere; `ErrorOutput` is of stderr."""
        stream = self._errors if isinstance(chunk, ErrorOutput) else self._output
        self._remember(stream.write(chunk))

    def line(self, text: str) -> None:
        """One whole line of ours about this step, behind what it has written."""
        data = self._pipeline.masked(text)
        if self._pipeline.has_said(self._output.prefix + data):
            return
        with self._pipeline.lock:
            self._output.end_line()
            self._errors.end_line()
            self._pipeline.emit(self._output, b"", end=data)

    def remember(self, text: str) -> None:
        """Count a line of ours among the last ones: a step that never ran has none of its own."""
        self._remember(self._pipeline.masked(text))

    def finish(self) -> None:
        """The step will write no more: hand on what is left, and end its last line."""
        self._remember(self._output.finish())
        self._remember(self._errors.finish())

    def last_lines(self) -> tuple[str, ...]:
        """The end of what the step wrote: at most 20 lines, masked, without prefix."""
        text = self._recent.decode("utf-8", "replace")
        lines = text.rstrip("\n").split("\n") if text else []
        if len(self._recent) == _RECENT_BYTES and len(lines) > 1:
            del lines[0]  # its beginning is gone
        return tuple(lines[-_LAST_LINES:])

    def _remember(self, data: bytes) -> None:
        self._recent = (self._recent + data if len(data) < _RECENT_BYTES else data)[-_RECENT_BYTES:]


class StepStream:
    """Stdout or stderr of one step: what of it is masked, stored already, and not a whole line."""

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
        """When the oldest byte of the open line came (monotonic seconds)."""
        self._pipeline = pipeline
        self._clock = clock
        self._mask = pipeline.masker.stream() if pipeline.masker else None
        self._left_out = stored
        self._tail = bytearray()

    def write(self, chunk: bytes) -> bytes:
        """Take bytes; those that can be shown by now."""
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
        """No more comes; the rest of what can be shown."""
        rest = self._mask.finish() if self._mask is not None else b""
        with self._pipeline.lock:
            self._tail += self._new(rest)
            self.end_line()
        return rest

    def take_tail(self) -> bytes:
        """The open line, which is then nobody's. Needs the pipeline's lock."""
        tail = bytes(self._tail)
        self._tail.clear()
        return tail

    def end_line(self) -> None:
        """Hand on the open line, with its newline. Needs the pipeline's lock."""
        self._pipeline.let_go(self)
        tail = self.take_tail()
        if tail or self._pipeline.is_open(self):
            self._pipeline.emit(self, tail, end=b"" if tail.endswith(b"\n") else b"\n")

    def _new(self, data: bytes) -> bytes:
        """What is not stored yet."""
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
