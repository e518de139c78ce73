"""Shows a log while it is written, at the output's own speed.

The printer is a `LogSink` that keeps no text: it reads what its neighbour, the log file, has, from
a thread of its own. So a slow terminal, a stopped one or a pipe that nobody reads never holds up
the build, and memory stays flat whatever is printed.
"""

from __future__ import annotations

import os
import threading

from buildrunner.engine.log.sink import LogChunk
from buildrunner.logs.console.screen import Screen
from buildrunner.logs.files.log_file import LOG_NAME

_BLOCK_BYTES = 1 << 18
_REFRESH_S = 0.1
_BATCH_S = 0.01


class LogPrinter:
    """Copies a growing log file to a `Screen`.

    Args:
        folder: the log's folder; its file must exist.
        screen: where it is shown.
        live: refresh the screen a few times a second also when the log rests.
    """

    def __init__(self, folder: str, screen: Screen, *, live: bool) -> None:
        self._file = os.open(os.path.join(folder, LOG_NAME), os.O_RDONLY | os.O_CLOEXEC)
        self._screen: Screen | None = screen
        self._live = live
        self._written = 0
        self._shown = 0
        self._closing = False
        self._lost = ""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="log-printer", daemon=True)
        self._thread.start()

    def write(self, chunk: LogChunk) -> None:
        """The log file has this chunk now. Never blocks on the output."""
        with self._changed:
            self._written += len(chunk.data)
            self._changed.notify()

    @property
    def lost(self) -> str:
        """Why the output took no more, while somebody may still read it; empty when it did."""
        return self._lost

    def close(self) -> None:
        """Show the rest, however long the output takes. Idempotent."""
        self.drain()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Show the rest, then end. May be called again.

        Args:
            timeout_s: how long to wait for the output to take it; None waits for ever.

        Returns:
            Whether everything is shown.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = threading.Event()  # never set: a wait that close() need not shorten
        while True:
            with self._changed:
                if self._written == self._shown and not self._closing:
                    self._changed.wait(_REFRESH_S if self._live else None)
                written, closing = self._written, self._closing
            self._copy(written)
            if closing and self._shown == self._written:
                break
            if self._live:
                # On a terminal, lines that come close together are written together.
                pause.wait(_BATCH_S)
        if self._screen is not None:
            self._screen.close()
        os.close(self._file)

    def _copy(self, written: int) -> None:
        while self._shown < written:
            block = os.pread(self._file, min(_BLOCK_BYTES, written - self._shown), self._shown)
            if len(block) == _BLOCK_BYTES:
                block = block[: block.rfind(b"\n") + 1] or block
            if not block:
                break
            self._shown += len(block)
            self._show(block)
        self._show(b"")

    def _show(self, lines: bytes) -> None:
        if self._screen is None:
            self._shown = self._written
            return
        try:
            if lines:
                self._screen.show(lines)
            else:
                self._screen.refresh()
        except OSError as error:
            # The build goes on, the file has it all. Whoever read a pipe is gone (`| head`), and
            # wants no more; a file that is cut by a full disk looks whole.
            self._screen = None
            if not isinstance(error, BrokenPipeError):
                self._lost = error.strerror or str(error)
