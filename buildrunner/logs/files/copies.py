"""Copies of a build's log and events: the worker writes them, the server keeps them.

The copy grows by pieces. A piece of the log is a number (four bytes, little-endian), this number of
index records, and their text. A piece of the events is whole lines. Each piece is sent with the
offset at which it continues the copy, so a piece that is sent twice, or out of order, changes
nothing.
"""

from __future__ import annotations

import os
import struct

from buildrunner.errors import StoreError
from buildrunner.logs.files.events import EVENTS_NAME, EventLog
from buildrunner.logs.files.log_file import (
    INDEX_NAME,
    LOG_NAME,
    RECORD_BYTES,
    BadPiece,
    LogFileSink,
    LogIndex,
)

_COUNT = struct.Struct("<I")
PIECE_BYTES = 4 << 20
"""The most bytes of text in one piece, except for its last chunk."""

_PIECE_CHUNKS = 50_000


class OffsetMismatch(StoreError):
    """A piece does not continue the copy.

    Attributes:
        size: bytes of the copy; the next piece must begin there.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"the copy has {size} bytes: continue it there")
        self.size = size


def append_to_log(folder: str, offset: int, piece: bytes) -> int:
    """Append a piece of a log to its copy. Returns when the copy is on the disk.

    Args:
        folder: log folder of the copy.
        offset: bytes of the copy, according to the sender.
        piece: the result of `log_piece`.

    Returns:
        Bytes of the copy.

    Raises:
        OffsetMismatch: the copy has another size; nothing is appended.
        BadPiece: the bytes are no piece, or do not continue the copy.
        StoreError: the copy can't be written.
    """
    log = LogFileSink(folder)
    try:
        if log.size != offset:
            raise OffsetMismatch(log.size)
        if len(piece) < _COUNT.size:
            raise BadPiece("this is no piece of a log")
        (count,) = _COUNT.unpack_from(piece)
        begin = _COUNT.size + count * RECORD_BYTES
        if not count or begin > len(piece):
            raise BadPiece("this is no piece of a log")
        log.append(piece[_COUNT.size : begin], piece[begin:])
        return log.size
    finally:
        log.close()


def append_to_events(folder: str, offset: int, piece: bytes) -> int:
    """Append a piece of the events to their copy; see `append_to_log`."""
    log = LogFileSink(folder)  # keeps other writers away
    try:
        events = EventLog(folder)
        try:
            if events.size != offset:
                raise OffsetMismatch(events.size)
            events.append(piece)
            return events.size
        finally:
            events.close()
    finally:
        log.close()


def copied_bytes(folder: str) -> tuple[int, int]:
    """Return how many bytes of log and events are in a log folder."""
    log = LogFileSink(folder)
    try:
        events = EventLog(folder)
        try:
            return log.size, events.size
        finally:
            events.close()
    finally:
        log.close()


def log_piece(folder: str, offset: int, limit: int = PIECE_BYTES) -> tuple[bytes, int]:
    """Return the next piece of a log, and where it ends; empty at the end of the log.

    Args:
        folder: log folder, to which a build may still write.
        offset: start of the piece: 0, or the end of another piece.
        limit: bytes of text after which the piece ends with the current chunk.

    Raises:
        StoreError: no chunk begins at the offset.
    """
    try:
        index = os.open(os.path.join(folder, INDEX_NAME), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b"", offset
    try:
        records = LogIndex(index)
        count = len(records)
        first = records.first(count, lambda record: record.end > offset)
        if first == count:
            return b"", offset
        if records[first - 1].end != offset:
            raise StoreError(f"no chunk of the log in {folder} begins at byte {offset}")
        after = records.first(count, lambda record: record.end >= offset + limit)
        last = min(after, count - 1, first + _PIECE_CHUNKS)
        end = records[last].end
        indexed = os.pread(index, (last - first + 1) * RECORD_BYTES, (first + 1) * RECORD_BYTES)
    finally:
        os.close(index)
    with open(os.path.join(folder, LOG_NAME), "rb", buffering=0) as log:
        text = os.pread(log.fileno(), end - offset, offset)
    return b"".join((_COUNT.pack(last - first + 1), indexed, text)), end


def events_piece(folder: str, offset: int, limit: int = PIECE_BYTES) -> tuple[bytes, int]:
    """Return the next piece of the events, and where it ends; empty at the end of the events."""
    try:
        with open(os.path.join(folder, EVENTS_NAME), "rb", buffering=0) as file:
            data = os.pread(file.fileno(), limit, offset)
            while (end := data.rfind(b"\n") + 1) == 0 and len(data) == limit:
                limit *= 2  # one long event
                data = os.pread(file.fileno(), limit, offset)
    except FileNotFoundError:
        return b"", offset
    return data[:end], offset + end


def flush_copy(folder: str) -> None:
    """Flush log, index and events of a log folder to the disk."""
    for name in (LOG_NAME, INDEX_NAME, EVENTS_NAME):
        try:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
