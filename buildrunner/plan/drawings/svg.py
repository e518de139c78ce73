"""The step graph as one self-contained SVG file, for pages and documents, in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape

from buildrunner.plan.drawings.text import Node, Row, lay_out, one_line, reduced, summary

_ROW: Final = 46
_LANE: Final = 24
_MARGIN: Final = 24
_HEADER: Final = 64
_DOT: Final = 7
_GAP: Final = 22
# Widths of one character in the fonts below, in pixels; a little too wide rather than too narrow.
_TITLE_CHAR: Final = 8.2
_DETAIL_CHAR: Final = 7.0
_MAX_DETAIL: Final = 90
_MAX_TITLE: Final = 60

# Chosen to be told apart, and to be seen on white and on black. Written out in full, without CSS
# variables, which several renderers do not know.
_LIGHT: Final = (
    ["#0969da", "#1a7f37", "#bc4c00", "#8250df", "#bf3989", "#9a6700", "#1b7c83", "#cf222e"],
    {"back": "#ffffff", "card": "#f6f8fa", "edge": "#d8dee4", "text": "#1f2328", "mute": "#59636e"},
)
_DARK: Final = (
    ["#4493f8", "#3fb950", "#f0883e", "#ab7df8", "#db61a2", "#d29922", "#39c5cf", "#f85149"],
    {"back": "#0d1117", "card": "#161b22", "edge": "#30363d", "text": "#e6edf3", "mute": "#9198a1"},
)
_COLOURS: Final = len(_LIGHT[0])
_SHAPES: Final = """\
.link { fill: none; stroke-width: 2.5; stroke-linecap: round; }
.dot { stroke-width: 2; }
.forgiven { stroke-width: 3; }
.heading { font: 600 17px system-ui, 'DejaVu Sans', sans-serif; }
.title { font: 600 14px system-ui, 'DejaVu Sans', sans-serif; }
.note { font: 13px system-ui, 'DejaVu Sans', sans-serif; }
.number, .detail { font: 11.5px ui-monospace, 'DejaVu Sans Mono', monospace; }
"""


def _theme(colours: Sequence[str], tones: dict[str, str]) -> str:
    rules = [
        f".back, .forgiven {{ fill: {tones['back']}; }}",
        f".dot {{ stroke: {tones['back']}; }}",
        f".card {{ fill: {tones['card']}; stroke: {tones['edge']}; }}",
        f".heading, .title {{ fill: {tones['text']}; }}",
        f".note, .number, .detail {{ fill: {tones['mute']}; }}",
    ]
    for index, colour in enumerate(colours):
        rules.append(f".s{index} {{ stroke: {colour}; }} .f{index} {{ fill: {colour}; }}")
    return "\n".join(rules)


def _style() -> str:
    dark = _theme(*_DARK)
    return f"{_SHAPES}{_theme(*_LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n"


def draw_svg(nodes: Sequence[Node], *, name: str = "") -> str:
    """The graph in lanes, as in the text drawing, with a card for each step.

    Args:
        nodes: at least one.
        name: heading, usually the file's name.
    """
    rows = lay_out(reduced([node.depends_on for node in nodes]))
    lanes = 1 + max(row.column for row in rows)
    cards = _MARGIN + lanes * _LANE + 10
    indent = 18 + 8 * len(str(nodes[-1].index))
    card_width = indent + max(_text_width(node) for node in nodes)
    heading = name or "Build steps"
    may_fail = any(node.may_fail for node in nodes)
    note = summary(nodes) + ("; a hollow dot may fail without failing the build" * may_fail)
    header_width = max(len(heading) * 10.0, len(note) * 7.2)
    width = int(max(cards + card_width, _MARGIN + header_width) + _MARGIN)
    height = _HEADER + len(nodes) * _ROW + _MARGIN // 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-labelledby="graph-title">',
        f'<title id="graph-title">{escape(_text(f"{heading}: {note}"))}</title>',
        f"<style>\n{_style()}</style>",
        f'<rect class="back" width="{width}" height="{height}"/>',
        f'<text class="heading" x="{_MARGIN}" y="30">{escape(_text(heading))}</text>',
        f'<text class="note" x="{_MARGIN}" y="50">{escape(note)}</text>',
    ]
    parts += [_links(index, row) for index, row in enumerate(rows)]
    for index, (node, row) in enumerate(zip(nodes, rows, strict=True)):
        parts.append(_step(index, node, row, (cards, indent, card_width)))
    return "\n".join([*(part for part in parts if part), "</svg>"]) + "\n"


def _x(column: int) -> int:
    return _MARGIN + column * _LANE + _DOT


def _y(index: int) -> int:
    return _HEADER + index * _ROW + _ROW // 2


def _links(index: int, row: Row) -> str:
    """The lines that come down to one step: along the parent's lane, then over in a curve."""
    lines: list[str] = []
    x, y = _x(row.column), _y(index)
    for link in row.links:
        start_x, start_y = _x(link.column), _y(link.parent)
        turn = y - _GAP - _DOT
        lane = link.column % _COLOURS
        if link.column == row.column:
            lines.append(f'<path class="link s{lane}" d="M{start_x} {start_y}V{y}"/>')
            continue
        if turn > start_y:
            lines.append(f'<path class="link s{lane}" d="M{start_x} {start_y}V{turn}"/>')
        bend = max(link.column, row.column) % _COLOURS
        top = max(turn, start_y)
        middle = (top + y) // 2
        lines.append(
            f'<path class="link s{bend}" '
            f'd="M{start_x} {top}C{start_x} {middle} {x} {middle} {x} {y}"/>'
        )
    return "\n".join(lines)


def _step(index: int, node: Node, row: Row, place: tuple[int, int, int]) -> str:
    """A dot in its lane and a card. ``place``: the card's left edge, its indent, its width."""
    cards, indent, card_width = place
    y = _y(index)
    colour = row.column % _COLOURS
    dot = f"forgiven s{colour}" if node.may_fail else f"dot f{colour}"
    about = f"{node.index} {node.title}: {node.image} {node.command}"
    title_x = cards + indent
    top = y - _ROW // 2 + 3
    return "\n".join(
        [
            f"<g><title>{escape(_text(about))}</title>",
            f'<rect class="card" x="{cards}" y="{top}" width="{card_width}" '
            f'height="{_ROW - 6}" rx="7"/>',
            f'<circle class="{dot}" cx="{_x(row.column)}" cy="{y}" r="{_DOT}"/>',
            f'<text class="number" x="{cards + 10}" y="{y - 2}">{node.index}</text>',
            f'<text class="title" x="{title_x}" y="{y - 2}">{escape(_title(node))}</text>',
            f'<text class="detail" x="{title_x}" y="{y + 14}">{escape(_detail(node))}</text>',
            "</g>",
        ]
    )


def _title(node: Node) -> str:
    return one_line(node.title, _MAX_TITLE)


def _detail(node: Node) -> str:
    return one_line(f"{node.image}  {node.command}", _MAX_DETAIL)


def _text_width(node: Node) -> int:
    return int(max(len(_title(node)) * _TITLE_CHAR, len(_detail(node)) * _DETAIL_CHAR)) + 14


def _text(text: str) -> str:
    return one_line(text, 500)
