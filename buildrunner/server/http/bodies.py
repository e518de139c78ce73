"""Bodies of requests, within limits of size, time and number.

A large body, a search, or the check of a build takes a thread of the server for up to seconds, and
there are some forty threads. The costly requests of one caller wait for each other without a thread
(`CallerSlots`), so that other callers find a free thread. All callers without a token count as one
caller.

A webhook's signature covers its whole body, so the server must hold the body before it knows the
sender (`UnverifiedBodies`). The bodies of all unverified senders together are bounded in number,
bytes and time. A body that does not fit displaces a body of the source that holds most. So a
stranger who sends many large bodies displaces their own bodies, not the small ones of a forge. A
stranger may have many networks. So networks that have sent a genuine body since the server's start
lose none to others.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Final

import msgspec
from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from buildrunner.addresses import network_of
from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import ApiError, invalid_argument
from buildrunner.server.http.requests import client_address

# An unterminated string matches to the end of the body: otherwise the search for its end would
# start again at each quotation mark in it, and take quadratic time.
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_MARKS: Final = (b",", b"[", b"{")
_MOST_DISCARDED: Final = 64 << 20
_DISCARDING_S: Final = 10.0
QUICK_BYTES: Final = 200_000
"""A body of fewer bytes is parsed in the event loop."""
MAX_VALUES: Final = 100_000
MAX_PAYLOAD_VALUES: Final = 1_000_000
MAX_TEXT: Final = 1 << 20
LARGE_BYTES = 1 << 18
"""The size from which a body is large. A body without a declared length is large."""
LARGE_AT_ONCE = 2
SEARCHES_AT_ONCE = 4
BADGES_AT_ONCE = 4
REPORTS_AT_ONCE = 4
UPLOADS_AT_ONCE = 4
PACKS_AT_ONCE = 2
CREDENTIALS_AT_ONCE = 2
BUILDS_AT_ONCE = 4
READS_AT_ONCE = 4
LONGEST_WAIT_S = 30.0
MOST_IN_LINE = 100
"""The most requests of one caller and kind that wait for a slot: each takes a connection."""
SLOWEST_BODY: Final = 1024
"""Bytes a second at which a body must arrive, after the time that is allowed for a pause."""
_MOST_GENUINE: Final = 1000
_CLOSE = {"Connection": "close", "Retry-After": "10"}


def raw_body(context: ServerContext, limit: int) -> Callable[[Request], Awaitable[bytes]]:
    """Return a dependency that reads the unchanged body, of at most ``limit`` bytes."""

    async def read(request: Request) -> bytes:
        pieces = [piece async for piece in body_pieces(context, request, limit)]
        return b"".join(pieces)

    return read


def json_text(
    context: ServerContext, limit: int, values: int = 0
) -> Callable[[Request], AsyncIterator[bytes]]:
    """Return a dependency that reads JSON text, which the route decodes itself.

    It must run after the dependency of the caller: two large bodies of one caller are handled at
    the same time.

    Args:
        context: the server's context.
        limit: the most bytes.
        values: the most JSON values; 0 if the route checks them itself.
    """
    read_raw = raw_body(context, limit)

    async def read(request: Request) -> AsyncIterator[bytes]:
        large: CallerSlots = request.app.state.large_bodies
        async with large.slot(request.state.caller.name) if is_large(request) else nullcontext():
            raw = await read_raw(request)
            if values:
                await run_in_threadpool(check_values, raw, values)
            yield raw

    return read


def json_body(
    context: ServerContext, limit: int = 0, *, payload: bool = False
) -> Callable[[Request], AsyncIterator[Any]]:
    """Return a dependency that reads the body as parsed JSON; None for an empty body.

    It must run after the dependency of the caller.

    Args:
        context: the server's context.
        limit: the most bytes; 0 for the limit of API calls.
        payload: the body is a forge's event, which may have many values and long texts.
    """
    read_raw = raw_body(context, limit or context.settings.max_body_bytes)

    def parse(raw: bytes) -> Any:
        check_values(raw, MAX_PAYLOAD_VALUES if payload else MAX_VALUES)
        body = parsed(raw)
        if not payload:
            _check_texts(body)
        return body

    async def read(request: Request) -> AsyncIterator[Any]:
        large: CallerSlots = request.app.state.large_bodies
        async with large.slot(request.state.caller.name) if is_large(request) else nullcontext():
            raw = await read_raw(request)
            # A thread costs more than a small body; a large one would block all other requests.
            quick = len(raw) < QUICK_BYTES
            yield parse(raw) if quick else await run_in_threadpool(parse, raw)

    return read


def build_body(context: ServerContext) -> Callable[[Request], AsyncIterator[Any]]:
    """Return a dependency like `json_body`, for requests that may check a build or a trigger.

    The check takes long, also if the request names a stored build. So these requests of one caller
    wait for each other, whatever their size.
    """
    settings = context.settings
    read_json = json_body(context, min(settings.max_build_bytes, settings.max_body_bytes))

    async def read(request: Request, body: Any = Depends(read_json)) -> AsyncIterator[Any]:
        async with build_slot(request, request.state.caller.name):
            yield body

    return read


def build_slot(request: Request, caller: str) -> AbstractAsyncContextManager[None]:
    """Return a slot for work that checks a build or a trigger in a thread."""
    builds: CallerSlots = request.app.state.checked_builds
    return builds.slot(caller)


def check_values(body: bytes, most: int) -> None:
    """Refuse JSON of very many values before it is parsed, which would take time and memory.

    The largest build that the rules allow has some 60,000 values.

    Raises:
        ApiError: there are about ``most`` values, or more.
    """
    if _marks(body) > most and _marks(_STRING.sub(b"", body)) > most:
        raise invalid_argument(f"the body holds more than {most} values")


def _marks(body: bytes) -> int:
    """Count the values of a JSON text, except the first one of each object and list."""
    return sum(body.count(mark) for mark in _MARKS)


def _check_texts(body: Any) -> None:
    """Refuse texts that take long to check: those longer than a script may be, or many references.

    Raises:
        ApiError: a text is too long, or the body has too many references to substitutions.
    """
    references = 0
    pending = [body]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif isinstance(value, str):
            references += value.count("$")
            if len(value) > MAX_TEXT:
                raise invalid_argument(f"a text in the body is longer than {MAX_TEXT} characters")
        if references > MAX_VALUES:
            raise invalid_argument(f"the body holds more than {MAX_VALUES} references ($)")


def parsed(body: bytes) -> Any:
    """Parse a JSON body; None if it is empty.

    Raises:
        ApiError: the body is not JSON.
    """
    if not body.strip():
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise invalid_argument(f"the body is not JSON: {error}") from None


async def body_pieces(context: ServerContext, request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the body while it arrives.

    Raises:
        ApiError: 413 if it is longer than ``limit`` bytes, 408 if it stops arriving, or arrives
            too slowly. Time in which the server does not wait for the client does not count.
    """
    declared = request.headers.get("content-length", "")
    pieces = request.stream()
    if declared.isdecimal() and int(declared) > limit:
        # Without this header, the client has begun to send the body.
        if request.headers.get("expect", "").lower() != "100-continue":
            await _discard(pieces)
        raise _too_large(limit)
    pause_s = context.settings.body_timeout_s
    taken = 0
    waited_s = 0.0
    while True:
        begun = time.monotonic()
        left_s = pause_s + taken / SLOWEST_BODY - waited_s
        try:
            async with asyncio.timeout(min(pause_s, left_s)):
                piece = await anext(pieces, None)
        except TimeoutError:
            said = "the body stopped coming, or came too slowly"
            raise ApiError(408, said, headers={"Connection": "close"}) from None
        except ClientDisconnect:
            raise ApiError(400, "the client hung up in the middle of the body") from None
        if piece is None:
            return
        waited_s += time.monotonic() - begun
        taken += len(piece)
        if taken > limit:
            await _discard(pieces)
            raise _too_large(limit)
        yield piece


