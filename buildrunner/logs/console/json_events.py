"""``--output json``: events and log lines as JSON, one a line, in the order in which they happened.

An event is an object with ``event`` (its kind, see `buildrunner.engine.events`) and ``at``; a line
of the log is ``{"event": "log", "at": ..., "step": 0, "text": "..."}`` (``step`` is null for the
build's own lines; bytes that are not UTF-8 are replaced); the last line is
``{"event": "result", "exitCode": 0, "build": {...}}`` with the Build resource.
"""

from __future__ import annotations

import threading
from typing import Any

import msgspec

from buildrunner.engine.events import BuildEvent
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.console.screen import write_all


class JsonEvents:
    """Writes to a descriptor; events and chunks may come from different threads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._gone = False
        self._lost = ""

    @property
    def lost(self) -> str:
        """Why the output took no more, while somebody may still read it; empty when it did."""
        return self._lost

    def on_event(self, event: BuildEvent) -> None:
        """Write one event."""
        self._write(self._encoder.encode(event) + b"\n")

    def write(self, chunk: LogChunk) -> None:
        """Write every line of a chunk."""
        encode = self._encoder.encode
        at = encode(chunk.at)
        head = b'{"event":"log","at":%b,"step":%b,"text":' % (at, encode(chunk.step))
        lines = chunk.data.decode("utf-8", "replace").split("\n")
        if not lines[-1]:
            lines.pop()
        self._write(b"".join(head + encode(line) + b"}\n" for line in lines))

    def result(self, build: dict[str, Any], exit_code: int) -> None:
        """Write the last line: the Build resource and the exit code."""
        last = {"event": "result", "exitCode": exit_code, "build": build}
        self._write(self._encoder.encode(last) + b"\n")

    def close(self) -> None:
        """Do nothing: every line was written at once."""

    def _write(self, data: bytes) -> None:
        with self._lock:
            if self._gone:
                return
            try:
                write_all(self._descriptor, data)
            except OSError as error:  # nobody reads any more, or a disk is full; the build goes on
                self._gone = True
                if not isinstance(error, BrokenPipeError):
                    self._lost = error.strerror or str(error)
