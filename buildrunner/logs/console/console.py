"""The display of a running build: log, status line, summary.

Standard output carries only the log, in Cloud Build's own words; buildrunner's own messages go to
standard error. If standard output or standard error is a terminal, the status line is at its
bottom.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import datetime

from buildrunner.engine.events import BuildEvent
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.console.build_view import BuildView
from buildrunner.logs.console.outputs import PipeScreen, Screen, TerminalScreen
from buildrunner.logs.console.summary import render_summary
from buildrunner.logs.console.wording import Look
from buildrunner.logs.files.log_file import LOG_NAME
from buildrunner.plan.build_plan import BuildPlan

_BLOCK_BYTES = 1 << 18
_REFRESH_S = 0.1
_BATCH_S = 0.01


class LogPrinter:
    """Copies a growing log file to a `Screen`.

    Args:
        folder: the log's folder; its file must exist.
        screen: shows the log.
        live: refresh the screen a few times a second, even if the log does not grow.
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
        """Show a chunk that the log file has. Never blocks on the output."""
        with self._changed:
            self._written += len(chunk.data)
            self._changed.notify()

    @property
    def lost(self) -> str:
        """Return why the output failed, except by a closed pipe; empty if it did not."""
        return self._lost

    def close(self) -> None:
        """Show the rest, without a time limit. Idempotent."""
        self.drain()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Show the rest, then end. May be called again.

        Args:
            timeout_s: seconds to wait for the output; None for no limit.

        Returns:
            Whether everything is shown.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        pause = threading.Event()  # never set: close() need not shorten this wait
        while True:
            with self._changed:
                if self._written == self._shown and not self._closing:
                    self._changed.wait(_REFRESH_S if self._live else None)
                written, closing = self._written, self._closing
            self._copy(written)
            if closing and self._shown == self._written:
                break
            if self._live:
                # On a terminal, lines that arrive close together are written together.
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
            # The build continues, and the log file has everything. The reader of a closed pipe
            # (`| head`) needs no more; but an output that a full disk cut short looks complete.
            self._screen = None
            if not isinstance(error, BrokenPipeError):
                self._lost = error.strerror or str(error)


OUTPUT = 1
DIALOGUE = 2
_USUAL_COLUMNS = 80


class Console:
    """Shows one build: a `LogSink` and a listener for its events.

    Args:
        plan: the plan that runs.
        folder: folder of the log file, which must exist and get each chunk before the console.
        output_look: what standard output can show.
        dialogue_look: what standard error can show.
        quiet: don't show the log.
    """

    def __init__(
        self, plan: BuildPlan, folder: str, output_look: Look, dialogue_look: Look, *, quiet: bool
    ) -> None:
        self._view = BuildView(plan)
        self._dialogue_look = dialogue_look
        self._quiet = quiet
        self._notice = ""
        live = dialogue_look.live
        screen = self._screen(output_look, quiet=quiet) if live or not quiet else None
        self._printer = LogPrinter(folder, screen, live=live) if screen is not None else None

    def on_event(self, event: BuildEvent) -> None:
        """Take an event; the status line follows within a tenth of a second."""
        self._view.apply(event)

    def planned(self, plan: BuildPlan) -> None:
        """Take the plan of a build that had none when it began."""
        self._view.planned(plan)

    def write(self, chunk: LogChunk) -> None:
        """Show a chunk that is in the log file."""
        if self._printer is not None:
            self._printer.write(chunk)

    def notice(self, text: str) -> None:
        """Show a message on standard error, or in the status line until the next message.

        Takes no lock, so signal handlers may call it. An empty text clears the status line's
        message.
        """
        if self._dialogue_look.live:
            # The status line shows it after its next refresh.
            self._notice = f"{text}  " if text else ""
        elif text:
            os.write(DIALOGUE, f"{text}\n".encode())

    def close(self) -> None:
        """Show the rest of the log, without a time limit. Idempotent."""
        self.drain()

    def drain(self, timeout_s: float | None = None) -> bool:
        """Show the rest of the log and erase the status line. May be called again.

        Args:
            timeout_s: seconds to wait for the output; None for no limit.

        Returns:
            Whether everything is shown.
        """
        return self._printer is None or self._printer.drain(timeout_s)

    def summary(
        self,
        command: str,
        log_command: str = "buildrunner builds log",
        retry_command: str = "",
    ) -> str:
        """Return the final text for standard error; see `render_summary`."""
        text = render_summary(
            self._view,
            self._dialogue_look,
            command,
            log_command,
            retry_command,
            log_shown=not self._quiet and _is_one_place(),
        )
        if self._printer is not None and self._printer.lost:
            whole = f"{log_command} {self._view.plan.build_id}"
            text += (
                f"warning: standard output can't be written ({self._printer.lost}): "
                f"the log there is cut; `{whole}` has all of it\n"
            )
        return text

    def _screen(self, output_look: Look, *, quiet: bool) -> Screen:
        live = self._dialogue_look.live
        log = None if quiet else OUTPUT
        if not live and not output_look.colour:
            return PipeScreen(OUTPUT)
        status = None
        if live:
            status = OUTPUT if log is not None and os.isatty(OUTPUT) else DIALOGUE
        look = output_look
        if status == DIALOGUE and log is None:
            look = self._dialogue_look
        return TerminalScreen(log, status, look, self._status, _columns_of(status))

    def _status(self, now: datetime, width: int) -> str:
        from buildrunner.logs.console.outputs import status_line

        if self._view.finished:
            return ""
        notice = self._notice[: max(0, width - 1)]
        return notice + status_line(self._view, now, width - len(notice), self._dialogue_look)


def _is_one_place() -> bool:
    """Return whether log and dialogue go to the same terminal, file or pipe."""
    try:
        log, dialogue = os.fstat(OUTPUT), os.fstat(DIALOGUE)
    except OSError:
        return False
    return (log.st_dev, log.st_ino) == (dialogue.st_dev, dialogue.st_ino)


def _columns_of(descriptor: int | None) -> Callable[[], int]:
    def columns() -> int:
        try:
            size = os.get_terminal_size(OUTPUT if descriptor is None else descriptor)
        except OSError:
            return _USUAL_COLUMNS
        return size.columns or _USUAL_COLUMNS  # some terminals don't report their width

    return columns