async def _discard(pieces: AsyncIterator[bytes]) -> None:
    """Read and drop the rest of a body, up to a limit.

    A client that gets an answer while it sends may see a reset connection instead of the answer.
    """
    left = _MOST_DISCARDED
    try:
        async with asyncio.timeout(_DISCARDING_S):
            while left > 0 and (piece := await anext(pieces, None)) is not None:
                left -= len(piece)
    except (TimeoutError, ClientDisconnect):
        return


def _too_large(limit: int) -> ApiError:
    message = f"the body is larger than {limit} bytes, which is all that is taken here"
    return ApiError(413, message)


def as_mapping(body: Any) -> dict[str, Any]:
    """Return the body as a JSON object; empty without a body.

    Raises:
        ApiError: the body is no object.
    """
    if body is None:
        return {}
    if not isinstance(body, dict):
        raise invalid_argument("the body must be a JSON object")
    return body


def member(body: dict[str, Any], name: str) -> Any:
    """Return a member by its camelCase name, also in snake_case; None if it is missing."""
    if name in body:
        return body[name]
    return body.get(re.sub(r"[A-Z]", lambda match: f"_{match.group().lower()}", name))


class CallerSlots:
    """Limits the concurrent costly requests of one kind. For use in one event loop.

    Args:
        what: name of the kind, in the plural.
        at_once: the most concurrent requests of one caller.
    """

    def __init__(self, what: str, at_once: int) -> None:
        self._what = what
        self._at_once = at_once
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def slot(self, caller: str) -> AsyncIterator[None]:
        """Wait until a request of a caller may be handled. It counts until the block ends.

        Raises:
            ApiError: 429 after half a minute, or at once if too many requests wait.
        """
        if self._users.get(caller, 0) >= self._at_once + MOST_IN_LINE:
            raise self._refused()
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
            raise self._refused() from None

    def _refused(self) -> ApiError:
        message = f"{self._at_once} {self._what} of this caller are handled: try again later"
        return ApiError(429, message, headers=_CLOSE)


