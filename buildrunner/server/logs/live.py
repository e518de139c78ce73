"""Live builds as server-sent events: log, events and status, watched once for all viewers.

``log``    ``{"offset": N, "text": "..."}``, or ``"base64"`` where the bytes are not UTF-8; with
           ``"chunks"``, when wanted: bytes, microseconds since 1970, step (-1: the build) of each;
           without text, ``{"offset": N, "size": M}``: the log has M bytes by now
``event``  a build event with its ``sequence``
``state``  ``{"status": "QUEUED", "waiting": {...} | null}``: at once, and at each change
``end``    ``{"status": "SUCCESS", "size": N}``: the build has ended, and everything was sent

`LogFollower` polls the log folders. A check of one build is two ``stat`` calls (some 5 µs),
regardless of its activity and its viewers; inotify would save them for an idle build, and cost a
wake-up for each of the thousands of chunks a second of a chatty build (decision 0018).

The id of each is ``OFFSET`` or ``OFFSET:SEQUENCE``. A client that reconnects with it as
``Last-Event-ID`` continues there, without losing or repeating a byte. Comments keep idle
connections open.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool

from buildrunner.errors import BuildrunnerError
from buildrunner.logs.files.events import EVENTS_NAME, EventLogReader
from buildrunner.logs.files.log_file import INDEX_NAME, log_folder
from buildrunner.logs.files.reader import LogFileReader
from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import invalid_argument
from buildrunner.spec.model.build import FINAL_STATUSES

_log = logging.getLogger("buildrunner.server")

# Events report most changes. After an event, the store is polled more often, since it may follow.
_LOOK_WAITING_S = 1.0
_LOOK_WORKING_S = 2.0
_LOOK_SOON_S = 0.2
_SOON_S = 5.0
# The most queries to the store per check, regardless of the number of watched builds.
_ASKED_AT_ONCE = 10
_WAITING = ("QUEUED", "PENDING")

POLL_S = 0.1


class BuildState(msgspec.Struct, frozen=True, rename="camel"):
    """The state of a build.

    Attributes:
        status: name of its status.
        waiting: the `WaitReason` while it has not begun; None otherwise.
    """

    status: str
    waiting: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Return whether the status is final. The log is complete before the status is final."""
        return self.status in FINAL_STATUSES


class BuildWatch:
    """One watched build. Made by `BuildWatches.watch`.

    Attributes:
        state: the last known state, at most a few seconds old.
        folder: the watch of its log folder.
        asked_at: time of the last query to the store (monotonic seconds).
    """

    def __init__(self, project: str, build_id: str, folder: FolderWatch, state: BuildState) -> None:
        self.project = project
        self.build_id = build_id
        self.folder = folder
        self.state = state
        self.watchers = 0
        self._seen_bytes = folder.events_bytes
        self._soon_until = 0.0
        self.asked_at = 0.0

    def is_due(self, now: float) -> bool:
        """Return whether the store must be queried again at ``now`` (monotonic seconds)."""
        if self.state.ended:
            return False
        if self.folder.events_bytes != self._seen_bytes:
            self._seen_bytes = self.folder.events_bytes
            self._soon_until = now + _SOON_S
        pause = _LOOK_WAITING_S if self.state.status in _WAITING else _LOOK_WORKING_S
        return now - self.asked_at >= (_LOOK_SOON_S if now < self._soon_until else pause)

    def requested(self, now: float) -> None:
        """Record that the store is being queried."""
        self.asked_at = now

    def learn(self, state: BuildState) -> None:
        """Take the state from the store, and wake viewers if it has changed."""
        if state != self.state:
            self.state = state
            self.folder.wake()


