"""A git command that runs: its output, line by line, and its end, whoever wants it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from buildrunner.sources.git_command import LineReader, Progress

_TICK_S = 0.05
_GRACE_S = 0.5
_HELD_S = 60.0


class GitProcess:
    """One command's output, and what can end it early.

    Attributes:
        stopped: the reader of lines wants no more.

    Args:
        each_line: takes the output.
        progress: see `git_command.Progress`.
    """

    def __init__(self, each_line: LineReader | None, progress: Progress | None) -> None:
        self.stopped = threading.Event()
        self._each_line = each_line
        self._lines: list[str] = []
        from buildrunner.sources.git_progress import GitProgress

        self._errors = GitProgress(progress)
        self._heard_s = time.monotonic()

    def output(self) -> str:
        """What it wrote to standard output, unless a `LineReader` took it."""
        return "".join(self._lines)

    def errors(self) -> str:
        """What it wrote to standard error, without its progress."""
        return self._errors.text()

    def follow(
        self,
        process: Any,
        cancel: threading.Event,
        timeout_s: float | None,
        silent_s: float | None,
    ) -> str:
        """Wait for the end of the process; why it must be ended instead, or empty."""
        drained = threading.Event()
        threading.Thread(target=self._pump, args=(process, drained), daemon=True).start()
        started_s = time.monotonic()
        while process.poll() is None:
            drained.wait(_TICK_S)
            if drained.is_set():
                cancel.wait(0.001)  # it closed its output: its end is a moment away
            if cancel.is_set():
                return "cancelled"
            if self.stopped.is_set():
                return ""
            now_s = time.monotonic()
            if timeout_s is not None and now_s - started_s > timeout_s:
                return f"it took more than {timeout_s:g} s"
            if silent_s is not None and now_s - self._heard_s > silent_s:
                return f"nothing came for {silent_s:g} s"
        return self._await_output(process, drained, cancel)

    @staticmethod
    def _await_output(process: Any, drained: threading.Event, cancel: threading.Event) -> str:
        """Wait until all output is read.

        A helper that stays (a connection kept open) may hold standard error for ever, and is given
        a moment only. Standard output must end: half an answer must never pass for a whole one.
        """
        ended_s = time.monotonic()
        while not drained.wait(_TICK_S):
            if cancel.is_set():
                return "cancelled"
            waited_s = time.monotonic() - ended_s
            if process.proc.stdout.closed and waited_s > _GRACE_S:
                return ""
            if waited_s > _HELD_S:
                return "a program that git has started does not end"
        return ""

    def _pump(self, process: Any, drained: threading.Event) -> None:
        from git.cmd import handle_process_output

        try:
            handle_process_output(
                process, self._take_output, self._take_error, None, decode_streams=False
            )
        finally:
            drained.set()

    def _take_output(self, line: str) -> None:
        self._heard_s = time.monotonic()
        if self._each_line is None:
            self._lines.append(line)
        elif not self.stopped.is_set() and not self._each_line(line):
            self.stopped.set()

    def _take_error(self, line: str) -> None:
        self._heard_s = time.monotonic()
        self._errors.take(line)


def end_process(process: Any) -> None:
    """Leave nothing of the command running: it leads a process group of its own."""
    process.poll()
    if process.returncode is not None:
        return
    for signal_number in (signal.SIGTERM, signal.SIGKILL):  # TERM lets git remove its locks
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal_number)
        deadline_s = time.monotonic() + _GRACE_S
        while process.poll() is None and time.monotonic() < deadline_s:
            threading.Event().wait(0.01)
        if process.returncode is not None:
            return
