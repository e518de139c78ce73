"""Reads a build's log on disk, by byte, line or time, and searches it, also while it grows.

A search needs little memory and bounded time. Plain text and regular expressions both use RE2,
whose time is linear in the text for every expression. The log is read in blocks of whole lines; a
match never spans lines. A call searches until its deadline or its limit of matches; the next call
resumes at the place where the call stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from buildrunner.errors import UsageError
from buildrunner.logs.files.log_file import (
    BEGINNING,
    INDEX_NAME,
    LOG_NAME,
    NO_STEP,
    IndexRecord,
    LogIndex,
)

_BLOCK_BYTES = 1 << 16
_STEP_BLOCK_BYTES = 1 << 20


class LogFileReader:
    """Reads a log by byte, line or time, also while it is being written.

    Keeps no file open and nothing in memory, so many may read, in any thread.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, LOG_NAME)
        self._index_path = os.path.join(folder, INDEX_NAME)

    @property
    def path(self) -> str:
        """Return the path of the file with the text."""
        return self._path

    def size(self) -> int:
        """Return the bytes in the log so far; 0 if it is empty or missing."""
        return self._last().end

    def line_count(self) -> int:
        """Return the number of newlines in the log so far."""
        return self._last().lines

    def read(self, offset: int = 0, limit: int = _BLOCK_BYTES) -> bytes:
        """Return up to ``limit`` bytes from ``offset``; empty at the end."""
        left = min(limit, self.size() - offset)
        if left <= 0:
            return b""
        try:
            with open(self._path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), left, offset)
        except FileNotFoundError:
            return b""

    def lines(
        self, start: int = 0, count: int | None = None, *, only_step: int | None = None
    ) -> Iterator[LogLine]:
        """Yield ``count`` lines (all if None) from line number ``start``.

        Args:
            start: number of the first line, among the lines of all steps.
            count: the most lines.
            only_step: yield only lines of this step (-1: of the build itself). Other lines are not
                read.
        """
        left = count
        for line in self._lines_from(lambda record: record.lines > start, only_step):
            if line.number < start:
                continue
            if left is not None:
                if left <= 0:
                    return
                left -= 1
            yield line

    def lines_since(self, moment: datetime, *, only_step: int | None = None) -> Iterator[LogLine]:
        """Yield lines that arrived at ``moment`` or later.

        If the clock went back while the log was written, lines may be missing.
        """
        at_us = int(moment.timestamp() * 1_000_000)
        for line in self._lines_from(lambda record: record.at_us >= at_us, only_step):
            if line.at >= moment:
                yield line

    def chunks(self, begin: int, end: int) -> Iterator[tuple[int, IndexRecord]]:
        """Yield each chunk in bytes ``begin`` to ``end``: the size of its part, and its record."""
        with self._opened() as index:
            if index is None:
                return
            count = len(index)
            at = begin
            for record in index.walk(index.first(count, lambda one: one.end > begin), count):
                if at >= end:
                    return
                until = min(record.end, end)
                yield until - at, record
                at = until

    def step_blocks(self, step: int) -> Iterator[tuple[int, bytes]]:
        """Yield the output of a step in blocks of whole chunks: number of the first line, text.

        The output of other steps in between is not read.
        """
        with self._opened() as index:
            if index is None:
                return
            before = block = BEGINNING  # start of the chunk, and of the block
            for record in index.walk(0, len(index)):
                if record.step != step or record.end - block.end > _STEP_BLOCK_BYTES:
                    if before.end > block.end:
                        yield block.lines, self.read(block.end, before.end - block.end)
                    block = record if record.step != step else before
                before = record
            if before.end > block.end:
                yield block.lines, self.read(block.end, before.end - block.end)

    def line_at(self, offset: int) -> int:
        """Return the number of the line that holds the byte at ``offset``."""
        with self._opened() as index:
            if index is None:
                return 0
            count = len(index)
            at = index.first(count, lambda record: record.end > offset)
            begin = index[at - 1]
        return begin.lines + self.read(begin.end, offset - begin.end).count(b"\n")

    def stored_output(self) -> dict[tuple[int, bool], int]:
        """Return the stored bytes of masked output, by step and stream (True is stderr)."""
        stored: dict[tuple[int, bool], int] = {}
        with self._opened() as index:
            for record in index.walk(0, len(index)) if index is not None else ():
                if record.output:
                    key = (record.step, record.error)
                    stored[key] = stored.get(key, 0) + record.output
        return stored

    def own_chunks(self) -> Iterator[bytes]:
        """Yield the texts of chunks without output of a step: the build's own lines."""
        with self._opened() as index:
            begin = 0
            for record in index.walk(0, len(index)) if index is not None else ():
                if not record.output:
                    yield self.read(begin, record.end - begin)
                begin = record.end

    def _last(self) -> IndexRecord:
        with self._opened() as index:
            return BEGINNING if index is None else index[len(index) - 1]

    def _lines_from(
        self, reaches: Callable[[IndexRecord], bool], only_step: int | None = None
    ) -> Iterator[LogLine]:
        with self._opened() as index:
            if index is None:
                return
            count = len(index)
            at = index.first(count, reaches)
            if at == count and count and not self._ends_line(index[count - 1]):
                at -= 1  # the last line is open
            # An open line of an earlier chunk continues here: its beginning belongs to it.
            while 0 < at < count and not self._ends_line(index[at - 1]):
                at -= 1
            if at < count:
                with open(self._path, "rb", buffering=0) as file:
                    yield from walk_lines(file.fileno(), index, at, count, only_step)

    def _ends_line(self, record: IndexRecord) -> bool:
        return self.read(record.end - 1, 1) == b"\n"

    @contextmanager
    def _opened(self) -> Iterator[LogIndex | None]:
        try:
            descriptor = os.open(self._index_path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        try:
            yield LogIndex(descriptor)
        finally:
            os.close(descriptor)


_LONGEST_LINE = 1 << 20


class LogLine(msgspec.Struct, frozen=True):
    """One line of a log.

    Attributes:
        number: counted from 0.
        offset: offset of the line's first byte in the log.
        at: time of arrival of the line's chunk.
        step: index of the line's step; None for the build's own lines.
        text: the line without its newline, unchanged; a line of more than 1 MiB comes in
            pieces of the same number.
    """

    number: int
    offset: int
    at: datetime
    step: int | None
    text: bytes


def walk_lines(
    log: int, index: LogIndex, at: int, count: int, only_step: int | None
) -> Iterator[LogLine]:
    """Yield the lines of the chunks ``at`` .. ``count`` - 1.

    Args:
        log: descriptor of the text.
        index: its index.
        at: the first chunk, which begins with a new line.
        count: number of chunks.
        only_step: only lines of this step; -1 is the build itself, None yields all lines.
    """
    before = index[at - 1]
    number, offset = before.lines, before.end
    begun: LogLine | None = None  # a line whose newline has not arrived yet
    for record in index.walk(at, count):
        if only_step is not None and record.step != only_step:
            number, offset = record.lines, record.end
            continue
        moment = datetime.fromtimestamp(record.at_us / 1_000_000, UTC)
        step = None if record.step == NO_STEP else record.step
        while offset < record.end:
            data = os.pread(log, min(_LONGEST_LINE, record.end - offset), offset)
            if not data:
                return  # removed meanwhile
            # Not splitlines: it also breaks at carriage returns, which are part of a line here.
            *whole, rest = data.split(b"\n")
            for text in whole:
                yield _joined(begun, LogLine(number, offset, moment, step, text))
                begun = None
                number, offset = number + 1, offset + len(text) + 1
            if rest:
                begun = _joined(begun, LogLine(number, offset, moment, step, rest))
                offset += len(rest)
                if len(begun.text) >= _LONGEST_LINE:
                    yield begun
                    begun = None
    if begun is not None:
        yield begun


def _joined(begun: LogLine | None, line: LogLine) -> LogLine:
    if begun is None:
        return line
    return msgspec.structs.replace(begun, text=begun.text + line.text)


_SEARCH_BLOCK_BYTES = 1 << 20
_SHOWN_BYTES = 400
_LONGEST_QUERY = 1000


class LogMatch(msgspec.Struct, frozen=True, rename="camel"):
    """One occurrence of the query.

    Attributes:
        offset, length: position and size of the match, in bytes.
        line: number of its line, from 0.
        line_offset: offset of the beginning of that line.
        text: the line, or some 400 bytes around the match of a longer one; bytes that are not
            UTF-8 are replaced.
        text_offset: offset of that text in the log.
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
        matches: the matches, in the direction of the search.
        next: offset to continue from in that direction; None if the search is complete.
    """

    matches: tuple[LogMatch, ...]
    next: int | None


class LogQuery:
    """The query of a search.

    Args:
        text: the text, or the regular expression in RE2's syntax.
        regex: the text is an expression; ``^`` and ``$`` match the ends of a line.
        ignore_case: ``a`` finds ``A``.

    Raises:
        UsageError: the text is empty, has a newline or more than 1,000 characters, or is no valid
            expression.
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
        """Yield start and end of each match that is not empty."""
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
    """Search for a query.

    Args:
        reader: the log.
        query: the query.
        start: find matches that begin at this offset or after it; backwards: before it.
        backwards: search towards the beginning of the log; the nearest match comes first.
        limit: the most matches.
        may_continue: called after each MiB; false ends the search there.
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
    """Counts the lines before a match in a block."""

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
    """Yield blocks of whole lines from the line that holds ``start``."""
    offset = _line_begin(reader, start)
    while block := reader.read(offset, _SEARCH_BLOCK_BYTES):
        if len(block) == _SEARCH_BLOCK_BYTES:
            block = block[: block.rfind(b"\n") + 1] or block
        yield offset, block
        offset += len(block)


def _blocks_before(reader: LogFileReader, start: int) -> Iterator[tuple[int, bytes]]:
    """Yield blocks of whole lines from the line that holds ``start``, back to the first."""
    size = reader.size()
    end = min(start, size)
    # The rest of a line that `start` cuts: a match may begin before it and end after it.
    rest = reader.read(end, _SEARCH_BLOCK_BYTES)
    newline = rest.find(b"\n")
    end += len(rest) if newline < 0 else newline + 1
    while end > 0:
        begin = max(0, end - _SEARCH_BLOCK_BYTES)
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
    begin = max(0, offset - _SEARCH_BLOCK_BYTES)
    before = reader.read(begin, offset - begin)
    newline = before.rfind(b"\n")
    return begin + newline + 1 if newline >= 0 else begin


def wants_more(deadline_s: float, now: Callable[[], float]) -> Callable[[], bool]:
    """Return a ``may_continue`` that is false after ``deadline_s`` seconds.

    Args:
        deadline_s: seconds from now.
        now: returns monotonic seconds.
    """
    until = now() + deadline_s
    return lambda: now() < until
