"""A build's log on disk: the text, and beside it an index of which line came when from which step.

``log.txt`` is the log as Cloud Build writes it, append-only; ``log.index`` says what of it is
stored (see `log_index`). One process writes, any number read. Readers see a chunk wholly or not at
all, and never one that a later writer takes back: so nothing is lost or doubled for a reader that
goes on from where it was, whatever crashed meanwhile.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
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
from buildrunner.logs.wording import unwritable_hint

if TYPE_CHECKING:
    from buildrunner.logs.sink import LogChunk

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
        limit_bytes: how large steps may make the log; 0 sets no limit.

    Raises:
        StoreError: the folder can't be written, or another process writes this log.
    """

    def __init__(
        self,
        folder: str,
        *,
        patience_s: float = 5.0,
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
            StoreError: the disk is full (but for the reserve) or broken, or the log is too large;
                then nothing of the chunk is stored.
        """
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
        hint=unwritable_hint(error),
    )
