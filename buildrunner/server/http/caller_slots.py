"""Bounds how many costly requests of one caller are handled at the same time.

A large body, or a search, takes a thread of the server for seconds, and there are some forty
threads. The costly requests of one caller wait for each other without a thread: other callers find
one. All callers without a token are one caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import Request

from buildrunner.server.http.errors import ApiError

LARGE_BYTES = 1 << 18
"""Bytes from which on a body is large. A body whose length is not declared is large."""
LARGE_AT_ONCE = 2
SEARCHES_AT_ONCE = 4
LONGEST_WAIT_S = 30.0


class CallerSlots:
    """The costly requests of one kind that are handled or wait. For use in one event loop.

    Args:
        what: the kind, in the plural.
        at_once: how many of one caller are handled at the same time.
    """

    def __init__(self, what: str, at_once: int) -> None:
        self._what = what
        self._at_once = at_once
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def slot(self, caller: str) -> AsyncIterator[None]:
        """Wait until a request of a caller may be handled; it counts until the block ends.

        Raises:
            ApiError: 429 after half a minute.
        """
        slots = self._slots.setdefault(caller, asyncio.Semaphore(self._at_once))
        self._users[caller] = self._users.get(caller, 0) + 1
        try:
            await self._acquire(slots)
            try:
                yield
            finally:
                slots.release()
        finally:
            self._users[caller] -= 1
            if not self._users[caller]:
                del self._users[caller], self._slots[caller]

    async def _acquire(self, slots: asyncio.Semaphore) -> None:
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                await slots.acquire()
        except TimeoutError:
            message = f"{self._at_once} {self._what} of this caller are handled: try again later"
            headers = {"Connection": "close", "Retry-After": "10"}
            raise ApiError(429, message, headers=headers) from None


def is_large(request: Request) -> bool:
    """Whether the body of a request is large, or may be."""
    length = request.headers.get("content-length", "0")
    is_open = "transfer-encoding" in request.headers
    return is_open or not length.isdecimal() or int(length) >= LARGE_BYTES


def search_slot() -> Callable[[Request], AsyncIterator[None]]:
    """Return a dependency, behind that of the caller, that bounds searches and filters."""

    async def wait(request: Request) -> AsyncIterator[None]:
        searches: CallerSlots = request.app.state.searches
        async with searches.slot(request.state.caller.name):
            yield

    return wait
