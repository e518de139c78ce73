"""The index beside a log: what of the log is stored, and where each chunk ends.

``log.index`` is a header and one record of 40 bytes per chunk (not per line, so that a million
lines cost no more than their chunks), each written *after* the chunk's text. That makes it the
log's commit record: text without a record was never stored. Records are found by bisecting the
file itself: a look-up takes some twenty small reads, whatever the size.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

INDEX_NAME = "log.index"

# end in bytes, newlines to there, microseconds since 1970, step or -1, output bytes, is stderr
_RECORD = struct.Struct("<QQqiI?7x")
_HEADER = b"buildrunner log index 2\n".ljust(_RECORD.size, b"\0")
_BATCH = 2048

RECORD_BYTES = _RECORD.size
NO_STEP = -1


class IndexRecord(msgspec.Struct, frozen=True, array_like=True):
    """What one chunk left.

    Attributes:
        end: bytes of the log up to and with this chunk.
        lines: newlines up to there.
        at_us: when it arrived, in microseconds since 1970.
        step: index of its step, -1 for the build's own lines.
        output: bytes of the step's own output in it (see `LogChunk`).
        error: they are of stderr.
    """

    end: int
    lines: int
    at_us: int
    step: int
    output: int = 0
    error: bool = False

    def packed(self) -> bytes:
        """The record's bytes."""
        return _RECORD.pack(self.end, self.lines, self.at_us, self.step, self.output, self.error)


BEGINNING = IndexRecord(0, 0, 0, NO_STEP)
"""Stands before the first record."""


class LogIndex:
    """The records of one index, in a file that may grow meanwhile.

    Args:
        descriptor: of the open file; stays the caller's.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __len__(self) -> int:
        """How many whole records there are by now; 0 for a file that is no index."""
        count = os.fstat(self._descriptor).st_size // RECORD_BYTES - 1
        return count if count > 0 and self.is_sound() else 0

    def is_sound(self) -> bool:
        """Whether the file begins as an index does."""
        return os.pread(self._descriptor, RECORD_BYTES, 0) == _HEADER

    def __getitem__(self, number: int) -> IndexRecord:
        """One record, from 0; the one before the first is `BEGINNING`."""
        if number < 0:
            return BEGINNING
        data = os.pread(self._descriptor, RECORD_BYTES, (number + 1) * RECORD_BYTES)
        return IndexRecord(*_RECORD.unpack(data))

    def walk(self, number: int, until: int) -> Iterator[IndexRecord]:
        """Records ``number`` .. ``until`` - 1, read some thousands at a time."""
        while number < until:
            size = min(_BATCH, until - number) * RECORD_BYTES
            data = os.pread(self._descriptor, size, (number + 1) * RECORD_BYTES)
            for fields in _RECORD.iter_unpack(data):
                yield IndexRecord(*fields)
            number += _BATCH

    def first(self, count: int, holds: Callable[[IndexRecord], bool]) -> int:
        """The first of ``count`` records for which ``holds``; ``count`` when there is none.

        ``holds`` must be false for all before that one, and true from it on.
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
    """Make an empty index of the file."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, _HEADER, 0)


def repair_index(descriptor: int, log_bytes: int) -> IndexRecord:
    """Cut off what a crash tore: half a record, and records of text that is not there.

    Args:
        descriptor: of the index, open for reading and writing.
        log_bytes: size of the log.

    Returns:
        The last record that counts; `BEGINNING` without one.
    """
    index = LogIndex(descriptor)
    count = len(index)
    if not count:
        begin_index(descriptor)
        return BEGINNING
    # A power cut may keep the index and lose the text; a killed process can't do that.
    sound = index.first(count, lambda record: record.end > log_bytes)
    os.ftruncate(descriptor, (sound + 1) * RECORD_BYTES)
    return index[sound - 1]
