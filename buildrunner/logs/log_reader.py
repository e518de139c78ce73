"""Reading a build's log on disk, by byte, line or time, also while it is being written."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from buildrunner.logs.log_file import LOG_NAME
from buildrunner.logs.log_index import BEGINNING, INDEX_NAME, IndexRecord, LogIndex
from buildrunner.logs.log_lines import LogLine, walk_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

_BLOCK_BYTES = 1 << 16


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
