"""The step graph with the state of each step, as SVG for a page. Pure.

The layout is that of ``buildrunner graph``. Colours come from a style sheet of the server, since
the policy of the pages forbids inline styles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import msgspec

from buildrunner.plan.drawing import lay_out, reduced, short_image
from buildrunner.server.pages.builds.view import StepView
from buildrunner.server.pages.wording import duration, instant, sign, words

_ROW, _LANE, _MARGIN, _DOT = 34, 22, 18, 6


def draw_graph(steps: Sequence[StepView], depends_on: Sequence[Sequence[int]]) -> str:
    """Return the graph as SVG; empty for a build without steps, or with unknown edges."""
    if not steps or len(depends_on) != len(steps):
        return ""
    rows = lay_out(reduced([tuple(before) for before in depends_on]))
    lanes = 1 + max(row.column for row in rows)
    width, height = _MARGIN * 2 + lanes * _LANE + 560, _MARGIN * 2 + len(steps) * _ROW

    def x(index: int) -> int:
        return _MARGIN + rows[index].column * _LANE

    def y(index: int) -> int:
        return _MARGIN + index * _ROW

    parts = [
        f'<svg class="graph" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="group" aria-label="Steps and what each waits for">'
    ]
    for index, before in enumerate(reduced([tuple(one) for one in depends_on])):
        for earlier in before:
            edge = _edge(x(earlier), y(earlier), x(index), y(index))
            parts.append(f'<path class="edge {_state(steps[earlier])}" d="{edge}"/>')
    text_x = _MARGIN + lanes * _LANE + 6
    for step in steps:
        at = step.index
        label = f"{sign(step.status)} #{at} {step.title}"
        text = f"{words(step.status)} {duration(step.seconds)}"
        parts += (
            f"<a href={quoteattr(f'#step-{at}')}>",
            f'<circle class="dot {_state(step)}" cx="{x(at)}" cy="{y(at)}" r="{_DOT}"/>',
            f'<text class="name" x="{text_x}" y="{y(at) + 5}">{escape(label)}</text>',
            f'<text class="told" x="{width - _MARGIN}" y="{y(at) + 5}" text-anchor="end">',
            f"{escape(text)}</text></a>",
        )
    parts.append("</svg>")
    return "".join(parts)


def _state(step: StepView) -> str:
    return f"s-{step.status.lower()}" if step.status.isidentifier() else "s-queued"


def _edge(x: int, y: int, to_x: int, to_y: int) -> str:
    """Return a line between lanes that crosses no step.

    A line to the right changes lanes at its start, a line to the left at its end.
    """
    if to_x > x:
        return f"M{x} {y} C{x} {y + 20} {to_x} {y + 14} {to_x} {y + _ROW} V{to_y}"
    return f"M{x} {y} V{to_y - _ROW} C{x} {to_y - 14} {to_x} {to_y - 20} {to_x} {to_y}"


_BEFORE = {"FETCHSOURCE": "source", "SETUPBUILD": "setup"}
_ROUND_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200)
_MOST_TICKS = 8


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One span of work in the drawing.

    Attributes:
        label: the text next to the bar.
        kind: ``queue``, ``source``, ``setup``, ``step``, ``push`` or ``artifacts``.
        status: status of a step; empty for other work.
        step: index of a step; None for other work.
        start_s: seconds since the build was created.
        end_s: the same; the present for work that still runs.
        pull_s: seconds from its start until the image was pulled.
        run_from_s: seconds from its start until its container ran.
        is_critical: whether it is on the critical path.
    """

    label: str
    kind: str
    start_s: float
    end_s: float
    status: str = ""
    step: int | None = None
    pull_s: float = 0.0
    run_from_s: float = 0.0
    is_critical: bool = False

    @property
    def seconds(self) -> float:
        """Return the length of the span in seconds."""
        return self.end_s - self.start_s


def waterfall(
    document: Mapping[str, Any],
    depends_on: Sequence[Sequence[int]],
    now: datetime,
    start_s: Mapping[int, float] | None = None,
) -> list[Bar]:
    """Return the bars of a build, in the order in which they began.

    Args:
        document: the Build as JSON.
        depends_on: for each step, the indexes of the steps that it waits for; empty if unknown.
        now: the end of work that still runs.
        start_s: seconds to start the container of each step that ran.
    """
    axis = _Axis(document, now)
    if axis.zero is None:
        return []
    steps = _step_bars(document, axis, start_s or {})
    critical = critical_path({index: bar.end_s for index, bar in steps.items()}, depends_on)
    bars = _before_steps(document, axis)
    bars += [
        msgspec.structs.replace(bar, is_critical=index in critical) for index, bar in steps.items()
    ]
    bars += _behind_steps(document, axis)
    return sorted(bars, key=lambda bar: (bar.start_s, bar.end_s))


