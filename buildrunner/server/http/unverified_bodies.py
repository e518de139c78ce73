"""Bounds the memory that senders can take before they have proved who they are.

A webhook's signature covers its whole body, so the server must hold the body before it knows the
sender. The bodies of all unverified senders together are bounded in number, bytes and time. A
body that does not fit displaces one of the source address that holds most: a stranger who sends
many large bodies displaces their own, not the small ones that a forge sends meanwhile.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import ApiError
from buildrunner.server.http.requests import body_pieces, client_address

if TYPE_CHECKING:
    from fastapi import Request

_CLOSE = {"Connection": "close", "Retry-After": "10"}


class UnverifiedBodies:
    """The bodies of unverified senders that are in memory now. For use in one event loop.

    Args:
        context: the server's context; its settings have the limits.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._bodies: list[_Body] = []

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies that are held now."""
        return sum(body.size for body in self._held())

    @asynccontextmanager
    async def read(self, request: Request, limit: int) -> AsyncIterator[bytes]:
        """Read a body, and count it until the block ends.

        Verify the sender inside the block.

        Args:
            request: the request.
            limit: most bytes of this body.

        Raises:
            ApiError: 413 for a body over ``limit``, 408 for a slow one, 429 for a displaced one.
        """
        body = _Body(network_of(client_address(request)))
        self._bodies.append(body)
        try:
            if len(self._held()) > self._context.settings.max_unverified_bodies:
                self._displace(Counter(each.source for each in self._held()))
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
                    if self.held_bytes > settings.max_unverified_bytes:
                        self._displace(self._bytes_by_source())
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

    def _displace(self, held: Counter[str]) -> None:
        """Give up the largest incomplete body of the source that holds most."""
        incomplete = [body for body in self._held() if not body.complete]
        if incomplete:
            max(incomplete, key=lambda body: (held[body.source], body.size)).displace()


class _Body:
    """One body that is being read or verified.

    Attributes:
        source: network of its sender.
        size: bytes so far.
        deadline: when reading it is given up; None before that began.
        complete: all of it is there; verifying it takes too little time for a displacement.
        displaced: it was given up in favor of others.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.size = 0
        self.deadline: asyncio.Timeout | None = None
        self.complete = False
        self.displaced = False

    def displace(self) -> None:
        """Have its reader raise, also one that waits for the next piece."""
        self.displaced = True
        if self.deadline is not None and not self.deadline.expired():
            self.deadline.reschedule(asyncio.get_running_loop().time())

    def check(self) -> None:
        """Raise `ApiError` if it was displaced."""
        if self.displaced:
            message = "too many unverified requests at the same time: try again later"
            raise ApiError(429, message, headers=_CLOSE)


def network_of(address: str) -> str:
    """The network that one sender is taken to be: an IPv4 address, or an IPv6 /64 network."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4 or parsed.ipv4_mapped is not None:
        return address
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))
