"""A build's events on disk, beside its log: ``events.jsonl``, one JSON object a line.

``{"sequence": 1, "event": "buildStarted", "at": ...}``: the events of `buildrunner.engine.events`
with numbers from 1, without a gap. One process writes; any number of processes may read. An event
is in the file when `EventLog.on_event` returns. So the event survives the process that wrote it,
and the action that the event announces may follow.
"""

from __future__ import annotations

import os
from datetime import datetime

import msgspec

from buildrunner.engine.events import BuildEvent, TransferMoved
from buildrunner.errors import StoreError
from buildrunner.logs.console.wording import unwritable_hint
from buildrunner.logs.files.log_file import BadPiece

EVENTS_NAME = "events.jsonl"

_BLOCK_BYTES = 1 << 18
_TRANSFER_PAUSE_S = 0.5


class NumberedEvent(msgspec.Struct, frozen=True):
    """One line of the file.

    Attributes:
        sequence: number from 1.
        end: offset after its line, where the next read continues.
        line: the JSON text, without its newline.
    """

    sequence: int
    end: int
    line: bytes

    def event(self) -> BuildEvent:
        """Return the event itself."""
        return _decoder().decode(self.line)


class EventLog:
    """Appends events; a listener for `run_build`. Used by one thread at a time.

    After a crash, a torn last line is dropped, and the next event continues the numbers. Of the
    `TransferMoved` events of one transfer, at most two per second are kept.

    Raises:
        StoreError: the disk is full or broken (`on_event` raises this, too), or the file is
            damaged.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._encoder = msgspec.json.Encoder()
        self._moved: dict[str, datetime] = {}
        self._file = -1
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            path = os.path.join(folder, EVENTS_NAME)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o600)
            self._size, self._sequence = self._repaired()
        except OSError as error:
            self.close()
            raise self._unwritable(error) from error

    def on_event(self, event: BuildEvent) -> None:
        """Append an event: one system call."""
        if isinstance(event, TransferMoved) and not self._is_due(event):
            return
        text = self._encoder.encode(event)
        line = b'{"sequence":%d,%b\n' % (self._sequence + 1, text[1:])
        try:
            written = os.write(self._file, line)
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise self._unwritable(error) from error
        self._size += len(line)
        self._sequence += 1

    @property
    def size(self) -> int:
        """Return the size of the file in bytes."""
        return self._size

    def append(self, lines: bytes) -> None:
        """Append whole lines of a copy of this file, and flush them to the disk.

        Raises:
            BadPiece: a line is no event, or not the next one.
            StoreError: see `on_event`.
        """
        if not lines.endswith(b"\n"):
            raise BadPiece(f"half a line does not continue the events in {self._folder}")
        try:
            for number, line in enumerate(lines.split(b"\n")[:-1], self._sequence + 1):
                _decoder().decode(line)
                # A carriage return would end a line of a server-sent event.
                if _sequence_of(line) != number or b"\r" in line:
                    raise BadPiece(f"a line is not event {number} in {self._folder}")
        except (ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise BadPiece(f"a line is no event: {error}") from error
        try:
            written = os.write(self._file, lines)
            while written < len(lines):
                written += os.write(self._file, lines[written:])
            os.fdatasync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._size)
            raise self._unwritable(error) from error
        self._size += len(lines)
        self._sequence += lines.count(b"\n")

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _is_due(self, event: TransferMoved) -> bool:
        if 0 < event.total_bytes <= event.current_bytes:
            self._moved.pop(event.image, None)
            return True
        before = self._moved.get(event.image)
        if before is not None and (event.at - before).total_seconds() < _TRANSFER_PAUSE_S:
            return False
        self._moved[event.image] = event.at
        return True

    def _repaired(self) -> tuple[int, int]:
        """Cut off half a line; return the size and the sequence number of the last event.

        Only the end is read, since a copy is opened for each piece.
        """
        start, tail = os.fstat(self._file).st_size, b""
        size = sequence = 0
        while start > 0:
            start -= (length := min(_BLOCK_BYTES, start))
            tail = os.pread(self._file, length, start) + tail
            end = tail.rfind(b"\n") + 1
            begin = tail.rfind(b"\n", 0, max(0, end - 1)) + 1
            if end and (begin or not start):
                try:
                    size, sequence = start + end, _sequence_of(tail[begin:end])
                except ValueError:
                    raise StoreError(f"the events in {self._folder} are damaged") from None
                break
        os.ftruncate(self._file, size)
        return size, sequence

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"the events in {self._folder} can't be written: {error.strerror}",
            hint=unwritable_hint(error),
        )


class EventLogReader:
    """Reads events, also while they are written. Keeps no file open, so many may read."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, EVENTS_NAME)

    def read(self, offset: int = 0, *, after: int = 0, limit: int = 1000) -> list[NumberedEvent]:
        """Return up to ``limit`` events from an offset of the file.

        Args:
            offset: 0, or the ``end`` of an event that was read before.
            after: skip events up to this sequence number.
            limit: the most events.
        """
        found: list[NumberedEvent] = []
        try:
            with open(self._path, "rb") as file:
                file.seek(offset)
                for text in file:
                    if not text.endswith(b"\n") or len(found) >= limit:
                        break  # the line is incomplete: being written, or torn by a crash
                    offset += len(text)
                    sequence = _sequence_of(text)
                    if sequence > after:
                        found.append(NumberedEvent(sequence, offset, text[:-1]))
        except FileNotFoundError:
            return []
        return found


_PREFIX = b'{"sequence":'


def _sequence_of(line: bytes) -> int:
    return int(line[len(_PREFIX) : line.index(b",")])


_decoders: list[msgspec.json.Decoder[BuildEvent]] = []


def _decoder() -> msgspec.json.Decoder[BuildEvent]:
    if not _decoders:
        _decoders.append(msgspec.json.Decoder(BuildEvent))
    return _decoders[0]
