"""Drawings of the step graph: as text, as Mermaid, and as one self-contained SVG file. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from buildrunner.plan.compile import step_dependencies
from buildrunner.spec.model.build import Build


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one step that a drawing shows.

    Attributes:
        index: position in the build.
        id: the step's id; empty if it has none.
        image: the image as in the config.
        command: its command, on one line; empty for the image's own command.
        depends_on: indexes of the steps it waits for.
        may_fail: whether a failure is forgiven.
    """

    index: int
    id: str
    image: str
    command: str
    depends_on: tuple[int, ...]
    may_fail: bool = False

    @property
    def title(self) -> str:
        """Return the id, or else the image's short name; printable, on one line."""
        return one_line(self.id or short_image(self.image), 60)


def nodes_of_build(build: Build) -> list[Node]:
    """Return the steps of a build as in the config, without substitutions.

    Raises:
        ConfigError: a step waits for an id that no earlier step has.
    """
    dependencies = step_dependencies(build.steps)
    return [
        Node(
            index=index,
            id=step.id,
            image=step.name,
            command=_command(step.script, step.entrypoint, step.args),
            depends_on=dependencies[index],
            may_fail=step.allow_failure or bool(step.allow_exit_codes),
        )
        for index, step in enumerate(build.steps)
    ]


def summary(nodes: Sequence[Node]) -> str:
    """Return a summary: ``6 steps, the longest chain has 3``."""
    count = len(nodes)
    steps = "1 step" if count == 1 else f"{count} steps"
    chain = longest_chain([node.depends_on for node in nodes])
    if count <= 1:
        return steps
    if chain == count:
        return f"{steps}, one after the other"
    return f"{steps}, all at once" if chain == 1 else f"{steps}, the longest chain has {chain}"


def short_image(image: str) -> str:
    """Return the last part of an image's name, without tag and digest.

    For example, ``docker`` for ``gcr.io/cloud-builders/docker:latest``.
    """
    return image.partition("@")[0].rpartition("/")[2].partition(":")[0]


def _command(script: str, entrypoint: str, args: Sequence[str]) -> str:
    if script:
        lines = (line.strip() for line in script.splitlines())
        first = next((line for line in lines if line and not line.startswith("#")), "")
        return one_line(f"script: {first}")
    return one_line(" ".join(part for part in (entrypoint, *args) if part))


def one_line(text: str, limit: int = 200) -> str:
    """Return the text with blanks and control characters collapsed, cut at the limit."""
    flat = " ".join(text[: 4 * limit].split())
    flat = "".join(char if char.isprintable() else "?" for char in flat)
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


class Glyphs(msgspec.Struct, frozen=True):
    """The characters of a drawing, named for the directions in which lines leave a cell."""

    step: str
    forgiven: str
    line: str
    across: str
    up_down_right: str
    up_down_left: str
    cross: str
    up_right: str
    up_left: str
    down_right: str
    down_left: str
    down_both: str
    up_both: str


UNICODE: Final = Glyphs("●", "○", "│", "─", "├", "┤", "┼", "╰", "╯", "╭", "╮", "┬", "┴")
ASCII: Final = Glyphs("*", "o", "|", "-", "+", "+", "+", "`", "'", ".", ".", "+", "+")


def draw_text(nodes: Sequence[Node], *, width: int = 100, glyphs: Glyphs = UNICODE) -> str:
    """Draw the graph in lanes: time runs down, steps side by side may run concurrently.

    Args:
        nodes: at least one.
        width: columns of the terminal; commands are cut to fit.
        glyphs: `ASCII` for an output without Unicode.
    """
    rows = lay_out(reduced([node.depends_on for node in nodes]))
    lanes = 1 + max(row.column for row in rows)
    titles = max(display_width(node.title) for node in nodes)
    names = [one_line(short_image(node.image), 60) for node in nodes]
    widest = max(map(len, names))
    has_ids = any(node.id for node in nodes)
    digits = len(str(len(nodes) - 1))
    drawing: list[str] = []
    for node, row, name in zip(nodes, rows, names, strict=True):
        if row.links:
            drawing.append("".join(_connector(row, lanes, glyphs)).rstrip())
        cells = ["  "] * lanes
        for lane in (*row.passing, *(link.column for link in row.links if not link.ends)):
            cells[lane] = f"{glyphs.line} "
        cells[row.column] = f"{glyphs.forgiven if node.may_fail else glyphs.step} "
        label = f"{node.index:>{digits}}  {padded(node.title, titles)}"
        if has_ids:
            label += f"  {name:<{widest}}"
        line = f"{''.join(cells)} {label}  {node.command}".rstrip()
        fits = display_width(line) <= width
        drawing.append(line if fits else f"{fitting(line, width - 1)}…")
    if any(node.may_fail for node in nodes):
        drawing += ["", f"{glyphs.forgiven} may fail without failing the build"]
    return "\n".join(drawing) + "\n"


