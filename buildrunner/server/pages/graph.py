"""The step graph with the state of each step, as SVG for a page. Pure.

Lanes are those of ``buildrunner graph``; colours come from the page's style sheet, since pages
allow no styles of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from buildrunner.plan.lanes import lay_out, reduced
from buildrunner.server.pages.wording import duration, sign, words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.server.pages.step_view import StepView

_ROW, _LANE, _MARGIN, _DOT = 34, 22, 18, 6


def draw_graph(steps: Sequence[StepView], depends_on: Sequence[Sequence[int]]) -> str:
    """The graph; empty for a build without steps or one whose edges are not known."""
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
        told = f"{words(step.status)} {duration(step.seconds)}"
        parts += (
            f"<a href={quoteattr(f'#step-{at}')}>",
            f'<circle class="dot {_state(step)}" cx="{x(at)}" cy="{y(at)}" r="{_DOT}"/>',
            f'<text class="name" x="{text_x}" y="{y(at) + 5}">{escape(label)}</text>',
            f'<text class="told" x="{width - _MARGIN}" y="{y(at) + 5}" text-anchor="end">',
            f"{escape(told)}</text></a>",
        )
    parts.append("</svg>")
    return "".join(parts)


def _state(step: StepView) -> str:
    return f"s-{step.status.lower()}" if step.status.isidentifier() else "s-queued"


def _edge(x: int, y: int, to_x: int, to_y: int) -> str:
    """A line that changes lanes where nothing stands: to the right at once, to the left at last."""
    if to_x > x:
        return f"M{x} {y} C{x} {y + 20} {to_x} {y + 14} {to_x} {y + _ROW} V{to_y}"
    return f"M{x} {y} V{to_y - _ROW} C{x} {to_y - 14} {to_x} {to_y - 20} {to_x} {to_y}"