def is_large(request: Request) -> bool:
    """Return whether the body of a request is large, or may be."""
    length = request.headers.get("content-length", "0")
    is_open = "transfer-encoding" in request.headers
    return is_open or not length.isdecimal() or int(length) >= LARGE_BYTES


def upload_slot(request: Request) -> AbstractAsyncContextManager[None]:
    """Return a slot for work on uploads, which hashes, writes and counts files in a thread."""
    uploads: CallerSlots = request.app.state.uploads
    return uploads.slot(request.state.caller.name)


async def waits_for_upload_slot(request: Request) -> AsyncIterator[None]:
    """Limit the uploads of a caller. A dependency, after that of the caller."""
    async with upload_slot(request):
        yield


async def waits_for_pack_slot(request: Request) -> AsyncIterator[None]:
    """Limit the archives that are made for a caller, which may take minutes; like the above."""
    packs: CallerSlots = request.app.state.packs
    async with packs.slot(request.state.caller.name):
        yield


async def _waits_to_search(request: Request) -> AsyncIterator[None]:
    async with search_slot(request):
        yield


SEARCH_SLOT: Final = Depends(_waits_to_search, scope="function")
"""A dependency, after that of the caller, of routes that search and filter.

It ends when the route has made its answer: a slow reader of the answer holds up no other.
"""


def search_slot(request: Request) -> AbstractAsyncContextManager[None]:
    """Return a slot for a search."""
    searches: CallerSlots = request.app.state.searches
    return searches.slot(request.state.caller.name)


async def _waits_to_read(request: Request) -> AsyncIterator[None]:
    async with read_slot(request, request.state.caller.name):
        yield


READ_SLOT: Final = Depends(_waits_to_read, scope="function")
"""A dependency, after that of the caller, of routes that read one build, which may be large.

Like `SEARCH_SLOT`, it ends before the answer is sent.
"""


def read_slot(request: Request, caller: str) -> AbstractAsyncContextManager[None]:
    """Return a slot for a request that reads one build."""
    reads: CallerSlots = request.app.state.reads
    return reads.slot(caller)


