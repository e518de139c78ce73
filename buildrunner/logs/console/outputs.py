"""The outputs of a build: a pipe, a terminal with colours and a status line, or JSON."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from buildrunner.engine.events import BuildEvent
from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.console.build_view import BuildView, StepView, TransferView
from buildrunner.logs.console.wording import (
    BOLD,
    CYAN,
    DIM,
    GREEN,
    MAGENTA,
    RED,
    STATUS_COLOURS,
    YELLOW,
    Look,
    clock,
    painted,
    printable,
    size,
)
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.plan.drawing import display_width, fitting

_STEP_COLOURS = (CYAN, GREEN, YELLOW, MAGENTA, "34", "36;1")
_LINE_FORMS = (
    rb'^(?P<step>Step #(?P<number>\d+)(?: - "[^"\n]*")?:)'
    rb"|^(?P<event>(?:Starting|Finished) Step #.*|starting build .*)$"
    rb"|^(?P<word>FETCHSOURCE|BUILD|PUSH|DONE)$"
    rb"|^(?P<bad>(?:ERROR|TIMEOUT|CANCELLED)(?::.*)?)$"
)
# Everything a step could use to steer the terminal (cursor, title, clipboard), but not colours.
_CONTROL_CHARACTERS = rb"[\x00-\x06\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]"
_C1_CONTROL = rb"\xc2([\x80-\x9f])"
_CONTROL_FORMS = (
    rb"\x1b\[(?![0-9;:]*m)[0-?]*[ -/]*[@-~]"
    rb"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?"
    rb"|\x1b(?![\[\]PX^_])[ -/]*[0-~]?"
    rb"|\x1b(?!\[[0-9;:]*m)\[?"
    rb"|\x07"
)
_MOST_PASSES = 8


class Screen(Protocol):
    """Shows whole lines, in order, from one thread."""

    def show(self, lines: bytes) -> None:
        """Show whole lines. Blocks while the output blocks. Raises OSError."""
        ...

    def refresh(self) -> None:
        """Update the status. Called a few times a second and after every `show`."""
        ...

    def close(self) -> None:
        """Restore the output."""
        ...


class PipeScreen:
    """Copies the lines unchanged: a pipe gets Cloud Build's own log text."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def show(self, lines: bytes) -> None:
        """Write the lines."""
        write_all(self._descriptor, lines)

    def refresh(self) -> None:
        """Do nothing: a pipe has no status line."""

    def close(self) -> None:
        """Do nothing: a pipe has no state to restore."""


class TerminalScreen:
    """Lines above, one status line below; the two never mix.

    The status is erased before lines are written and drawn again after them, in one write. Its
    height is computed for the terminal's present width, so a resize leaves nothing behind.

    Args:
        log: descriptor of the lines; None shows the status only.
        status: descriptor of a terminal for the status line; None shows none.
        look: what the outputs can show.
        draw: returns the status line for an instant and a width.
        columns: returns the terminal's present width.
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
        """Draw the status again if it has changed."""
        if self._status is None:
            return
        before, erasure = self._drawn, self._erasure()
        status = self._status_bytes()
        if self._drawn != before:
            write_all(self._status, erasure + status)

    def close(self) -> None:
        """Erase the status."""
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
    """Return the log's text with step prefixes, phase words and errors in colours."""
    pattern = _compiled(_LINE_FORMS)
    shown = pattern.sub(_paint, lines)
    if b"\x1b[" in lines:
        # A step that leaves a colour on must not colour the next line.
        shown = _compiled(rb"(\x1b\[[^\n]*)$").sub(b"\\1\x1b[0m", shown)
    return shown


def without_controls(lines: bytes) -> bytes:
    """Return the text without control sequences (cursor, titles, ...). Colours stay.

    A removal can join its neighbours to another sequence, so this goes on until nothing changes. A
    text that is made to take many passes loses the bytes that begin sequences.
    """
    text = _compiled(_CONTROL_CHARACTERS).sub(b"", lines)
    for _ in range(_MOST_PASSES):
        before = text
        text = _compiled(_C1_CONTROL).sub(_as_escape, text)
        text = _compiled(_CONTROL_FORMS).sub(b"", text)
        if text == before:
            return text
    return text.translate(None, b"\x1b\xc2\x07")


def _as_escape(found: re.Match[bytes]) -> bytes:
    """Return a control character of C1 in its form with an escape: ``ESC [`` for U+009B."""
    return bytes((0x1B, found[1][0] - 0x40))


def without_colours(text: bytes) -> bytes:
    """Return the text without colours and other attributes."""
    return _compiled(rb"\x1b\[[0-9;:]*m").sub(b"", text)


