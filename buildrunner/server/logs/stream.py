"""A build as server-sent events: its log from any byte, its events, where it stands, its end.

``log``    ``{"offset": N, "text": "..."}``, or ``"base64"`` where the bytes are not UTF-8; with
           ``"chunks"``, when wanted: bytes, microseconds since 1970, step (-1: the build) of each;
           without text, ``{"offset": N, "size": M}``: the log has M bytes by now
``event``  a build event with its ``sequence``
``state``  ``{"status": "QUEUED", "waiting": {...} | null}``: at once, and whenever it changes
``end``    ``{"status": "SUCCESS", "size": N}``: the build has ended, and all before it was sent

The id of each is ``OFFSET`` or ``OFFSET:SEQUENCE``: who reconnects with it as ``Last-Event-ID``
goes on behind what he has, without losing or repeating a byte. Comments keep idle connections open.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Iterator

import msgspec
from starlette.concurrency import run_in_threadpool

from buildrunner.logs.files.events import EventLogReader
from buildrunner.logs.files.reader import LogFileReader
from buildrunner.server.http.errors import invalid_argument
from buildrunner.server.logs.watch import BuildWatch

HEARTBEAT_S = 15.0

_NUMBER = re.compile(r"[0-9]{1,18}")
_BLOCK_BYTES = 1 << 16
_PART_BYTES = 1 << 14
_EVENTS_AT_ONCE = 200
_HEARTBEAT = b": still here\n\n"
# Clients that follow the standard by themselves wait so long before they come back.
_HELLO = b"retry: 1000\n\n"


class StreamPosition(msgspec.Struct):
    """What a viewer has.

    Attributes:
        offset: bytes of the log; None for a viewer who does not want it.
        sequence: the last event; None likewise.
        chunks: he wants to know when each part of the log arrived, and from which step.
        text: send the text of the log; False: only how long the log is.
    """

    offset: int | None = 0
    sequence: int | None = None
    chunks: bool = False
    text: bool = True

    def moved_to(self, last_event_id: str) -> StreamPosition:
        """The position that a ``Last-Event-ID`` names; this one when it is empty.

        Raises:
            ApiError: it is none of ours.
        """
        if not last_event_id:
            return self
        parts = last_event_id.split(":")
        if len(parts) > 2 or not all(map(_NUMBER.fullmatch, parts)):
            raise invalid_argument("Last-Event-ID is not one of this stream")
        return StreamPosition(
            offset=None if self.offset is None else int(parts[0]),
            sequence=None if self.sequence is None else int(parts[-1]) if len(parts) == 2 else 0,
            chunks=self.chunks,
            text=self.text,
        )

    def id(self) -> str:
        """The id that names it."""
        if self.sequence is None:
            return str(self.offset)
        return f"{self.offset or 0}:{self.sequence}"


async def build_stream(
    watch: BuildWatch, folder: str, position: StreamPosition, *, heartbeat_s: float = HEARTBEAT_S
) -> AsyncIterator[bytes]:
    """The stream of one viewer.

    Args:
        watch: the build.
        folder: of its log.
        position: what the viewer has; moves on.
        heartbeat_s: seconds of silence after which a comment is sent.
    """
    log, events = LogFileReader(folder), EventLogReader(folder)
    events_end = 0
    shown = None
    yield _HELLO
    while not watch.folder.closed:
        version, state = watch.folder.version, watch.state
        if state != shown:
            shown = state
            yield _message("state", position, msgspec.json.encode(state))
        sent = False
        if position.sequence is not None:
            for event in await run_in_threadpool(
                events.read, events_end, after=position.sequence, limit=_EVENTS_AT_ONCE
            ):
                sent, events_end, position.sequence = True, event.end, event.sequence
                yield _message("event", position, event.line)
        async for message in _log_messages(log, position):
            sent = True
            yield message
        if sent:
            continue
        if state.ended:
            end = {"status": state.status, "size": log.size()}
            yield _message("end", position, msgspec.json.encode(end))
            return
        if not await watch.folder.changed(version, heartbeat_s):
            yield _HEARTBEAT


async def _log_messages(log: LogFileReader, position: StreamPosition) -> AsyncIterator[bytes]:
    """What comes next of the log, if anything."""
    if position.offset is None:
        return
    if not position.text:
        begin, position.offset = position.offset, max(position.offset, log.size())
        if position.offset > begin:
            grown = {"offset": begin, "size": position.offset}
            yield _message("log", position, msgspec.json.encode(grown))
        return
    for part in _parts(await run_in_threadpool(log.read, position.offset, _BLOCK_BYTES)):
        body = _log_body(position.offset, part)
        if position.chunks:
            body["chunks"] = await run_in_threadpool(_chunks, log, position.offset, len(part))
        position.offset += len(part)
        yield _message("log", position, msgspec.json.encode(body))


def _parts(data: bytes) -> Iterator[bytes]:
    """Pieces of 16 KiB at most, of whole lines where that is possible.

    Small ones: a network that breaks each connection early must not keep a viewer where he is.
    """
    begin = 0
    while begin < len(data):
        end = begin + _PART_BYTES
        if end < len(data):
            end = data.rfind(b"\n", begin, end) + 1 or end
        yield data[begin:end]
        begin = end


def _chunks(log: LogFileReader, offset: int, size: int) -> list[tuple[int, int, int]]:
    found = log.chunks(offset, offset + size)
    return [(length, record.at_us, record.step) for length, record in found]


def _log_body(offset: int, data: bytes) -> dict[str, object]:
    body: dict[str, object] = {"offset": offset}
    try:
        body["text"] = data.decode()
    except UnicodeDecodeError:
        body["base64"] = base64.b64encode(data).decode()
    return body


def _message(kind: str, position: StreamPosition, data: bytes) -> bytes:
    # JSON has no newline in it: one data line is enough.
    return b"event: %b\nid: %b\ndata: %b\n\n" % (kind.encode(), position.id().encode(), data)
