"""The little Markdown that the pages need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may hold Markdown, on one line."""
    lines = [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(text) for text in cells)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """``text`` as code; empty stays empty."""
    return f"`{text}`" if text else ""


def codes(texts: Iterable[str]) -> str:
    """Several, separated by commas."""
    return ", ".join(code(text) for text in texts)


def sentence(text: str) -> str:
    """``text`` with a capital at its beginning and a full stop behind it."""
    text = " ".join(text.split())
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def inline_code(text: str) -> str:
    """The double backquotes of docstrings as Markdown's single ones."""
    return " ".join(text.split()).replace("``", "`")


def attributes(docstring: str) -> dict[str, str]:
    """What the ``Attributes:`` of a Google docstring say, by name."""
    found: dict[str, str] = {}
    _, _, section = docstring.partition("Attributes:\n")
    names: tuple[str, ...] = ()
    indent = len(section) - len(section.lstrip(" "))
    for line in section.splitlines():
        if not line.strip():
            break
        if len(line) - len(line.lstrip(" ")) > indent:
            for name in names:
                found[name] += " " + line.strip()
            continue
        head, _, text = line.strip().partition(": ")
        names = tuple(name.strip() for name in head.split(","))
        found.update(dict.fromkeys(names, text))
    return {name: inline_code(text) for name, text in found.items()}


def summary(docstring: str) -> str:
    """The first paragraph of a docstring."""
    return inline_code(docstring.strip().split("\n\n")[0])