def _connector(row: Row, lanes: int, glyphs: Glyphs) -> list[str]:
    """Return the cells between a step and its dependencies, with two characters per lane."""
    columns = [row.column, *(link.column for link in row.links)]
    left, right = min(columns), max(columns)
    cells: list[str] = []
    linked = {link.column: link for link in row.links}
    for lane in range(lanes):
        across = glyphs.across if left <= lane < right else " "
        link = linked.get(lane)
        if lane == row.column:
            cell = _step_corner(lane, left, right, glyphs, from_above=link is not None)
        elif link is not None:
            cell = _link_corner(link.ends, lane, left, right, glyphs)
        elif lane in row.passing:
            cell = glyphs.line
        else:
            cell = glyphs.across if left < lane < right else " "
        cells.append(cell + across)
    return cells


def _step_corner(lane: int, left: int, right: int, glyphs: Glyphs, *, from_above: bool) -> str:
    """Return the glyph where the edges of a step join."""
    if left == right:
        return glyphs.line
    if left < lane < right:
        return glyphs.cross if from_above else glyphs.down_both
    if lane == left:
        return glyphs.up_down_right if from_above else glyphs.down_right
    return glyphs.up_down_left if from_above else glyphs.down_left


def _link_corner(ends: bool, lane: int, left: int, right: int, glyphs: Glyphs) -> str:
    """Return the glyph where an edge turns from its lane towards the step's lane."""
    if left < lane < right:
        return glyphs.up_both if ends else glyphs.cross
    if lane == left:
        return glyphs.up_right if ends else glyphs.up_down_right
    return glyphs.up_left if ends else glyphs.up_down_left


class Link(msgspec.Struct, frozen=True):
    """An edge that ends at a row's step.

    Attributes:
        column: the lane in which the edge comes down.
        parent: the row from which the edge comes.
        ends: nothing else waits for the parent, so its lane becomes free.
    """

    column: int
    parent: int
    ends: bool


class Row(msgspec.Struct, frozen=True):
    """One step and its position.

    Attributes:
        column: its lane.
        links: edges from its dependencies, by column.
        passing: lanes of other chains that pass the links and the step.
    """

    column: int
    links: tuple[Link, ...]
    passing: tuple[int, ...]


