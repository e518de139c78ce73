"""Wakes whoever waits for logs to grow: one look around for all viewers of all builds.

It polls. A look at one build is two ``stat`` calls (some 5 µs), whatever happens in it and however
many watch it; inotify would save them while nothing happens, and cost a wake-up for each of the
thousands of chunks a second of a chatty build (docs/decisions/0018-log-files.md).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager

from buildrunner.logs.files.events import EVENTS_NAME
from buildrunner.logs.files.log_file import INDEX_NAME

POLL_S = 0.1


class FolderWatch:
    """The state of one watched log folder. Made by `LogFollower.watch`.

    Attributes:
        version: rises whenever log or events have grown, or somebody called `wake`.
        watchers: how many watch it.
        closed: nobody will wake it any more.
    """

    def __init__(self, folder: str) -> None:
        self.version = 0
        self.watchers = 0
        self.closed = False
        self._paths = tuple(os.path.join(folder, name) for name in (INDEX_NAME, EVENTS_NAME))
        self._sizes = tuple(map(_size, self._paths))
        self._changed = asyncio.Event()

    async def changed(self, version: int, timeout_s: float) -> bool:
        """Wait until `version` is another one; whether that came in time."""
        if self.version == version and not self.closed:
            try:
                async with asyncio.timeout(timeout_s):
                    await self._changed.wait()
            except TimeoutError:
                return False
        return True

    @property
    def events_bytes(self) -> int:
        """Size of the events at the last look."""
        return self._sizes[1]

    def wake(self) -> None:
        """Wake all who wait, as if something had grown."""
        self.version += 1
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    def look(self) -> bool:
        """Look at the files; whether one has grown since the last look."""
        sizes = tuple(map(_size, self._paths))
        if sizes == self._sizes:
            return False
        self._sizes = sizes
        return True


class LogFollower:
    """Watches log folders for one event loop, from which alone it is used.

    Args:
        poll_s: seconds between two looks; what a viewer waits for a line at most.
    """

    def __init__(self, poll_s: float = POLL_S) -> None:
        self._poll_s = poll_s
        self._watches: dict[str, FolderWatch] = {}
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    @contextmanager
    def watch(self, folder: str) -> Iterator[FolderWatch]:
        """Watch a folder, which need not exist yet, for as long as the block takes."""
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
        """Wake all for the last time, so that their streams end. Idempotent."""
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
