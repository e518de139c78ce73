"""A problem of a config, with its place."""

from __future__ import annotations

import enum

import msgspec


class Severity(enum.Enum):
    """The severity of a problem. A warning stops a build only with ``--strict``."""

    ERROR = "error"
    WARNING = "warning"


class Problem(msgspec.Struct, frozen=True):
    """One problem, with its place and a hint how to fix it.

    Attributes:
        message: one sentence without the place.
        path: JSON path in camelCase, e.g. ``steps[2].waitFor[0]``; empty for the whole file.
        file: name of the file as the user gave it; empty when the config came from elsewhere.
        line: 1-based; 0 when unknown.
        column: 1-based, in characters; 0 when unknown.
        hint: what to do about it; empty when the message says it all.
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
        """``file:line:column: path: message; hint``, with the parts that are known."""
        place = self.file
        if self.line:
            place = f"{place or 'config'}:{self.line}:{self.column}"
        parts = [part for part in (place, self.path) if part]
        parts.append(f"{self.message}; {self.hint}" if self.hint else self.message)
        return ": ".join(parts)