def write_all(descriptor: int, data: bytes) -> None:
    """Write everything, also to a non-blocking descriptor."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:
            from select import select

            select([], [descriptor], [])


_PATTERNS: dict[bytes, re.Pattern[bytes]] = {}


def _compiled(form: bytes) -> re.Pattern[bytes]:
    # Compiled at first use: a build with piped output never needs these patterns.
    if form not in _PATTERNS:
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
    if "\x1b" in text:
        text = without_colours(text.encode()).decode()
    return display_width(text)


_SYMBOLS = {
    "QUEUED": ("○", "."),
    "PULLING": ("◌", "o"),
    "WORKING": ("◐", ">"),
    "SUCCESS": ("✔", "+"),
    "FAILURE": ("✘", "x"),
    "TIMEOUT": ("✘", "x"),
    "CANCELLED": ("■", "-"),
}
_PHASES = {"SETUPBUILD": "setup", "FETCHSOURCE": "source", "PUSH": "push"}
_FORGIVEN = ("!", "!")
_UNKNOWN = ("?", "?")
_JOINT = ("─", "-")
_GRAPH_LIMIT = 40  # with more steps, only their number is shown
_RUNNING_LIMIT = 4
_TRANSFER_LIMIT = 3


def graph_columns(plan: BuildPlan) -> list[list[int]]:
    """Return positions of steps in the plan, by depth in the graph.

    A step is one column after its deepest dependency.
    """
    depths: list[int] = []
    columns: list[list[int]] = []
    for position, step in enumerate(plan.steps):
        depth = 1 + max((depths[before] for before in step.depends_on), default=-1)
        depths.append(depth)
        if depth == len(columns):
            columns.append([])
        columns[depth].append(position)
    return columns


def status_line(view: BuildView, now: datetime, width: int, look: Look) -> str:
    """Return the status line, at most ``width`` columns wide, coloured if ``look`` permits it."""
    line = _Line(width)
    _draw_graph(line, view, look)
    done = sum(1 for step in view.steps if step.finished is not None)
    if view.steps:  # there are none before the build is planned
        line.add(f"  {done}/{len(view.steps)}")
    if view.started_at is not None:
        line.add(f"  {clock((now - view.started_at).total_seconds())}")
    if view.phase in _PHASES:
        line.add(f"  {_PHASES[view.phase]}")
    running = [step for step in view.steps if step.status in ("WORKING", "PULLING")]
    if running:
        named = ", ".join(_running(step, now) for step in running[:_RUNNING_LIMIT])
        more = f" +{len(running) - _RUNNING_LIMIT}" if len(running) > _RUNNING_LIMIT else ""
        line.add(f"  {named}{more}")
    for transfer in list(view.transfers.values())[:_TRANSFER_LIMIT]:
        line.add(f"  {_transfer(transfer)}", STATUS_COLOURS["PULLING"] if look.colour else "")
    return line.text()


def _draw_graph(line: _Line, view: BuildView, look: Look) -> None:
    kind = 0 if look.unicode else 1
    if len(view.steps) > _GRAPH_LIMIT:
        counts: dict[str, int] = {}
        for step in view.steps:
            counts[step.status] = counts.get(step.status, 0) + 1
        for status, number in counts.items():
            line.add(
                f"{_SYMBOLS.get(status, _UNKNOWN)[kind]}{number} ",
                STATUS_COLOURS.get(status, "") if look.colour else "",
            )
        return
    for number, column in enumerate(graph_columns(view.plan)):
        if number:
            line.add(_JOINT[kind])
        for position in column:
            step = view.steps[position]
            symbol, code = _SYMBOLS.get(step.status, _UNKNOWN), STATUS_COLOURS.get(step.status)
            if step.finished is not None and step.finished.forgiven:
                symbol, code = _FORGIVEN, STATUS_COLOURS["CANCELLED"]
            line.add(symbol[kind], code if code and look.colour else "")


def _running(step: StepView, now: datetime) -> str:
    if step.started_at is None:
        return step.name
    return f"{step.name} {int((now - step.started_at).total_seconds())}s"


def _transfer(transfer: TransferView) -> str:
    image = printable(transfer.image.rsplit("/", 1)[-1].partition("@")[0])
    if not transfer.total_bytes:
        return f"{transfer.direction} {image} {printable(transfer.status)}".rstrip()
    share = min(100, 100 * transfer.current_bytes // transfer.total_bytes)
    return f"{transfer.direction} {image} {share}% of {size(transfer.total_bytes)}"


class _Line:
    """Collects coloured pieces and stops at the width."""

    def __init__(self, width: int) -> None:
        self._left = width
        self._pieces: list[str] = []

    def add(self, text: str, code: str = "") -> None:
        cut = fitting(text, self._left)
        self._left = 0 if len(cut) < len(text) else self._left - display_width(cut)
        self._pieces.append(painted(cut, code, colour=bool(code and cut)))

    def text(self) -> str:
        return "".join(self._pieces)


class JsonEvents:
    """Writes events and log lines as JSON to a descriptor. Any thread may write."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._encoder = msgspec.json.Encoder()
        self._lock = threading.Lock()
        self._gone = False
        self._lost = ""

    @property
    def lost(self) -> str:
        """Return why the output failed, except by a closed pipe; empty if it did not."""
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
            except OSError as error:  # the reader has ended, or a disk is full; the build continues
                self._gone = True
                if not isinstance(error, BrokenPipeError):
                    self._lost = error.strerror or str(error)