def reduced(dependencies: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """Return the dependencies without those that other dependencies imply, ascending.

    Args:
        dependencies: the indexes of earlier steps, for each step.
    """
    ancestors: list[int] = []  # a bit for each step
    result: list[tuple[int, ...]] = []
    for needed in dependencies:
        covered = 0
        kept: list[int] = []
        for index in sorted(set(needed), reverse=True):
            if not covered >> index & 1:
                kept.append(index)
                covered |= ancestors[index] | 1 << index
        ancestors.append(covered)
        result.append(tuple(reversed(kept)))
    return result


def longest_chain(dependencies: Sequence[Sequence[int]]) -> int:
    """Return the number of steps in the longest chain of dependencies."""
    depths: list[int] = []
    for needed in dependencies:
        depths.append(1 + max((depths[index] for index in needed), default=0))
    return max(depths, default=0)


def lay_out(dependencies: Sequence[Sequence[int]]) -> list[Row]:
    """Return a row for each step, in list order, which is a valid order of execution.

    Args:
        dependencies: the indexes of earlier steps, for each step, already `reduced`.
    """
    waiting = [0] * len(dependencies)
    for needed in dependencies:
        for index in needed:
            waiting[index] += 1
    column_of: list[int] = []
    lanes: list[int | None] = []
    rows: list[Row] = []
    for step, needed in enumerate(dependencies):
        links: list[Link] = []
        for parent in needed:
            waiting[parent] -= 1
            links.append(Link(column_of[parent], parent, ends=not waiting[parent]))
        links.sort(key=lambda link: link.column)
        linked = {link.column for link in links}
        ended = [link.column for link in links if link.ends]
        column = ended[0] if ended else _free(lanes)
        passing = [
            lane for lane, owner in enumerate(lanes) if owner is not None and lane not in linked
        ]
        for lane in ended:
            lanes[lane] = None
        if column == len(lanes):
            lanes.append(None)
        lanes[column] = step if waiting[step] else None
        column_of.append(column)
        rows.append(Row(column, tuple(links), tuple(passing)))
    return rows


def _free(lanes: Sequence[int | None]) -> int:
    return next((lane for lane, owner in enumerate(lanes) if owner is None), len(lanes))


def display_width(text: str) -> int:
    """Return the number of columns of ``text`` (without escapes) on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text
    )


def padded(text: str, width: int) -> str:
    """Return ``text``, padded with blanks to ``width`` columns."""
    return text + " " * (width - display_width(text))


def fitting(text: str, width: int) -> str:
    """Return ``text``, cut to ``width`` columns."""
    if display_width(text) <= width:
        return text
    while text and display_width(text) > width:
        text = text[:-1]
    return text


def draw_mermaid(nodes: Sequence[Node]) -> str:
    """Draw a ``flowchart TD``: steps are boxes (dashed if they may fail), dependencies arrows."""
    lines = ["flowchart TD"]
    for node in nodes:
        label = _quoted(node.id or f"step {node.index}")
        image = _quoted(short_image(node.image))
        lines.append(f'  s{node.index}["{label}<br><small>{image}</small>"]')
    for node, needed in zip(nodes, reduced([node.depends_on for node in nodes]), strict=True):
        lines += [f"  s{nodes[index].index} --> s{node.index}" for index in needed]
    forgiven = ",".join(f"s{node.index}" for node in nodes if node.may_fail)
    if forgiven:
        lines += ["  classDef mayFail stroke-dasharray: 4 3", f"  class {forgiven} mayFail"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return the text for use in Mermaid's quotes, with special characters as entities."""
    special = {char: f"#{ord(char)};" for char in '"#<>&;`\\[](){}|*_~'}
    return "".join(special.get(char, char) for char in one_line(text, 60))


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

# Chosen to be distinct, and visible on white and on black. Written out in full, without CSS
# variables, which several renderers do not support.
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
    """Draw the graph in lanes, as in the text drawing, with a card for each step.

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
        f'<title id="graph-title">{_escape(_text(f"{heading}: {note}"))}</title>',
        f"<style>\n{_style()}</style>",
        f'<rect class="back" width="{width}" height="{height}"/>',
        f'<text class="heading" x="{_MARGIN}" y="30">{_escape(_text(heading))}</text>',
        f'<text class="note" x="{_MARGIN}" y="50">{_escape(note)}</text>',
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
    """Draw the edges down to one step: along the parent's lane, then across in a curve."""
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
    """Draw a dot in the step's lane, and a card. ``place``: the card's left edge, indent, width."""
    cards, indent, card_width = place
    y = _y(index)
    colour = row.column % _COLOURS
    dot = f"forgiven s{colour}" if node.may_fail else f"dot f{colour}"
    about = f"{node.index} {node.title}: {node.image} {node.command}"
    title_x = cards + indent
    top = y - _ROW // 2 + 3
    return "\n".join(
        [
            f"<g><title>{_escape(_text(about))}</title>",
            f'<rect class="card" x="{cards}" y="{top}" width="{card_width}" '
            f'height="{_ROW - 6}" rx="7"/>',
            f'<circle class="{dot}" cx="{_x(row.column)}" cy="{y}" r="{_DOT}"/>',
            f'<text class="number" x="{cards + 10}" y="{y - 2}">{node.index}</text>',
            f'<text class="title" x="{title_x}" y="{y - 2}">{_escape(_title(node))}</text>',
            f'<text class="detail" x="{title_x}" y="{y + 14}">{_escape(_detail(node))}</text>',
            "</g>",
        ]
    )


def _title(node: Node) -> str:
    return one_line(node.title, _MAX_TITLE)


def _detail(node: Node) -> str:
    return one_line(f"{node.image}  {node.command}", _MAX_DETAIL)


def _text_width(node: Node) -> int:
    return int(max(len(_title(node)) * _TITLE_CHAR, len(_detail(node)) * _DETAIL_CHAR)) + 14


def _escape(text: str) -> str:
    from xml.sax.saxutils import escape  # imports urllib.request, which other drawings do not need

    return escape(text)


def _text(text: str) -> str:
    return one_line(text, 500)
