"""What git says while it works: progress for whoever watches, the rest kept for errors."""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from git import RemoteProgress

if TYPE_CHECKING:
    from buildrunner.sources.git_command import Progress

_KEPT_LINES = 200
_PERCENT = re.compile(r"(?:remote: )?([A-Z][a-z]+ [a-z ]+):\s+(\d+)% ")


class GitProgress(RemoteProgress):
    """Reads standard error of one command."""

    def __init__(self, watcher: Progress | None) -> None:
        super().__init__()
        self._watcher = watcher
        self._handle = self.new_message_handler()
        self._words: deque[str] = deque(maxlen=_KEPT_LINES)
        self._shown = ("", -1)

    def take(self, line: str) -> None:
        """One line, or one state of a line that git writes over."""
        line = line.rstrip()
        if not line:
            return
        if _PERCENT.match(line) is None:
            self._words.append(line)
        self._handle(line)

    def text(self) -> str:
        """What was said that is not progress: the last lines of it."""
        return "\n".join(self._words)

    def update(
        self,
        op_code: int,
        cur_count: str | float,
        max_count: str | float | None = None,
        message: str = "",  # noqa: ARG002  (the signature is GitPython's)
    ) -> None:
        """What GitPython understood. See `RemoteProgress.update`."""
        del op_code
        name = (self._cur_line or "").removeprefix("remote: ").partition(":")[0]
        self._show(name, int(100 * float(cur_count) / float(max_count)) if max_count else 0)

    def line_dropped(self, line: str) -> None:
        """What GitPython does not know, such as "Updating files". See `RemoteProgress`."""
        found = _PERCENT.match(line)
        if found:
            self._show(found[1], int(found[2]))

    def _show(self, name: str, percent: int) -> None:
        shown = (name, percent)
        if self._watcher is not None and shown != self._shown:
            self._shown = shown
            self._watcher(name, percent)
