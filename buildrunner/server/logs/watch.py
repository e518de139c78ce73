"""What viewers of running builds wait for: log, events and status, watched once for all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool

from buildrunner.errors import BuildrunnerError
from buildrunner.logs.files.follower import FolderWatch, LogFollower
from buildrunner.logs.files.log_file import log_folder
from buildrunner.server.context import ServerContext
from buildrunner.store.build_store import FINAL_STATUSES

_log = logging.getLogger("buildrunner.server")

# Events tell of most changes; the store, of which some follow soon after, is asked more often then.
_LOOK_WAITING_S = 1.0
_LOOK_WORKING_S = 2.0
_LOOK_SOON_S = 0.2
_SOON_S = 5.0
# However many builds are watched, the store is asked so often per look and no more.
_ASKED_AT_ONCE = 10
_WAITING = ("QUEUED", "PENDING")


class BuildState(msgspec.Struct, frozen=True, rename="camel"):
    """Where a build stands.

    Attributes:
        status: name of its status.
        waiting: the `WaitReason` while it has not begun; None otherwise.
    """

    status: str
    waiting: dict[str, Any] | None = None

    @property
    def ended(self) -> bool:
        """Whether the status is final. The log was complete before it became so."""
        return self.status in FINAL_STATUSES


class BuildWatch:
    """One build that is watched. Made by `BuildWatches.watch`.

    Attributes:
        state: as far as it is known; never older than a few seconds.
        folder: what watches its log folder.
        asked_at: when the store was asked last (monotonic seconds).
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
        """Whether the store is to be asked again at ``now`` (monotonic seconds)."""
        if self.state.ended:
            return False
        if self.folder.events_bytes != self._seen_bytes:
            self._seen_bytes = self.folder.events_bytes
            self._soon_until = now + _SOON_S
        pause = _LOOK_WAITING_S if self.state.status in _WAITING else _LOOK_WORKING_S
        return now - self.asked_at >= (_LOOK_SOON_S if now < self._soon_until else pause)

    def asked(self, now: float) -> None:
        """The store is being asked."""
        self.asked_at = now

    def learn(self, state: BuildState) -> None:
        """Take the state that the store told, and wake viewers if it is another one."""
        if state != self.state:
            self.state = state
            self.folder.wake()


class BuildWatches:
    """All builds that are watched on this server, by one event loop.

    Args:
        context: the server's.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._follower = LogFollower()
        self._watches: dict[tuple[str, str], BuildWatch] = {}
        self._task: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def watch(self, project: str, build_id: str) -> AsyncIterator[BuildWatch]:
        """Watch a build for as long as the block takes.

        Raises:
            NotFound: there is no such build.
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
        """End all streams: the server stops. Viewers come back to the next one by themselves."""
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
        """Ask for the states that are due, and tell whoever waits for them."""
        now = asyncio.get_running_loop().time()
        due = [watch for watch in self._watches.values() if watch.is_due(now)]
        due = sorted(due, key=lambda watch: watch.asked_at)[:_ASKED_AT_ONCE]
        for watch in due:
            watch.asked(now)
        if due:
            for watch, state in await run_in_threadpool(self._ask_all, due):
                watch.learn(state)

    def _ask_all(self, due: list[BuildWatch]) -> list[tuple[BuildWatch, BuildState]]:
        answers = []
        for watch in due:
            try:
                answers.append((watch, self._ask(watch.project, watch.build_id)))
            except BuildrunnerError:
                continue  # a database that restarts: asked again in a moment
            except Exception:  # noqa: BLE001  (see below)
                # Viewers of all builds wait for this loop: no bug of one build may end it.
                _log.exception("the state of build %s can't be told", watch.build_id)
        return answers

    def _ask(self, project: str, build_id: str) -> BuildState:
        context = self._context
        status = context.store.builds.get(project, build_id).status
        waiting = None
        if status in _WAITING:
            reason = context.why_waiting(build_id)
            waiting = None if reason is None else msgspec.to_builtins(reason)
        return BuildState(status, waiting)
