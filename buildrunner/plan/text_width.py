"""How wide a text stands on a terminal: names of steps are people's own, in any script."""

from __future__ import annotations


def display_width(text: str) -> int:
    """Columns that ``text`` (without escapes) takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(
        0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text
    )


def padded(text: str, width: int) -> str:
    """``text`` with blanks behind it, up to ``width`` columns."""
    return text + " " * (width - display_width(text))


def fitting(text: str, width: int) -> str:
    """As much of ``text`` as fits into ``width`` columns."""
    if display_width(text) <= width:
        return text
    while text and display_width(text) > width:
        text = text[:-1]
    return text
