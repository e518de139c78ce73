"""Outputs that show a log to a person: a pipe, or a terminal with colours and a status line."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from buildrunner.logs.console.wording import BOLD, CYAN, DIM, GREEN, MAGENTA, RED, YELLOW, Look

_STEP_COLOURS = (CYAN, GREEN, YELLOW, MAGENTA, "34", "36;1")
_LINE_FORMS = (
    rb'^(?P<step>Step #(?P<number>\d+)(?: - "[^"\n]*")?:)'
    rb"|^(?P<event>(?:Starting|Finished) Step #.*|starting build .*)$"
    rb"|^(?P<word>FETCHSOURCE|BUILD|PUSH|DONE)$"
    rb"|^(?P<bad>(?:ERROR|TIMEOUT|CANCELLED)(?::.*)?)$"
)
# Everything a step could use to steer the terminal (cursor, title, clipboard), but not colours.
_CONTROL_FORMS = (
    rb"\x1b\[(?![0-9;:]*m)[0-?]*[ -/]*[@-~]"
    rb"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"
    rb"|\x1b(?![\[\]PX^_])[ -/]*[0-~]?"
    rb"|[\x00-\x07\x0b\x0c\x0e-\x1a\x7f]"
)


class Screen(Protocol):
    """Shows whole lines, in order, from one thread."""

    def show(self, lines: bytes) -> None:
        """Show some whole lines. Blocks as long as the output does. Raises OSError."""
        ...

    def refresh(self) -> None:
        """Called a few times a second and after every `show`: the status may have changed."""
        ...

    def close(self) -> None:
        """Leave the output as it was found."""
        ...


class PipeScreen:
    """Copies the lines as they are: what is piped is Cloud Build's own log text."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def show(self, lines: bytes) -> None:
        """Write the lines."""
        write_all(self._descriptor, lines)

    def refresh(self) -> None:
        """There is no status in a pipe."""

    def close(self) -> None:
        """Nothing to restore."""


class TerminalScreen:
    """Lines above, one status line below; the two never mix.

    The status is erased before lines are written and drawn again after them, in one write. Its
    height is counted at the terminal's present width: a resize leaves nothing behind.

    Args:
        log: descriptor of the lines; None shows the status only.
        status: descriptor of a terminal for the status line; None shows none.
        look: what the outputs can show.
        draw: the status line for an instant and a width.
        columns: the terminal's present width.
    """

    def __init__(
        self,
        log: int | None,
        status: int | None,
        look: Look,
        draw: Callable[[datetime, int], str],
        columns: Callable[[], int],
    ) -> None:
        self._log = log
        self._status = status
        self._look = look
        self._draw = draw
        self._columns = columns
        self._same = log is not None and os.isatty(log) and status is not None
        self._drawn = ""
        self._drawn_width = 0

    def show(self, lines: bytes) -> None:
        """Write the lines, coloured, above the status."""
        if self._log is None:
            return
        if os.isatty(self._log):
            lines = without_controls(lines)
        if self._look.colour:
            lines = coloured(lines)
        if self._same:
            lines = self._erasure() + lines + self._status_bytes()
        write_all(self._log, lines)

    def refresh(self) -> None:
        """Draw the status again when it changed."""
        if self._status is None:
            return
        before, erasure = self._drawn, self._erasure()
        status = self._status_bytes()
        if self._drawn != before:
            write_all(self._status, erasure + status)

    def close(self) -> None:
        """Take the status away."""
        if self._status is not None and self._drawn:
            write_all(self._status, self._erasure())
        self._drawn, self._status = "", None

    def _status_bytes(self) -> bytes:
        width = self._columns()
        # One column stays free: a full last line makes some terminals wrap.
        self._drawn = self._draw(datetime.now(UTC), width - 1)
        self._drawn_width = _visible_width(self._drawn)
        return self._drawn.encode("utf-8", "replace")

    def _erasure(self) -> bytes:
        if not self._drawn:
            return b""
        rows = max(0, self._drawn_width - 1) // max(1, self._columns())
        up = b"\x1b[%dA" % rows if rows else b""
        return b"\r" + up + b"\x1b[J"


def coloured(lines: bytes) -> bytes:
    """The log's text with step prefixes, phase words and errors in colours."""
    pattern = _compiled(_LINE_FORMS)
    shown = pattern.sub(_paint, lines)
    if b"\x1b[" in lines:
        # A step that leaves a colour on must not colour the next line.
        shown = _compiled(rb"(\x1b\[[^\n]*)$").sub(b"\\1\x1b[0m", shown)
    return shown


def without_controls(lines: bytes) -> bytes:
    """The text without what would move the cursor, set titles and the like; colours stay."""
    return _compiled(_CONTROL_FORMS).sub(b"", lines)


def without_colours(text: bytes) -> bytes:
    """The text without colours and other attributes of letters."""
    return _compiled(rb"\x1b\[[0-9;:]*m").sub(b"", text)


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, also to a descriptor that someone made non-blocking."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            from select import select

            select([], [descriptor], [])


_PATTERNS: dict[bytes, re.Pattern[bytes]] = {}


def _compiled(form: bytes) -> re.Pattern[bytes]:
    # Compiled at first use: a build whose output is piped never needs them.
    if form not in _PATTERNS:
        import re

        _PATTERNS[form] = re.compile(form, re.MULTILINE)
    return _PATTERNS[form]


def _paint(match: re.Match[bytes]) -> bytes:
    if match["step"]:
        code = _STEP_COLOURS[int(match["number"]) % len(_STEP_COLOURS)]
    elif match["event"]:
        code = DIM
    else:
        code = BOLD if match["word"] else RED
    return b"\x1b[" + code.encode() + b"m" + match[0] + b"\x1b[0m"


def _visible_width(text: str) -> int:
    from buildrunner.plan.drawings.text import display_width

    if "\x1b" in text:
        text = without_colours(text.encode()).decode()
    return display_width(text)
