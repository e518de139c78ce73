"""Searching a whole log, of any size, in little memory and bounded time.

Plain text and regular expressions both go through RE2, which takes time in proportion to the text
whatever the expression. The log is read in blocks of whole lines; a match never spans lines. One
call looks for so long and at so many matches as it is told; where it stopped, the next goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from buildrunner.errors import UsageError
from buildrunner.logs.files.reader import LogFileReader

_BLOCK_BYTES = 1 << 20
_SHOWN_BYTES = 400
_LONGEST_QUERY = 1000


class LogMatch(msgspec.Struct, frozen=True, rename="camel"):
    """One place where the query is found.

    Attributes:
        offset, length: of the match, in bytes.
        line: number of its line, from 0.
        line_offset: where that line begins.
        text: the line, or some 400 bytes around the match of a longer one; bytes that are not
            UTF-8 are replaced.
        text_offset: where that text begins in the log.
    """

    offset: int
    length: int
    line: int
    line_offset: int
    text: str
    text_offset: int


class SearchResult(msgspec.Struct, frozen=True, rename="camel"):
    """The result of one call.

    Attributes:
        matches: in the direction of the search.
        next: offset to go on from in that direction; None when the log was searched to its end.
    """

    matches: tuple[LogMatch, ...]
    next: int | None


class LogQuery:
    """The query of a search.

    Args:
        text: the text, or the regular expression in RE2's syntax.
        regex: it is an expression; ``^`` and ``$`` stand for the ends of a line.
        ignore_case: ``a`` finds ``A``.

    Raises:
        UsageError: it is empty, longer than 1,000 characters, or no expression.
    """

    def __init__(self, text: str, *, regex: bool = False, ignore_case: bool = False) -> None:
        import re2

        if not text or "\n" in text or len(text) > _LONGEST_QUERY:
            raise UsageError("a search takes one line of 1 to 1,000 characters")
        options = re2.Options()
        options.never_nl = True
        options.literal = not regex
        options.case_sensitive = not ignore_case
        options.log_errors = False
        pattern = f"(?m){text}" if regex else text
        try:
            self._compiled: Any = re2.compile(pattern.encode("utf-8", "surrogateescape"), options)
        except re2.error as error:
            reason = error.args[0]
            shown = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
            raise UsageError(
                f"the search is not a regular expression: {shown}",
                hint="the syntax is RE2's: no lookahead, no backreferences",
            ) from error

    def spans(self, block: bytes) -> Iterator[tuple[int, int]]:
        """Beginning and end of each match that is not empty."""
        for match in self._compiled.finditer(block):
            begin, end = match.span()
            if end > begin:
                yield begin, end


def search_log(
    reader: LogFileReader,
    query: LogQuery,
    *,
    start: int = 0,
    backwards: bool = False,
    limit: int = 100,
    may_continue: Callable[[], bool] = lambda: True,
) -> SearchResult:
    """Look for a query.

    Args:
        reader: the log.
        query: what to look for.
        start: matches that begin at this offset or behind it; backwards: before it.
        backwards: go towards the beginning of the log; the nearest match comes first.
        limit: how many matches at most.
        may_continue: asked after each MiB; false ends the search there.
    """
    found: list[LogMatch] = []
    blocks = _blocks_before(reader, start) if backwards else _blocks_from(reader, start)
    following: int | None = None
    for offset, block in blocks:
        spans = [
            span
            for span in query.spans(block)
            if (offset + span[0] < start if backwards else offset + span[0] >= start)
        ]
        if spans:
            lines = _LineCounter(reader, offset, block)
            for span in reversed(spans) if backwards else spans:
                if len(found) == limit:
                    return SearchResult(tuple(found), following)
                found.append(lines.match(*span))
                following = found[-1].offset if backwards else found[-1].offset + 1
        following = offset if backwards else offset + len(block)
        if not may_continue():
            return SearchResult(tuple(found), following)
    return SearchResult(tuple(found), None)


class _LineCounter:
    """Tells in which line of a block a match is."""

    def __init__(self, reader: LogFileReader, offset: int, block: bytes) -> None:
        self._first = reader.line_at(offset)
        self._offset = offset
        self._block = block
        self._counted = 0
        self._newlines = 0

    def match(self, begin: int, end: int) -> LogMatch:
        block = self._block
        if begin < self._counted:
            self._newlines -= block.count(b"\n", begin, self._counted)
        else:
            self._newlines += block.count(b"\n", self._counted, begin)
        self._counted = begin
        line = block.rfind(b"\n", 0, begin) + 1
        ended = block.find(b"\n", end)
        stop = len(block) if ended < 0 else ended
        shown = line
        if stop - line > _SHOWN_BYTES:
            shown = max(line, begin - _SHOWN_BYTES // 4)
            stop = min(stop, shown + _SHOWN_BYTES)
        return LogMatch(
            offset=self._offset + begin,
            length=end - begin,
            line=self._first + self._newlines,
            line_offset=self._offset + line,
            text=block[shown:stop].decode("utf-8", "replace"),
            text_offset=self._offset + shown,
        )


def _blocks_from(reader: LogFileReader, start: int) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines from the line that holds ``start`` on."""
    offset = _line_begin(reader, start)
    while block := reader.read(offset, _BLOCK_BYTES):
        if len(block) == _BLOCK_BYTES:
            block = block[: block.rfind(b"\n") + 1] or block
        yield offset, block
        offset += len(block)


def _blocks_before(reader: LogFileReader, start: int) -> Iterator[tuple[int, bytes]]:
    """Blocks of whole lines from the line that holds ``start`` up to the first."""
    size = reader.size()
    end = min(start, size)
    # The rest of a line that `start` cuts: a match may begin before and end behind it.
    rest = reader.read(end, _BLOCK_BYTES)
    newline = rest.find(b"\n")
    end += len(rest) if newline < 0 else newline + 1
    while end > 0:
        begin = max(0, end - _BLOCK_BYTES)
        block = reader.read(begin, end - begin)
        if not block:
            return  # removed meanwhile
        if begin > 0:
            cut = block.find(b"\n", 0, len(block) - 1) + 1
            block = block[cut:]
            begin += cut
        yield begin, block
        end = begin


def _line_begin(reader: LogFileReader, offset: int) -> int:
    begin = max(0, offset - _BLOCK_BYTES)
    before = reader.read(begin, offset - begin)
    newline = before.rfind(b"\n")
    return begin + newline + 1 if newline >= 0 else begin


def wants_more(deadline_s: float, now: Callable[[], float]) -> Callable[[], bool]:
    """A ``may_continue`` that ends ``deadline_s`` seconds from now (monotonic seconds)."""
    until = now() + deadline_s
    return lambda: now() < until