def slot_of(slots: CallerSlots) -> Callable[[Request], AsyncIterator[None]]:
    """Return a dependency, after that of the caller, that waits for one of ``slots``."""

    async def wait(request: Request) -> AsyncIterator[None]:
        async with slots.slot(request.state.caller.name):
            yield

    return wait


class UnverifiedBodies:
    """The bodies of unverified senders that are in memory now. For use in one event loop.

    Args:
        context: the server's context; its settings have the limits.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._bodies: list[_Body] = []
        self._genuine: OrderedDict[str, None] = OrderedDict()

    def trust(self, request: Request) -> None:
        """Prefer the bodies of a network from now on: it has sent a genuine one."""
        network = network_of(client_address(request))
        self._genuine[network] = None
        self._genuine.move_to_end(network)
        if len(self._genuine) > _MOST_GENUINE:
            self._genuine.popitem(last=False)

    @property
    def held_bytes(self) -> int:
        """Return the bytes of all bodies that are held now."""
        return sum(body.size for body in self._held())

    @asynccontextmanager
    async def read(self, request: Request, limit: int) -> AsyncIterator[bytes]:
        """Read a body, and count it until the block ends.

        Verify the sender inside the block.

        Args:
            request: the request.
            limit: the most bytes of this body.

        Raises:
            ApiError: 413 for a body over ``limit``, 408 for a slow one, 429 for a displaced one.
        """
        body = _Body(client_address(request))
        self._bodies.append(body)
        try:
            if len(self._held()) > self._context.settings.max_unverified_bodies:
                self._displace(Counter(each.source for each in self._held()), lambda _: 0)
            yield await self._read(body, request, limit)
        finally:
            self._bodies.remove(body)

    async def _read(self, body: _Body, request: Request, limit: int) -> bytes:
        settings = self._context.settings
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(settings.unverified_body_s) as body.deadline:
                body.check()
                async for piece in body_pieces(self._context, request, limit):
                    pieces.append(piece)
                    body.size += len(piece)
                    while self.held_bytes > settings.max_unverified_bytes:
                        if not self._displace(self._bytes_by_source(), lambda each: each.size):
                            break
                    body.check()
                body.complete = True
        except TimeoutError:
            body.check()
            message = f"the body took longer than {settings.unverified_body_s:g} s"
            raise ApiError(408, message, headers=_CLOSE) from None
        return b"".join(pieces)

    def _held(self) -> list[_Body]:
        return [body for body in self._bodies if not body.displaced]

    def _bytes_by_source(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for body in self._held():
            held[body.source] += body.size
        return held

    def _displace(self, held: Counter[str], weight: Callable[[_Body], int]) -> bool:
        """Drop an incomplete body of the source that holds most, by weight and age, if any."""
        incomplete = [body for body in self._held() if not body.complete]

        def rank(body: _Body) -> tuple[bool, int, int]:
            return body.network not in self._genuine, held[body.source], weight(body)

        if incomplete:
            max(incomplete, key=rank).displace()  # the oldest one of equals
        return bool(incomplete)


class _Body:
    """One body that is being read or verified.

    Attributes:
        network: network of its sender.
        source: the same for IPv4; a larger network for IPv6, as large as one customer may have.
        size: bytes so far.
        deadline: time limit of the reading; None before it begins.
        complete: all bytes have arrived. The body is not displaced any more, since its verification
            takes little time.
        displaced: the body was dropped in favor of others.
    """

    def __init__(self, address: str) -> None:
        self.network = network_of(address)
        self.source = network_of(address, prefix=48)
        self.size = 0
        self.deadline: asyncio.Timeout | None = None
        self.complete = False
        self.displaced = False

    def displace(self) -> None:
        """Make the reader of the body raise `ApiError`, also while it waits for the next piece."""
        self.displaced = True
        if self.deadline is not None and not self.deadline.expired():
            self.deadline.reschedule(asyncio.get_running_loop().time())

    def check(self) -> None:
        """Raise `ApiError` if the body was displaced."""
        if self.displaced:
            message = "too many unverified requests at the same time: try again later"
            raise ApiError(429, message, headers=_CLOSE)
