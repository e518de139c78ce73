"""Where in a log a step went wrong: the first lines that look like an error, with those around.

A step may have written a million lines. Only the last few thousand before its end are looked at, so
that a page never waits for a log; what is older is what the log viewer's search is for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

import msgspec

from buildrunner.logs.files.reader import LogFileReader, LogLine
from buildrunner.server.pages.wording import shown_text

_LOOKED_AT = 3000  # lines before the step's end
_BEFORE, _BEHIND, _LAST = 2, 8, 5
_WIDTH = 500
_PREFIX = re.compile(r'^Step #\d+(?: - "[^"]*")?: ')

_ERROR = re.compile(
    r"\berrors?\b[:\s\[(!]|\berror$|\bfatal\b[:\s]|\bpanic:|\bFAIL(ED|URE)?\b|\bfailed\b"
    r"|Traceback \(most recent|\b\w+(Error|Exception)\b|^E\s{2,}\S|\bnpm ERR!|\bSegmentation fault"
    r"|undefined reference|command not found|[Nn]o such file|[Pp]ermission denied"
    r"|\bexpected\b.*\b(got|but|received|found)\b|\bcannot\b|\bnot found\b|✗|✖|❌",
    re.IGNORECASE,
)
# What sounds like one and is none.
_FINE = re.compile(
    r"\b(0|no|without|zero)\s+(\w+\s+)?(errors?|failures?|failed)\b|\b(errors?|failed|failures?)[:=]\s*0\b"
    r"|-Werror|--?\w*(fail|error)|\bPASSED\b",
    re.IGNORECASE,
)


class ErrorLine(msgspec.Struct, frozen=True):
    """One line: its number in the log, from 1; its text; whether it looks like an error."""

    number: int
    text: str
    is_error: bool


class Excerpt(msgspec.Struct, frozen=True):
    """Lines of a step's log that tell why it failed.

    Attributes:
        first: number of the first line that looks like an error; None without one.
        parts: runs of lines, in their order; between two of them some were left out.
    """

    first: int | None
    parts: tuple[tuple[ErrorLine, ...], ...]


def excerpt_of(reader: LogFileReader, step: int, ended: datetime | None) -> Excerpt | None:
    """The first error of a step and its last lines; None when its lines are not at hand.

    Args:
        reader: the log.
        step: the step that failed.
        ended: when it did; None when that is not known.
    """
    until = reader.line_count() + 1
    if ended is not None:
        behind = next(iter(reader.lines_since(ended)), None)
        # Its last words may have come in the moment of its end: some lines behind count, too.
        until = until if behind is None else min(until, behind.number + 200)
    found: list[LogLine] = []
    for line in reader.lines(max(0, until - _LOOKED_AT), only_step=step):
        if line.number >= until:
            break
        if found and found[-1].number == line.number:
            continue  # a very long line comes in pieces
        found.append(line)
    return pick([(line.number + 1, _text(line.text[:_WIDTH])) for line in found])


def _text(line: bytes) -> str:
    """What the step itself wrote: its name is said above."""
    return _PREFIX.sub("", shown_text(line))


def pick(lines: Sequence[tuple[int, str]]) -> Excerpt | None:
    """Choose among numbered lines. Pure."""
    if not lines:
        return None
    looks = [looks_like_error(text) for _, text in lines]
    first = next((at for at, bad in enumerate(looks) if bad), None)
    count = len(lines)
    last = range(max(0, count - _LAST), count)
    if first is None:
        chosen = [range(max(0, count - _BEHIND), count)]
    else:
        around = range(max(0, first - _BEFORE), min(count, first + _BEHIND))
        if last.start <= around.stop:
            chosen = [range(min(around.start, last.start), count)]
        else:
            chosen = [around, last]
    parts = tuple(tuple(ErrorLine(*lines[at], looks[at]) for at in run) for run in chosen)
    return Excerpt(None if first is None else lines[first][0], parts)


def looks_like_error(text: str) -> bool:
    """Whether a person would stop at this line when he looks for what went wrong."""
    return bool(_ERROR.search(_FINE.sub(" ", text)))
