"""A build's log on disk: the text, and an index with time and step of each chunk.

``log.txt`` is the log as Cloud Build writes it, append-only; ``log.index`` says which part of it is
stored (see `IndexRecord`). One process writes; any number of processes may read. Readers see a
chunk wholly or not at all, and never one that a later writer removes: nothing is lost or repeated
for a reader that continues after a crash of the writer.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress

import msgspec

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.errors import StoreError, StoreUnavailable
from buildrunner.logs.console.wording import unwritable_hint

LOG_NAME = "log.txt"

_BLOCK_BYTES = 1 << 16
_LOOK_S = 0.02
_RESERVE_BYTES = 16 << 20
_UNWATCHED_BYTES = 1 << 20


def index_bytes(folder: str) -> int:
    """Return the bytes of the index in a log folder; 0 if there is none."""
    try:
        return os.stat(os.path.join(folder, INDEX_NAME)).st_size
    except FileNotFoundError:
        return 0


def log_folder(data_folder: str, build_id: str) -> str:
    """Return the folder of a build's log in the folder of all builds."""
    return os.path.join(data_folder, "logs", build_id)


class BadPiece(StoreError):
    """A piece does not continue the copy of a log or of events that it is appended to."""

    http_status = 400


class LogFileSink:
    """Appends chunks to the log in a folder of its own. Used by one thread at a time.

    A sink on an existing log first removes text without a record, which a crash left. An open sink
    is the only writer: a lock of the kernel enforces that, even if a process has lost its lease
    without knowing it yet.

    Args:
        folder: the log's folder, created if missing.
        wait_limit_s: seconds to wait for a writer that is about to end.
        reserve_bytes: bytes of the disk that stay free. An endless log must leave room for the
            records of its build's end, which are often on the same disk.
        limit_bytes: size of the log beyond which steps may write no more; 0 sets no limit.

    Raises:
        StoreError: the folder can't be written, or another process writes this log.
    """

    def __init__(
        self,
        folder: str,
        *,
        wait_limit_s: float = 5.0,
        reserve_bytes: int = _RESERVE_BYTES,
        limit_bytes: int = 0,
    ) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._reserve_bytes = reserve_bytes
        self._unwatched_bytes = 0
        self._log = self._index = -1
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._log = _open_append(os.path.join(folder, LOG_NAME))
            self._index = _open_append(os.path.join(folder, INDEX_NAME))
            if not _lock(self._index, wait_limit_s):
                self.close()
                raise StoreUnavailable("another process writes this log")
            self._last = self._repaired()
        except OSError as error:
            self.close()
            raise _unwritable(folder, error) from error

    def write(self, chunk: LogChunk) -> None:
        """Append one chunk: two system calls, whatever the number of lines.

        Raises:
            StoreError: the disk is full (except for the reserve) or broken, or the log is too
                large; then nothing of the chunk is stored.
        """
        if not chunk.data:
            return
        last = self._last
        if chunk.output and 0 < self._limit_bytes < last.end + len(chunk.data):
            raise StoreError(
                f"the build's log is larger than {self._limit_bytes >> 20} MiB",
                hint="Let its steps print less, or raise --max-build-log-gib of the server.",
            )
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

    @property
    def size(self) -> int:
        """Return the bytes of the log."""
        return self._last.end

    def append(self, records: bytes, text: bytes) -> None:
        """Append chunks of a copy of this log that is longer, and flush them to the disk.

        Args:
            records: index records of the copy, from the first one that is missing here.
            text: the text that these records index.

        Raises:
            BadPiece: the records don't continue this log with that text.
            StoreError: see `write`.
        """
        last = self._last
        for fields in _RECORD.iter_unpack(records):
            record = IndexRecord(*fields)
            if not record.continues(last):
                raise BadPiece(f"a record in the piece does not continue {self._folder}")
            last = record
        if last.end != self.size + len(text):
            raise BadPiece(f"{len(text)} bytes don't continue the log in {self._folder}")
        try:
            self._leave_reserve(len(text))
            _write_all(self._log, text)
            _write_all(self._index, records)
            for descriptor in (self._log, self._index):
                os.fdatasync(descriptor)
        except OSError as error:
            with suppress(OSError):
                self._repaired()
            raise _unwritable(self._folder, error) from error
        self._last = last

    def close(self) -> None:
        """Close the files. The written log survives the end of this process. Idempotent."""
        for descriptor in (self._log, self._index):
            if descriptor >= 0:
                os.close(descriptor)
        self._log = self._index = -1

    def _leave_reserve(self, size_bytes: int) -> None:
        """Check the disk after each MiB of output. The build's own lines may use the reserve."""
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
        """Return a record for text without an index: it counts as one chunk of the build itself."""
        begin_index(self._index)
        changed = int(os.fstat(self._log).st_mtime * 1_000_000)
        record = IndexRecord(size, _count_lines(self._log), changed, NO_STEP)
        _write_all(self._index, record.packed())
        return record


