"""Reading a build's log on disk, by byte, line or time, also while it is being written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec

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

    Keeps no file open and nothing in memory: many may read, in any thread.
    """

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, LOG_NAME)
        self._index_path = os.path.join(folder, INDEX_NAME)

    @property
    def path(self) -> str:
        """The file of the text."""
        return self._path

    def size(self) -> int:
        """Bytes in the log so far; 0 when nothing was written yet."""
        return self._last().end

    def line_count(self) -> int:
        """Newlines in the log so far."""
        return self._last().lines

    def read(self, offset: int = 0, limit: int = _BLOCK_BYTES) -> bytes:
        """Up to ``limit`` bytes from ``offset``; empty at the end."""
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
        """``count`` lines (all when None) from line number ``start`` on.

        Args:
            start: number of the first line, among the lines of all steps.
            count: how many.
            only_step: leave out lines that are not of this step (-1: of the build itself); what is
                left out is not read either.
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
        """Lines that arrived at ``moment`` or later (as far as the clock never went back)."""
        at_us = int(moment.timestamp() * 1_000_000)
        for line in self._lines_from(lambda record: record.at_us >= at_us, only_step):
            if line.at >= moment:
                yield line

    def chunks(self, begin: int, end: int) -> Iterator[tuple[int, IndexRecord]]:
        """The chunks of bytes ``begin`` to ``end``: how many of these each has, and its record."""
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
            before = block = BEGINNING  # where the chunk, and the block, begin
            for record in index.walk(0, len(index)):
                if record.step != step or record.end - block.end > _STEP_BLOCK_BYTES:
                    if before.end > block.end:
                        yield block.lines, self.read(block.end, before.end - block.end)
                    block = record if record.step != step else before
                before = record
            if before.end > block.end:
                yield block.lines, self.read(block.end, before.end - block.end)

    def line_at(self, offset: int) -> int:
        """Number of the line that holds the byte at ``offset``."""
        with self._opened() as index:
            if index is None:
                return 0
            count = len(index)
            at = index.first(count, lambda record: record.end > offset)
            begin = index[at - 1]
        return begin.lines + self.read(begin.end, offset - begin.end).count(b"\n")

    def stored_output(self) -> dict[tuple[int, bool], int]:
        """By step and stream (True is stderr): how many bytes of its masked output are stored."""
        stored: dict[tuple[int, bool], int] = {}
        with self._opened() as index:
            for record in index.walk(0, len(index)) if index is not None else ():
                if record.output:
                    key = (record.step, record.error)
                    stored[key] = stored.get(key, 0) + record.output
        return stored

    def own_chunks(self) -> Iterator[bytes]:
        """Texts of the chunks that hold no output of a step: what the build itself said."""
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
            # An open line of an earlier chunk goes on here: its beginning belongs to it.
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
        number: from 0.
        offset: of its first byte in the log.
        at: when its chunk arrived.
        step: index of its step, None for the build's own lines.
        text: the line without its newline, as it was written; a line of more than 1 MiB comes in
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
    """Lines of the chunks ``at`` .. ``count`` - 1.

    Args:
        log: descriptor of the text.
        index: its index.
        at: first chunk; a line begins with it.
        count: of chunks.
        only_step: leave out those of other steps; -1 is the build itself, None leaves out none.
    """
    before = index[at - 1]
    number, offset = before.lines, before.end
    begun: LogLine | None = None  # a line whose newline has not come yet
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
            # Not splitlines: it breaks at carriage returns too, which are part of a line here.
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
