"""A problem of a config, with its place and a hint; and suggestions for typos."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

import msgspec

_MOST_CANDIDATES: Final = 400
_LONGEST_WORD: Final = 100


class Severity(enum.Enum):
    """The severity of a problem. A warning stops a build only with ``--strict``."""

    ERROR = "error"
    WARNING = "warning"


class Problem(msgspec.Struct, frozen=True):
    """One problem, with its place and a hint on how to fix it.

    Attributes:
        message: one sentence without the place.
        path: JSON path in camelCase, e.g. ``steps[2].waitFor[0]``; empty for the whole file.
        file: name of the file as the user gave it; empty if the config is from elsewhere.
        line: 1-based; 0 if unknown.
        column: 1-based, in characters; 0 if unknown.
        hint: advice; empty if the message is enough.
        rule: stable id of the rule that was broken (``V17``, ``yaml-syntax``, ...).
        severity: error or warning.
    """

    message: str
    path: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    hint: str = ""
    rule: str = ""
    severity: Severity = Severity.ERROR

    def text(self) -> str:
        """Return ``file:line:column: path: message; hint`` on one line, with the known parts."""
        place = self.file
        if self.line:
            place = f"{place or 'config'}:{self.line}:{self.column}"
        path = " ".join(self.path.split())  # a key of the config can have several lines
        parts = [part for part in (place, path) if part]
        parts.append(f"{self.message}; {self.hint}" if self.hint else self.message)
        return ": ".join(parts)


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return the known word most similar to ``word``, ignoring case; empty if none is similar.

    Args:
        word: what the user wrote.
        known: the valid words.
        cutoff: the required similarity, from 0 to 1.
    """
    from difflib import get_close_matches  # imported only for errors

    by_lower = {candidate.lower(): candidate for candidate in sorted(known)[:_MOST_CANDIDATES]}
    close = get_close_matches(word[:_LONGEST_WORD].lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[close[0]] if close else ""
