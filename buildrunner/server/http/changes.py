"""Requests that wait for a change of the queue: held open, and woken by `ServerContext.wake`.

A change costs a few reads of the database, however many requests wait. Of requests that look for
the same, only the first one looks. One read returns which running builds were disturbed. Few
requests of one caller look at the same time, so that requests of others do not wait for them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from starlette.concurrency import run_in_threadpool

from buildrunner.errors import StoreUnavailable
from buildrunner.server.http.errors import ApiError
from buildrunner.server.loop import Signal
from buildrunner.store.model.builds import Lease

Found = TypeVar("Found")

_LOOK_S, _SELDOM_S = 1.0, 15.0
_LOOKS_AT_ONCE = 4  # few, since claims run one at a time anyway
_LOOKS_OF_CALLER = 2
MOST_WAITS = 1000
"""The most waiting requests of one caller. Each holds a connection."""
MOST_LINES = 100
"""The most lines of one caller. After a change, the first request of each reads the database."""


class OnlyThis(Exception):
    """Raised if a request finds nothing for its own reason, but another of its line may."""


class _Caller:
    """The waiting requests of one caller."""

    def __init__(self) -> None:
        self.waits = 0
        self.lines: Counter[Hashable] = Counter()
        self.looking = asyncio.Semaphore(_LOOKS_OF_CALLER)


class Changes:
    """Wakes requests that wait for changes of the queue. All of them run in one event loop.

    Args:
        changed: called, from any thread, after a change.
        undisturbed: returns the leases of running builds without a request to cancel them.
        hears_all: returns whether ``changed`` is called after every change.
    """

    def __init__(
        self,
        changed: Signal,
        undisturbed: Callable[[], Collection[Lease]],
        hears_all: Callable[[], bool] = lambda: False,
    ) -> None:
        self._undisturbed = undisturbed
        self._hears_all = hears_all
        self._looking = asyncio.Semaphore(_LOOKS_AT_ONCE)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lines: dict[Hashable, list[asyncio.Event]] = {}
        self._running: dict[asyncio.Event, Lease] = {}
        self._changed = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._callers: dict[str, _Caller] = {}
        self._closed = False
        changed.connect(self._notify)

    @property
    def waiting(self) -> int:
        """Return the number of requests that wait."""
        return sum(caller.waits for caller in self._callers.values())

    async def wait_for(
        self,
        look: Callable[[], Awaitable[Found | None]],
        seconds: float,
        *,
        line: Hashable,
        caller: str,
        is_gone: Callable[[], Awaitable[bool]],
    ) -> Found | None:
        """Return what ``look`` finds, which is called at once, and again after changes.

        After a change, the first request of each line looks, and the next one if it finds
        something. Without a change, the first one looks every 15 seconds, or every second while a
        change may go unnoticed.

        Args:
            look: returns None if no request of the line would find anything; raises `OnlyThis` if
                another one might.
            seconds: the longest wait.
            line: equal for requests that look for the same.
            caller: the caller whose waiting requests are counted.
            is_gone: returns whether the client has disconnected. If so, ``look`` is not called.

        Returns:
            None if nothing is found for that many seconds, the client disconnects, or the server
            stops.

        Raises:
            ApiError: 429 if `MOST_WAITS` requests of the caller wait already, or in `MOST_LINES`
                lines.
        """
        with self._counted(caller, line) as own, self._in_line(line) as place:
            loop = asyncio.get_running_loop()
            end = loop.time() + seconds
            while True:
                place.clear()
                async with own.looking, self._looking:
                    if await is_gone():
                        return None
                    try:
                        found = await look()
                    except OnlyThis:
                        found = None
                        self._wake(line, self._lines[line].index(place) + 1)
                left = end - loop.time()
                if found is not None or left <= 0 or self._closed:
                    return found
                is_first = self._lines[line][0] is place
                await _set_within(place, min(left, self._look_s()) if is_first else left)

    async def wait_while_undisturbed(
        self,
        lease: Lease,
        look: Callable[[], Awaitable[Found | None]],
        seconds: float,
        *,
        caller: str,
    ) -> Found | None:
        """Return what ``look`` finds, which is called at once, and again once a build is disturbed.

        Args:
            lease: the lease of the build. The build is disturbed when its cancellation is
                requested, when it ends, or when another worker gets it.
            look: returns None if it finds nothing.
            seconds: see `wait_for`.
            caller: see `wait_for`.

        Returns:
            None if nothing is found for that many seconds, or the server stops.

        Raises:
            ApiError: see `wait_for`.
        """
        with self._counted(caller):
            loop = asyncio.get_running_loop()
            end = loop.time() + seconds
            disturbed = asyncio.Event()
            self._running[disturbed] = lease
            if self._watch is None:
                self._watch = loop.create_task(self._watch_running())
            try:
                while True:
                    disturbed.clear()
                    found = await look()
                    left = end - loop.time()
                    if found is not None or left <= 0 or self._closed:
                        return found
                    await _set_within(disturbed, left)
            finally:
                del self._running[disturbed]

    def close(self) -> None:
        """End all waits: the server stops. Called in the event loop."""
        self._closed = True
        for event in (*self._running, *(place for line in self._lines.values() for place in line)):
            event.set()
        self._changed.set()

    async def _watch_running(self) -> None:
        """After each change, wake the requests of workers whose builds were disturbed."""
        try:
            while self._running:
                self._changed.clear()
                with suppress(StoreUnavailable):
                    undisturbed = await run_in_threadpool(self._undisturbed)
                    for disturbed, lease in self._running.items():
                        if lease not in undisturbed:
                            disturbed.set()
                await _set_within(self._changed, self._look_s())
        finally:
            self._watch = None

    @contextmanager
    def _counted(self, caller: str, line: Hashable = None) -> Iterator[_Caller]:
        self._loop = asyncio.get_running_loop()
        own = self._callers.setdefault(caller, _Caller())
        if own.waits >= MOST_WAITS:
            raise _too_many(f"{MOST_WAITS} requests of {caller} wait already")
        if line is not None and line not in own.lines and len(own.lines) >= MOST_LINES:
            raise _too_many(f"requests of {caller} wait for {MOST_LINES} different things already")
        own.waits += 1
        if line is not None:
            own.lines[line] += 1
        try:
            yield own
        finally:
            own.waits -= 1
            if line is not None:
                own.lines[line] -= 1
                own.lines += Counter()  # without those that are empty
            if not own.waits:
                del self._callers[caller]

    @contextmanager
    def _in_line(self, line: Hashable) -> Iterator[asyncio.Event]:
        """Yield a place at the end of a line.

        When the first place leaves, the next one looks, since there may be more to find.
        """
        place = asyncio.Event()
        places = self._lines.setdefault(line, [])
        places.append(place)
        try:
            yield place
        finally:
            was_first = places[0] is place
            places.remove(place)
            if not places:
                del self._lines[line]
            elif was_first:
                places[0].set()

    def _wake(self, line: Hashable, number: int) -> None:
        for place in self._lines[line][number : number + 1]:
            place.set()

    def _look_s(self) -> float:
        return _SELDOM_S if self._hears_all() else _LOOK_S

    def _notify(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the server has stopped
                self._loop.call_soon_threadsafe(self._wake_first)

    def _wake_first(self) -> None:
        for line in self._lines:
            self._wake(line, 0)
        self._changed.set()


def _too_many(problem: str) -> ApiError:
    return ApiError(429, f"{problem}: try again later", headers={"Retry-After": "10"})


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
