"""Where a build's log goes."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec


class LogChunk(msgspec.Struct, frozen=True):
    """Lines of one origin, already masked and prefixed, in Cloud Build's own form.

    All chunks put together are the log. A chunk ends with a newline, except where a step leaves its
    line open for a second (a progress bar) or writes more than 64 KiB without one: then the next
    chunk is of the same origin and goes on with that line, or ends it.

    Attributes:
        data: lines, the last one perhaps open; bytes as the step wrote them.
        step: index of the step they come from, None for the build's own lines.
        at: when they arrived.
        output: how many bytes of the step's own output, masked, are in ``data``: all but prefixes
            and newlines of ours. A build that is resumed knows by it what is stored already.
        error: that output is of stderr.
    """

    data: bytes
    step: int | None
    at: datetime
    output: int = 0
    error: bool = False


class LogSink(Protocol):
    """Takes a build's log. ``write`` is called from one thread at a time, in log order."""

    def write(self, chunk: LogChunk) -> None:
        """Take one chunk. Must not block for long: it holds up the build's output."""
        ...

    def close(self) -> None:
        """No more chunks; everything taken is durable afterwards."""
        ...


class TeeSink:
    """Gives every chunk to each of ``sinks``, in their order."""

    def __init__(self, *sinks: LogSink) -> None:
        self._sinks = sinks

    def write(self, chunk: LogChunk) -> None:
        """Give the chunk to all."""
        for sink in self._sinks:
            sink.write(chunk)

    def close(self) -> None:
        """Close all, in order."""
        for sink in self._sinks:
            sink.close()
