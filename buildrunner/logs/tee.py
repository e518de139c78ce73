"""One log, several takers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from buildrunner.logs.sink import LogChunk, LogSink


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