class BuildWatches:
    """All watched builds of this server, for one event loop.

    Args:
        context: the server's context.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._follower = LogFollower()
        self._watches: dict[tuple[str, str], BuildWatch] = {}
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watch(self, project: str, build_id: str) -> AsyncIterator[BuildWatch]:
        """Watch a build until the block ends.

        Raises:
            NotFound: the build does not exist.
        """
        state = await run_in_threadpool(self._ask, project, build_id)
        with self._follower.watch(log_folder(self._context.data_folder, build_id)) as folder:
            key = (project, build_id)
            watch = self._watches.get(key)
            if watch is None:
                watch = self._watches[key] = BuildWatch(project, build_id, folder, state)
            watch.watchers += 1
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._run())
            try:
                yield watch
            finally:
                watch.watchers -= 1
                if not watch.watchers:
                    del self._watches[key]

    def close(self) -> None:
        """End all streams, since the server stops. Viewers reconnect by themselves."""
        self._follower.close()

    async def _run(self) -> None:
        try:
            while self._watches:
                try:
                    await self._look()
                except Exception:  # noqa: BLE001  (viewers of all builds wait for this loop)
                    _log.exception("the states of builds can't be looked at")
                await asyncio.sleep(_LOOK_SOON_S)
        finally:
            self._task = None

    async def _look(self) -> None:
        """Query the due states, and wake viewers of states that changed."""
        now = asyncio.get_running_loop().time()
        due = [watch for watch in self._watches.values() if watch.is_due(now)]
        due = sorted(due, key=lambda watch: watch.asked_at)[:_ASKED_AT_ONCE]
        for watch in due:
            watch.requested(now)
        if due:
            for watch, state in await run_in_threadpool(self._ask_all, due):
                watch.learn(state)

    def _ask_all(self, due: list[BuildWatch]) -> list[tuple[BuildWatch, BuildState]]:
        answers = []
        for watch in due:
            try:
                answers.append((watch, self._ask(watch.project, watch.build_id)))
            except BuildrunnerError:
                continue  # a restarting database is queried again soon
            except Exception:  # noqa: BLE001  (see below)
                # Viewers of all builds depend on this loop: a bug with one build must not end it.
                _log.exception("the state of build %s can't be reported", watch.build_id)
        return answers

    def _ask(self, project: str, build_id: str) -> BuildState:
        context = self._context
        status = context.store.builds.get(project, build_id).status
        waiting = None
        if status in _WAITING:
            reason = context.why_waiting(build_id)
            waiting = None if reason is None else msgspec.to_builtins(reason)
        return BuildState(status, waiting)


HEARTBEAT_S = 15.0

_NUMBER = re.compile(r"[0-9]{1,18}")
_BLOCK_BYTES = 1 << 16
_PART_BYTES = 1 << 14
_EVENTS_AT_ONCE = 200
_HEARTBEAT = b": still here\n\n"
# Standard clients wait this long before they reconnect.
_HELLO = b"retry: 1000\n\n"


class StreamPosition(msgspec.Struct):
    """The position of a viewer in the stream.

    Attributes:
        offset: bytes of the log; None for a viewer without the log.
        sequence: number of the last event; None for a viewer without events.
        chunks: send the time and the step of each part of the log.
        text: send the text of the log; False: only its length.
    """

    offset: int | None = 0
    sequence: int | None = None
    chunks: bool = False
    text: bool = True

    def moved_to(self, last_event_id: str) -> StreamPosition:
        """Return the position in a ``Last-Event-ID``; this one if it is empty.

        Raises:
            ApiError: the id is invalid.
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
        """Return the event id of this position."""
        if self.sequence is None:
            return str(self.offset)
        return f"{self.offset or 0}:{self.sequence}"


async def build_stream(
    watch: BuildWatch, folder: str, position: StreamPosition, *, heartbeat_s: float = HEARTBEAT_S
) -> AsyncIterator[bytes]:
    """Yield the stream of one viewer.

    Args:
        watch: the build.
        folder: folder of its log.
        position: position of the viewer, which the stream advances.
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
    """Yield the next messages about the log, if any."""
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
    """Yield pieces of at most 16 KiB, of whole lines if possible.

    Pieces are small, so that a viewer advances even if the network breaks each connection early.
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
    # This JSON has no newline, so one data line is enough.
    return b"event: %b\nid: %b\ndata: %b\n\n" % (kind.encode(), position.id().encode(), data)


class FolderWatch:
    """The state of one watched log folder. Made by `LogFollower.watch`.

    Attributes:
        version: increases when log or events have grown, and on `wake`.
        watchers: number of its viewers.
        closed: the watch will not be woken any more.
    """

    def __init__(self, folder: str) -> None:
        self.version = 0
        self.watchers = 0
        self.closed = False
        self._paths = tuple(os.path.join(folder, name) for name in (INDEX_NAME, EVENTS_NAME))
        self._sizes = tuple(map(_size, self._paths))
        self._changed = asyncio.Event()

    async def changed(self, version: int, timeout_s: float) -> bool:
        """Wait until `version` changes. Returns whether it did in time."""
        if self.version == version and not self.closed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
            except TimeoutError:
                return False
        return True

    @property
    def events_bytes(self) -> int:
        """Return the size of the events at the last check."""
        return self._sizes[1]

    def wake(self) -> None:
        """Wake all viewers, as if the log had grown."""
        self.version += 1
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    def look(self) -> bool:
        """Check the files. Returns whether one has grown since the last check."""
        sizes = tuple(map(_size, self._paths))
        if sizes == self._sizes:
            return False
        self._sizes = sizes
        return True


class LogFollower:
    """Watches log folders. Used only in one event loop.

    Args:
        poll_s: seconds between two checks: the longest delay of a line.
    """

    def __init__(self, poll_s: float = POLL_S) -> None:
        self._poll_s = poll_s
        self._watches: dict[str, FolderWatch] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @contextmanager
    def watch(self, folder: str) -> Iterator[FolderWatch]:
        """Watch a folder, which need not exist yet, until the block ends."""
        watch = self._watches.get(folder)
        if watch is None:
            watch = self._watches[folder] = FolderWatch(folder)
        watch.watchers += 1
        watch.closed = self._closed
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._run())
        try:
            yield watch
        finally:
            watch.watchers -= 1
            if not watch.watchers:
                del self._watches[folder]

    def close(self) -> None:
        """Wake all viewers for the last time, so that their streams end. Idempotent."""
        self._closed = True
        for watch in self._watches.values():
            watch.closed = True
            watch.wake()

    async def _run(self) -> None:
        while self._watches and not self._closed:
            for watch in list(self._watches.values()):
                if watch.look():
                    watch.wake()
            await asyncio.sleep(self._poll_s)
        self._task = None


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
