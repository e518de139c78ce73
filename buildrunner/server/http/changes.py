"""Requests that wait for a change of the queue: held open, and woken by `ServerContext.wake`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from buildrunner.server.http.errors import ApiError
from buildrunner.server.loop import Signal

Found = TypeVar("Found")

_LOOK_S, _SELDOM_S = 1.0, 15.0
_LOOKS_AT_ONCE = 4
MOST_WAITS = 200
"""Requests of one caller that wait at the same time: each looks from time to time."""


class Changes:
    """Wakes requests that wait for changes of the queue. All of them run in one event loop.

    Args:
        changed: called, from any thread, after a change.
        hears_all: returns whether it is called after every change.
    """

    def __init__(self, changed: Signal, hears_all: Callable[[], bool] = lambda: False) -> None:
        self._hears_all = hears_all
        # A change wakes all. The first of them claims a new build, and the others see that.
        self._looking = asyncio.Semaphore(_LOOKS_AT_ONCE)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Event] = set()
        self._waits: Counter[str] = Counter()
        self._closed = False
        changed.connect(self._notify)

    async def wait_for(
        self,
        look: Callable[[], Awaitable[Found | None]],
        seconds: float,
        *,
        caller: str,
        is_gone: Callable[[], Awaitable[bool]],
    ) -> Found | None:
        """Return what ``look`` finds, which is called at once and after each change.

        Without a change it is called every 15 seconds, or every second while a change may go
        unnoticed.

        Args:
            look: returns None if it finds nothing.
            seconds: how long to wait.
            caller: whose waiting requests are counted.
            is_gone: whether the client has hung up. Then nothing is looked for.

        Returns:
            None if nothing is found for that many seconds, or the client is gone, or the server
            stops.

        Raises:
            ApiError: 429 if `MOST_WAITS` requests of the caller wait already.
        """
        if self._waits[caller] >= MOST_WAITS:
            message = f"{MOST_WAITS} requests of {caller} wait already: try again later"
            raise ApiError(429, message, headers={"Retry-After": "10"})
        self._loop = loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        changed = asyncio.Event()
        self._waiting.add(changed)
        self._waits[caller] += 1
        try:
            while True:
                changed.clear()
                async with self._looking:
                    if await is_gone():
                        return None
                    found = await look()
                left = end - loop.time()
                if found is not None or left <= 0 or self._closed:
                    return found
                look_s = _SELDOM_S if self._hears_all() else _LOOK_S
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), min(left, look_s))
        finally:
            self._waiting.discard(changed)
            self._waits[caller] -= 1
            if not self._waits[caller]:
                del self._waits[caller]

    def close(self) -> None:
        """End all waits: the server stops. Called in the event loop."""
        self._closed = True
        self._wake_all()

    def _notify(self) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the server has stopped
                self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        for changed in self._waiting:
            changed.set()
