"""The first lines of a step's log that look like an error, with the lines around them.

A step may have written a million lines. They are searched block by block, for a second at most, so
that a page never waits for a log. The excerpt says if only a part of the lines was searched.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec

from buildrunner.logs.files.reader import LogFileReader, LogLine, wants_more
from buildrunner.server.pages.wording import shown_text

_SEARCH_S = 1.0
_BACK = 500  # lines before an error that are searched for other lines of its step
_TAIL = 3000  # lines before the step's end that are searched for its last lines
_BEFORE, _BEHIND, _LAST = 2, 8, 5
_WIDTH = 500
_PREFIX = re.compile(r'^Step #\d+(?: - "[^"]*")?: ')

# Steps choose the lines, so RE2 judges them: its time is linear in a line.
# Every line that looks like an error has one of these, also between colour escapes.
_CANDIDATE = (
    rb"error|fatal|panic|fail|traceback|exception|E\s{2}|npm ERR!|segmentation fault"
    rb"|undefined reference|not found|no such file|permission denied|expected|cannot|"
    + "✗|✖|❌".encode()
)
_ERROR = (
    r"\berrors?\b[:\s\[(!]|\berror$|\bfatal\b[:\s]|\bpanic:|\bFAIL(ED|URE)?\b|\bfailed\b"
    r"|Traceback \(most recent|\b\w+(Error|Exception)\b|^E\s{2,}\S|\bnpm ERR!|\bSegmentation fault"
    r"|undefined reference|command not found|[Nn]o such file|[Pp]ermission denied"
    r"|\bexpected\b.*\b(got|but|received|found)\b|\bcannot\b|\bnot found\b|✗|✖|❌"
)
# Texts that look like an error without being one.
_FINE = (
    r"\b(0|no|without|zero)\s+(\w+\s+)?(errors?|failures?|failed)\b|\b(errors?|failed|failures?)[:=]\s*0\b"
    r"|-Werror|--?\w*(fail|error)|\bPASSED\b"
)


class ErrorLine(msgspec.Struct, frozen=True):
    """One line: its number in the log, from 1; its text; whether it looks like an error."""

    number: int
    text: str
    is_error: bool


class Excerpt(msgspec.Struct, frozen=True):
    """Lines of a step's log that show why it failed.

    Attributes:
        first: number of the first line that looks like an error; None without one.
        parts: runs of lines, in order, with other lines skipped between them.
        searched: a sentence on what was searched; empty if ``first`` is the first of the step.
    """

    first: int | None
    parts: tuple[tuple[ErrorLine, ...], ...]
    searched: str = ""


def excerpt_of(
    reader: LogFileReader,
    step: int,
    ended: datetime | None,
    may_continue: Callable[[], bool] | None = None,
) -> Excerpt | None:
    """Return the first error of a step and its last lines; None if none of its lines is found.

    Args:
        reader: the log.
        step: the step that failed.
        ended: time of its end; None if unknown.
        may_continue: called after each block; false ends the search. None: after one second.
    """
    found = _search(reader, step, may_continue or wants_more(_SEARCH_S, time.monotonic))
    until = reader.line_count() + 1
    if ended is not None:
        behind = next(iter(reader.lines_since(ended)), None)
        # Its last lines may have arrived at the moment of its end, so some later lines count, too.
        until = until if behind is None else min(until, behind.number + 200)
    lines: dict[int, LogLine] = {}
    if found.line is not None:
        lines = _around(reader, step, found.line)
    for line in reader.lines(max(0, until - _TAIL), only_step=step):
        if line.number >= until:
            break
        lines.setdefault(line.number, line)  # a very long line comes in pieces
    numbered = [(one.number + 1, _text(one.text[:_WIDTH])) for one in lines.values()]
    excerpt = pick(numbered)
    if excerpt is None or found.line is not None:
        return excerpt
    return msgspec.structs.replace(excerpt, searched=_said(found))


class _Found(msgspec.Struct, frozen=True):
    """The result of a search: the line, from 0; the lines it read; whether it read them all."""

    line: int | None
    seen: int
    is_whole: bool


def _said(found: _Found) -> str:
    if found.is_whole:
        return f"None of the {found.seen:,} lines of this step looks like an error."
    return (
        f"Only the first {found.seen:,} lines of this step and the last ones were searched: "
        "the log's own search finds the rest."
    )


def _search(reader: LogFileReader, step: int, may_continue: Callable[[], bool]) -> _Found:
    """Find the first line of a step that looks like an error."""
    seen = 0
    for first, block in reader.step_blocks(step):
        done = 0
        for match in _expression(_CANDIDATE).finditer(block):
            if match.start() < done:
                continue  # the match is in a line that was checked already
            begin = block.rfind(b"\n", 0, match.start()) + 1
            end = block.find(b"\n", match.start())
            done = len(block) if end < 0 else end
            if looks_like_error(_text(block[begin : min(done, begin + _WIDTH)])):
                return _Found(first + block.count(b"\n", 0, begin), seen, is_whole=False)
        seen += block.count(b"\n")
        if not may_continue():
            return _Found(None, seen, is_whole=False)
    return _Found(None, seen, is_whole=True)


@cache
def _expression(pattern: str | bytes) -> Any:
    """Return the compiled expression, which ignores case."""
    import re2

    options = re2.Options()
    options.case_sensitive = False
    options.never_nl = True
    return re2.compile(pattern, options)


def _around(reader: LogFileReader, step: int, number: int) -> dict[int, LogLine]:
    """Return lines of a step around one of them, with more after it than `pick` shows."""
    lines: dict[int, LogLine] = {}
    for line in reader.lines(max(0, number - _BACK), only_step=step):
        lines.setdefault(line.number, line)
        before = line.number < number
        if before and len(lines) > _BEFORE:
            del lines[min(lines)]
        if not before and len(lines) > _BEFORE + _BEHIND + _LAST + 1:
            break
    return lines


def _text(line: bytes) -> str:
    """Return the step's own output, without the step's name, which is shown above."""
    return _PREFIX.sub("", shown_text(line))


def pick(lines: Sequence[tuple[int, str]]) -> Excerpt | None:
    """Choose the lines of an excerpt from numbered lines; None without lines. Pure."""
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
    """Return whether a user who looks for the error would stop at this line."""
    return bool(_expression(_ERROR).search(_expression(_FINE).sub(" ", text)))
