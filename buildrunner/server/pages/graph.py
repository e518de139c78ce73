"""The step graph with the state of each step, as SVG for a page. Pure.

Lanes are those of ``buildrunner graph``; colours come from the page's style sheet, since pages
allow no styles of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from buildrunner.plan.lanes import lay_out, reduced
from buildrunner.server.pages.wording import duration, sign

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.server.pages.build_view import StepView

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
        'role="img" aria-label="Steps and what each waits for">'
    ]
    for index, before in enumerate(reduced([tuple(one) for one in depends_on])):
        for earlier in before:
            state = escape(steps[earlier].status.lower())
            parts.append(
                f'<path class="edge s-{state}" d="M{x(earlier)} {y(earlier)} '
                f'C{x(earlier)} {y(index) - 10} {x(index)} {y(earlier) + 14} {x(index)} {y(index)}"/>'
            )
    text_x = _MARGIN + lanes * _LANE + 6
    for step in steps:
        at = step.index
        label = f"#{at} {step.title}"
        told = f"{step.status} {duration(step.seconds)}"
        parts.append(
            f'<a href={quoteattr(f"#step-{at}")}><circle class="dot s-{escape(step.status.lower())}" '
            f'cx="{x(at)}" cy="{y(at)}" r="{_DOT}"/>'
            f'<text class="name" x="{text_x}" y="{y(at) + 5}">{escape(sign(step.status))} '
            f"{escape(label)}</text>"
            f'<text class="told" x="{width - _MARGIN}" y="{y(at) + 5}" text-anchor="end">'
            f"{escape(told)}</text></a>"
        )
    parts.append("</svg>")
    return "".join(parts)
