"""The findings of checks, before they have a place in a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from buildrunner.problem import Problem, Severity, nearest

_MAX_SUGGESTIONS: Final = 20


class Findings:
    """The problems of one build, in the order in which they were found.

    Attributes:
        problems: what was found; file, line and column are not known yet.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._suggestions_left = _MAX_SUGGESTIONS

    def error(self, rule: str, path: str, message: str, hint: str = "") -> None:
        """The build can't run like this."""
        self.problems.append(Problem(message, path=path, rule=rule, hint=hint))

    def warning(self, rule: str, path: str, message: str, hint: str = "") -> None:
        """The build runs, but perhaps not everywhere, or not as meant."""
        self.problems.append(
            Problem(message, path=path, rule=rule, hint=hint, severity=Severity.WARNING)
        )

    def did_you_mean(self, word: str, known: Iterable[str]) -> str:
        """``did you mean "x"?`` for the known word most like ``word``; empty for none.

        Only the first few calls look: thousands of typos are no typos, and looking is slow.
        """
        self._suggestions_left -= 1
        return did_you_mean(word, known) if self._suggestions_left >= 0 else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean "x"?`` for the known word most like ``word``; empty for none."""
    near = nearest(word, known)
    return f'did you mean "{near}"?' if near else ""


def shortened(text: str, limit: int = 60) -> str:
    """The text on one line for a message, its end cut off when it is long."""
    line = text[: limit + 1].replace("\n", "\\n").replace("\r", "\\r")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
