"""The problems found by checks, before they get a place in a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from buildrunner.problem import Problem, Severity, nearest

_MAX_SUGGESTIONS: Final = 20


class Findings:
    """The problems of one build, in the order in which they were found.

    Attributes:
        problems: the problems; file, line and column are not known yet.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._suggestions_left = _MAX_SUGGESTIONS

    def error(self, rule: str, path: str, message: str, hint: str = "") -> None:
        """Add a problem that prevents the build."""
        self.problems.append(Problem(message, path=path, rule=rule, hint=hint))

    def warning(self, rule: str, path: str, message: str, hint: str = "") -> None:
        """Add a problem that does not prevent the build."""
        self.problems.append(
            Problem(message, path=path, rule=rule, hint=hint, severity=Severity.WARNING)
        )

    def did_you_mean(self, word: str, known: Iterable[str]) -> str:
        """Return ``did you mean "x"?`` for the known word most like ``word``; empty for none.

        Only the first calls search: the search is slow, and thousands of unknown words are not
        typos.
        """
        self._suggestions_left -= 1
        return did_you_mean(word, known) if self._suggestions_left >= 0 else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean "x"?`` for the known word most like ``word``; empty for none."""
    near = nearest(word, known)
    return f'did you mean "{near}"?' if near else ""


def shortened(text: str, limit: int = 60) -> str:
    """Return the text on one line for a message; a long text is cut."""
    line = text[: limit + 1].replace("\n", "\\n").replace("\r", "\\r")
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
