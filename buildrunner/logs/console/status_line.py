"""The line at the bottom of the terminal while a build runs.

``✔─✔─◐◐─○  3/5  test 12s, lint 3s  pull python:3.12 45% of 27.1 MiB  0:42``: the step graph in
columns of what can run at the same time, what runs for how long, what is pulled or pushed, and the
time since the start. Pure: view, instant and width come in, text comes out.
"""

from __future__ import annotations

from datetime import datetime

from buildrunner.logs.console.build_view import BuildView, StepView, TransferView
from buildrunner.logs.console.wording import STATUS_COLOURS, Look, clock, painted, printable, size
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.plan.drawings.text import display_width, fitting

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
_GRAPH_LIMIT = 40  # more steps than this are counted, not drawn
_RUNNING_LIMIT = 4
_TRANSFER_LIMIT = 3


def graph_columns(plan: BuildPlan) -> list[list[int]]:
    """Positions of steps in the plan, by depth in the graph.

    A step stands one column after its deepest dependency.
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
    """The line, at most ``width`` columns wide, colours included where ``look`` allows them."""
    line = _Line(width)
    _draw_graph(line, view, look)
    done = sum(1 for step in view.steps if step.finished is not None)
    if view.steps:  # there are none before there is a plan
        line.add(f"  {done}/{len(view.steps)}")
    if view.started_at is not None:
        line.add(f"  {clock((now - view.started_at).total_seconds())}")
    if view.phase in ("FETCHSOURCE", "PUSH", "SETUPBUILD"):
        line.add(
            "  " + {"FETCHSOURCE": "source", "PUSH": "push", "SETUPBUILD": "setup"}[view.phase]
        )
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
