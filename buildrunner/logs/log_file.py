"""A build's log on disk: the text, and beside it an index of which line came when from which step.

``log.txt`` is the log as Cloud Build writes it, append-only. ``log.index`` holds one fixed-size
record per chunk (not per line, so that a million lines cost no more than their chunks): where the
chunk begins in bytes and in lines, when it arrived, its step, its size, and how much of the step's
own output is in it. A line is found by bisecting the records and scanning one chunk. Records are
written after their text, so that whatever the index names is there; text that a crash left without
a record counts as more of the last chunk.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from buildrunner.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildrunner.logs.sink import LogChunk

LOG_NAME = "log.txt"
INDEX_NAME = "log.index"

# byte offset, line number, microseconds since 1970, step or -1, size, output bytes, 1 for stderr
_RECORD = struct.Struct("<QQqiIII")
_NO_STEP = -1
_BLOCK_BYTES = 1 << 16


def log_folder(data_folder: str, build_id: str) -> str:
    """Where the log of a build lies in the folder of all builds."""
    return os.path.join(data_folder, "logs", build_id)


class LogLine(msgspec.Struct, frozen=True):
    """One line of a log.

    Attributes:
        number: from 0.
        offset: of its first byte in the log.
        at: when its chunk arrived.
        step: index of its step, None for the build's own lines.
        text: the line without its newline, as it was written.
    """

    number: int
    offset: int
    at: datetime
    step: int | None
    text: bytes


class LogFileSink:
    """Appends chunks to the log in a folder of its own. Used by one thread at a time."""

    def __init__(self, folder: str) -> None:
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._log = _open_append(os.path.join(folder, LOG_NAME))
            self._index = _open_append(os.path.join(folder, INDEX_NAME))
        except OSError as error:
            raise _unwritable(folder, error) from error
        self._folder = folder
        self._offset = os.fstat(self._log).st_size
        self._line = _count_lines(os.path.join(folder, LOG_NAME)) if self._offset else 0

    def write(self, chunk: LogChunk) -> None:
        """Append one chunk: two system calls, whatever the number of lines.

        Raises:
            StoreError: the disk is full, or broken.
        """
        step = _NO_STEP if chunk.step is None else chunk.step
        at_us = int(chunk.at.timestamp() * 1_000_000)
        record = _RECORD.pack(
            self._offset, self._line, at_us, step, len(chunk.data), chunk.output, chunk.error
        )
        try:
            _write_all(self._log, chunk.data)
            _write_all(self._index, record)
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        self._offset += len(chunk.data)
        self._line += chunk.data.count(b"\n")

    def close(self) -> None:
        """Close the files; what was written survives the end of this process. Idempotent."""
        if self._log >= 0:
            os.close(self._log)
            os.close(self._index)
            self._log = self._index = -1


class LogFileReader:
    """Reads a log by offset or by line, also while it is being written."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, LOG_NAME)
        self._index_path = os.path.join(folder, INDEX_NAME)

    def size(self) -> int:
        """Bytes in the log so far; 0 when nothing was written yet."""
        try:
            return os.stat(self._path).st_size
        except FileNotFoundError:
            return 0

    def read(self, offset: int = 0, limit: int = _BLOCK_BYTES) -> bytes:
        """Up to ``limit`` bytes from ``offset``; empty at the end."""
        try:
            with open(self._path, "rb") as file:
                file.seek(offset)
                return file.read(limit)
        except FileNotFoundError:
            return b""

    def lines(self, start: int = 0, count: int | None = None) -> Iterator[LogLine]:
        """``count`` lines (all when None) from line number ``start`` on."""
        records = self._records()
        if not records:
            return
        at = max(0, bisect_right(records, start, key=lambda record: record[1]) - 1)
        left = count
        for line in self._walk(records, at):
            if line.number < start:
                continue
            if left is not None:
                if left <= 0:
                    return
                left -= 1
            yield line

    def stored_output(self) -> dict[tuple[int, bool], int]:
        """By step and stream (True is stderr): how many bytes of its masked output are stored."""
        stored: dict[tuple[int, bool], int] = {}
        for *_, step, _size, output, error in self._records():
            if output:
                key = (step, bool(error))
                stored[key] = stored.get(key, 0) + output
        return stored

    def _walk(self, records: list[tuple[int, ...]], at: int) -> Iterator[LogLine]:
        with open(self._path, "rb") as file:
            while at < len(records):
                offset, number, at_us, step, *_ = records[at]
                following = records[at + 1][0] if at + 1 < len(records) else None
                file.seek(offset)
                data = file.read() if following is None else file.read(following - offset)
                moment = datetime.fromtimestamp(at_us / 1_000_000, UTC)
                owner = None if step == _NO_STEP else step
                for text in _split(data):
                    yield LogLine(number, offset, moment, owner, text)
                    number += 1
                    offset += len(text) + 1
                at += 1

    def _records(self) -> list[tuple[int, ...]]:
        try:
            with open(self._index_path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return []
        whole = len(data) - len(data) % _RECORD.size
        return list(_RECORD.iter_unpack(data[:whole]))


def _split(data: bytes) -> list[bytes]:
    # Not splitlines: it breaks at carriage returns too, which are part of a line here.
    lines = data.split(b"\n")
    return lines[:-1] if not lines[-1] else lines


def _count_lines(path: str) -> int:
    with open(path, "rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK_BYTES), b""))


def _open_append(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _write_all(descriptor: int, data: bytes) -> None:
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, data[written:])


def _unwritable(folder: str, error: OSError) -> StoreError:
    return StoreError(
        f"the log in {folder} can't be written: {error.strerror}",
        hint="free some space, or point XDG_DATA_HOME to another disk",
    )
