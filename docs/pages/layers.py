"""The packages in their layers, as import-linter checks them, and a drawing of them."""

from __future__ import annotations

import tomllib
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_WIDTH = 880
_MARGIN = 64  # left of the boxes: the arrow and its words
_GAP = 10
_HEAD = 30  # a box without rooms
_LINE = 15  # one line of rooms
_ROOM_LETTER = 6.1  # the width of a letter of the rooms
_STYLE = (
    "text{font-family:system-ui,'Helvetica Neue',Arial,sans-serif;fill:#1c2733}"
    ".name{font-size:13px;font-weight:600;text-anchor:middle}"
    ".room{font-size:11px;fill:#51606e;text-anchor:middle}"
    ".word{font-size:12px;fill:#51606e;text-anchor:middle}"
    ".box{fill:#eef3f8;stroke:#9db2c5}"
)


def layers(pyproject: Path, *, container: str = "") -> list[list[str]]:
    """The layers of a contract in pyproject.toml, top first; each is a list of sibling names.

    Args:
        pyproject: the file with the contracts.
        container: the package whose inner layers are meant; empty for the layers of all packages.
    """
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    inside = [f"buildrunner.{container}"] if container else []
    found = next(
        one for one in contracts if one["type"] == "layers" and one.get("containers", []) == inside
    )
    return [
        [name.strip().removeprefix("buildrunner.") for name in layer.split("|")]
        for layer in found["layers"]
    ]


def rooms(package: Path) -> list[str]:
    """The packages inside a package."""
    return sorted(init.parent.name for init in package.glob("*/__init__.py"))


def drawing(found: list[list[str]], package: Path) -> str:
    """The layers as SVG: a row for each layer, a box for each package, with the packages inside."""
    y = _GAP
    body: list[str] = []
    for layer in found:
        width = (_WIDTH - _MARGIN - _GAP * len(layer)) / len(layer)
        lines = {name: list(_wrapped(rooms(package / name), width)) for name in layer}
        height = _HEAD + _LINE * max(len(one) for one in lines.values())
        for at, name in enumerate(layer):
            x = _MARGIN + at * (width + _GAP)
            body += _box(name, lines[name], x, y, width, height)
        y += height + _GAP
    arrow = f"M{_MARGIN / 2} {_GAP} V{y - 2 * _GAP} m-5 -8 l5 9 l5 -9"
    middle = y / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" role="img">\n'
        "<title>The layers: a package imports from lower layers only</title>\n"
        f"<style>{_STYLE}</style>\n"
        f'<rect width="{_WIDTH}" height="{y}" fill="#ffffff"/>\n'
        f'<path d="{arrow}" fill="none" stroke="#51606e" stroke-width="1.5"/>\n'
        f'<text class="word" transform="translate({_MARGIN / 2 - 10} {middle:g}) rotate(-90)">imports</text>\n'
        + "".join(f"{line}\n" for line in body)
        + "</svg>\n"
    )


def _box(
    name: str, lines: list[str], x: float, y: float, width: float, height: float
) -> Iterator[str]:
    middle = x + width / 2
    yield (
        f'<rect class="box" x="{x:.1f}" y="{y}" width="{width:.1f}" height="{height}" rx="5"/>'
        f'<text class="name" x="{middle:.1f}" y="{y + 20}">{escape(name)}</text>'
    )
    for at, line in enumerate(lines):
        yield f'<text class="room" x="{middle:.1f}" y="{y + 36 + at * _LINE}">{escape(line)}</text>'


def _wrapped(words: list[str], width: float) -> Iterator[str]:
    """``words`` in lines that fit into ``width``."""
    line = ""
    for word in words:
        longer = f"{line} · {word}" if line else word
        if line and len(longer) * _ROOM_LETTER > width - 2 * _GAP:
            yield line
            longer = word
        line = longer
    if line:
        yield line
