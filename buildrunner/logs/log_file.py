"""A build's log on disk: the text, and beside it an index of which line came when from which step.

``log.txt`` is the log as Cloud Build writes it, append-only; ``log.index`` says what of it is
stored (see `log_index`). One process writes, any number read. Readers see a chunk wholly or not at
all, and never one that a later writer takes back: so nothing is lost or doubled for a reader that
goes on from where it was, whatever crashed meanwhile.
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from buildrunner.errors import StoreError
from buildrunner.logs.log_index import (
    BEGINNING,
    INDEX_NAME,
    NO_STEP,
    IndexRecord,
    LogIndex,
    begin_index,
    repair_index,
)
from buildrunner.logs.log_lines import LogLine, walk_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from buildrunner.logs.sink import LogChunk

__all__ = ["INDEX_NAME", "LOG_NAME", "LogFileReader", "LogFileSink", "LogLine", "log_folder"]

LOG_NAME = "log.txt"

_BLOCK_BYTES = 1 << 16
_LOOK_S = 0.02
_RESERVE_BYTES = 16 << 20
_UNWATCHED_BYTES = 1 << 20


def log_folder(data_folder: str, build_id: str) -> str:
    """Where the log of a build lies in the folder of all builds."""
    return os.path.join(data_folder, "logs", build_id)


class LogFileSink:
    """Appends chunks to the log in a folder of its own. Used by one thread at a time.

    Opened again, it first takes away what a crash tore: text that never got its record. It is the
    only writer for as long as it is open; the kernel sees to that also where a process that lost
    its lease doesn't know it yet.

    Args:
        folder: made when missing.
        patience_s: how long to wait for a writer that is about to end.
        reserve_bytes: how much of the disk stays free. A log without end must leave room for what
            is kept of its build's end, which often lies on the same disk.

    Raises:
        StoreError: the folder can't be written, or another process writes this log.
    """

    def __init__(
        self, folder: str, *, patience_s: float = 5.0, reserve_bytes: int = _RESERVE_BYTES
    ) -> None:
        self._folder = folder
        self._reserve_bytes = reserve_bytes
        self._unwatched_bytes = 0
        self._log = self._index = -1
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._log = _open_append(os.path.join(folder, LOG_NAME))
            self._index = _open_append(os.path.join(folder, INDEX_NAME))
            if not _lock(self._index, patience_s):
                self.close()
                raise StoreError(f"another process writes the log in {folder}")
            self._last = self._repaired()
        except OSError as error:
            self.close()
            raise _unwritable(folder, error) from error

    def write(self, chunk: LogChunk) -> None:
        """Append one chunk: two system calls, whatever the number of lines.

        Raises:
            StoreError: the disk is full (but for the reserve), or broken; then nothing of the chunk
                is stored.
        """
        last = self._last
        record = IndexRecord(
            last.end + len(chunk.data),
            last.lines + chunk.data.count(b"\n"),
            int(chunk.at.timestamp() * 1_000_000),
            NO_STEP if chunk.step is None else chunk.step,
            chunk.output,
            chunk.error,
        )
        try:
            if chunk.output:
                self._leave_reserve(chunk.output)
            _write_all(self._log, chunk.data)
            _write_all(self._index, record.packed())
        except OSError as error:
            with suppress(OSError):
                self._repaired()
            raise _unwritable(self._folder, error) from error
        self._last = record

    def close(self) -> None:
        """Close the files; what was written survives the end of this process. Idempotent."""
        for descriptor in (self._log, self._index):
            if descriptor >= 0:
                os.close(descriptor)
        self._log = self._index = -1

    def _leave_reserve(self, size_bytes: int) -> None:
        """Look at the disk after each MiB of steps; the build's own last words may use it all."""
        self._unwatched_bytes += size_bytes
        if self._unwatched_bytes < _UNWATCHED_BYTES:
            return
        disk = os.fstatvfs(self._log)
        blocks = disk.f_bfree if os.geteuid() == 0 else disk.f_bavail
        if blocks * disk.f_frsize < self._reserve_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._unwatched_bytes = 0

    def _repaired(self) -> IndexRecord:
        size = os.fstat(self._log).st_size
        if size == 0:
            begin_index(self._index)
            return BEGINNING
        if not LogIndex(self._index).is_sound():
            return self._indexed_anew(size)
        last = repair_index(self._index, size)
        os.ftruncate(self._log, last.end)
        return last

    def _indexed_anew(self, size: int) -> IndexRecord:
        """Text whose index is gone counts as one chunk of the build's own."""
        begin_index(self._index)
        changed = int(os.fstat(self._log).st_mtime * 1_000_000)
        record = IndexRecord(size, _count_lines(self._log), changed, NO_STEP)
        _write_all(self._index, record.packed())
        return record


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


def _count_lines(descriptor: int) -> int:
    offset = lines = 0
    while block := os.pread(descriptor, _BLOCK_BYTES, offset):
        lines += block.count(b"\n")
        offset += len(block)
    return lines


def _open_append(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _lock(descriptor: int, patience_s: float) -> bool:
    """Keep other writers away until the file is closed; whether that was possible."""
    import fcntl
    import time

    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(_LOOK_S)
        except OSError:
            return True  # a file system without locks
        else:
            return True


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])


def _unwritable(folder: str, error: OSError) -> StoreError:
    return StoreError(
        f"the log in {folder} can't be written: {error.strerror}",
        hint="free some space, or point XDG_DATA_HOME to another disk",
    )