def _count_lines(descriptor: int) -> int:
    offset = lines = 0
    while block := os.pread(descriptor, _BLOCK_BYTES, offset):
        lines += block.count(b"\n")
        offset += len(block)
    return lines


def _open_append(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _lock(descriptor: int, wait_limit_s: float) -> bool:
    """Lock out other writers until the file is closed. Returns False if another writer remains.

    On a file system without locks, other writers are not locked out.
    """
    import fcntl
    import time

    until = time.monotonic() + wait_limit_s
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
        hint=unwritable_hint(error),
    )


INDEX_NAME = "log.index"

# end in bytes, newlines to there, microseconds since 1970, step or -1, output bytes, is stderr
_RECORD = struct.Struct("<QQqiI?7x")
_HEADER = b"buildrunner log index 2\n".ljust(_RECORD.size, b"\0")
_BATCH = 2048

_MOST_STEPS = 1 << 16
_LAST_US = 253_402_300_799_000_000  # the last second of the year 9999

RECORD_BYTES = _RECORD.size
NO_STEP = -1


class IndexRecord(msgspec.Struct, frozen=True, array_like=True):
    """The index entry of one chunk.

    Attributes:
        end: bytes of the log up to the end of this chunk.
        lines: number of newlines up to there.
        at_us: time of the chunk's arrival, in microseconds since 1970.
        step: index of the chunk's step; -1 for the build's own lines.
        output: bytes of the step's own output in the chunk (see `LogChunk`).
        error: whether the output is from stderr.
    """

    end: int
    lines: int
    at_us: int
    step: int
    output: int = 0
    error: bool = False

    def continues(self, before: IndexRecord) -> bool:
        """Return whether this record can follow ``before``: it has text, and its numbers fit."""
        size = self.end - before.end
        return (
            size > 0
            and 0 <= self.lines - before.lines <= size
            and 0 <= self.output <= size
            and NO_STEP <= self.step < _MOST_STEPS
            and 0 <= self.at_us <= _LAST_US
        )

    def packed(self) -> bytes:
        """Return the record's bytes."""
        return _RECORD.pack(self.end, self.lines, self.at_us, self.step, self.output, self.error)


BEGINNING = IndexRecord(0, 0, 0, NO_STEP)
"""The position before the first record."""


class LogIndex:
    """The records of one index, in a file that may grow.

    Args:
        descriptor: descriptor of the open file. The caller closes it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __len__(self) -> int:
        """Return the number of whole records so far; 0 if the file is no index."""
        count = os.fstat(self._descriptor).st_size // RECORD_BYTES - 1
        return count if count > 0 and self.is_sound() else 0

    def is_sound(self) -> bool:
        """Return whether the file begins like an index."""
        return os.pread(self._descriptor, RECORD_BYTES, 0) == _HEADER

    def __getitem__(self, number: int) -> IndexRecord:
        """Return one record, counted from 0; the one before the first is `BEGINNING`."""
        if number < 0:
            return BEGINNING
        data = os.pread(self._descriptor, RECORD_BYTES, (number + 1) * RECORD_BYTES)
        return IndexRecord(*_RECORD.unpack(data))

    def walk(self, number: int, until: int) -> Iterator[IndexRecord]:
        """Yield records ``number`` .. ``until`` - 1, read some thousands at a time."""
        while number < until:
            size = min(_BATCH, until - number) * RECORD_BYTES
            data = os.pread(self._descriptor, size, (number + 1) * RECORD_BYTES)
            for fields in _RECORD.iter_unpack(data):
                yield IndexRecord(*fields)
            number += _BATCH

    def first(self, count: int, holds: Callable[[IndexRecord], bool]) -> int:
        """Return the number of the first record for which ``holds``; ``count`` if there is none.

        ``holds`` must be false for all records before that one, and true for all others.
        """
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if holds(self[middle]):
                high = middle
            else:
                low = middle + 1
        return low


def begin_index(descriptor: int) -> None:
    """Make the file an empty index."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _HEADER, 0)


def repair_index(descriptor: int, log_bytes: int) -> IndexRecord:
    """Cut off what a crash left: half a record, and records of missing text.

    Args:
        descriptor: descriptor of the index, open for reading and writing.
        log_bytes: size of the log.

    Returns:
        The last valid record; `BEGINNING` without one.
    """
    index = LogIndex(descriptor)
    count = len(index)
    if not count:
        begin_index(descriptor)
        return BEGINNING
    # A power cut may keep the index and lose the text; a killed process can't cause that.
    sound = index.first(count, lambda record: record.end > log_bytes)
    os.ftruncate(descriptor, (sound + 1) * RECORD_BYTES)
    return index[sound - 1]