class _Axis:
    """Seconds since the build was created."""

    def __init__(self, document: Mapping[str, Any], now: datetime) -> None:
        self.zero = instant(document.get("createTime"))
        passed = (now - self.zero).total_seconds() if self.zero else 0.0
        self.until = self.of(document.get("finishTime")) or max(0.0, passed)

    def of(self, text: str | None) -> float | None:
        moment = instant(text)
        if moment is None or self.zero is None:
            return None
        return max(0.0, (moment - self.zero).total_seconds())

    def span(self, span: Mapping[str, str]) -> tuple[float, float] | None:
        """Return start and end of a span in seconds; None if it has not started."""
        start, end = self.of(span.get("startTime")), self.of(span.get("endTime"))
        return None if start is None else (start, self.until if end is None else end)


def _before_steps(document: Mapping[str, Any], axis: _Axis) -> list[Bar]:
    begun = axis.of(document.get("startTime"))
    queued_until = axis.until if begun is None else begun
    bars = [Bar(label="queue", kind="queue", start_s=0.0, end_s=queued_until, is_critical=True)]
    phases = {
        kind: span
        for phase, kind in _BEFORE.items()
        if (span := axis.span(document.get("timing", {}).get(phase, {}))) is not None
    }
    # Both run concurrently; the steps waited for the longer one.
    last = max(phases, key=lambda kind: phases[kind][1], default=None)
    bars += [
        Bar(label=kind, kind=kind, start_s=start, end_s=end, is_critical=kind == last)
        for kind, (start, end) in phases.items()
    ]
    return bars


def _behind_steps(document: Mapping[str, Any], axis: _Axis) -> list[Bar]:
    results = document.get("results", {})
    found = [
        (f"push {image.get('name', '')}", "push", image.get("pushTiming", {}))
        for image in results.get("images", ())
    ]
    if not any(axis.span(span) for _, _, span in found):
        found = [("push", "push", document.get("timing", {}).get("PUSH", {}))]
    found.append(("artifacts", "artifacts", results.get("artifactTiming", {})))
    return [
        Bar(label=label, kind=kind, start_s=span[0], end_s=span[1], is_critical=True)
        for label, kind, times in found
        if (span := axis.span(times)) is not None
    ]


def _step_bars(
    document: Mapping[str, Any], axis: _Axis, start_s: Mapping[int, float]
) -> dict[int, Bar]:
    steps = {}
    for index, step in enumerate(document.get("steps", ())):
        span = axis.span(step.get("timing", {}))
        if span is None:
            continue
        pulled = axis.of(step.get("pullTiming", {}).get("endTime"))
        pull = max(0.0, pulled - span[0]) if pulled is not None else 0.0
        steps[index] = Bar(
            label=f"#{index} {step.get('id') or short_image(step.get('name', ''))}",
            kind="step",
            status=step.get("status", ""),
            step=index,
            start_s=span[0],
            end_s=span[1],
            pull_s=pull,
            run_from_s=min(pull + start_s.get(index, 0.0), span[1] - span[0]),
        )
    return steps


def ticks(total_s: float) -> list[float]:
    """Return the marks of the axis: round numbers of seconds, at most eight of them."""
    step = next((one for one in _ROUND_S if total_s / one <= _MOST_TICKS), _ROUND_S[-1])
    return [step * number for number in range(int(total_s // step) + 1)] if total_s > 0 else []


def critical_path(ends: Mapping[int, float], depends_on: Sequence[Sequence[int]]) -> set[int]:
    """Return the steps of the critical path to the last step's end.

    Args:
        ends: end time of each step that ran.
        depends_on: for each step, the steps that it waits for.
    """
    path: set[int] = set()
    current = max(ends, key=lambda index: ends[index], default=None)
    while current is not None and current not in path:
        path.add(current)
        before = depends_on[current] if current < len(depends_on) else ()
        ran = [index for index in before if index in ends]
        current = max(ran, key=lambda index: ends[index], default=None)
    return path
