"""Keeps web pages of others away from a server that asks for no token.

Any page that somebody on this machine looks at can send requests to 127.0.0.1, and by a name that
it lets point there (DNS rebinding) it can read the answers. Tokens would stop it; without them the
names in the request must be the server's own.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from buildrunner.server.errors import error_response, permission_denied

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send


class SameSite:
    """Refuses requests that a page of another site, or a strange name for us, is behind.

    Args:
        app: what is protected.
        public_host: name by which people reach the server, besides those of this machine.
    """

    def __init__(self, app: ASGIApp, public_host: str) -> None:
        self._app = app
        self._public_host = public_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http":
            reason = self._reason(dict(scope["headers"]))
            if reason:
                await error_response(permission_denied(reason))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _reason(self, headers: dict[bytes, bytes]) -> str:
        host = headers.get(b"host", b"").decode("latin-1")
        if host and not self._is_ours(host):
            return f"this server is not {host}: without tokens it answers to its own names only"
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and (urlsplit(origin).netloc != host or not host):
            return f"pages of {origin} may not use this server: start it with --auth tokens"
        if headers.get(b"sec-fetch-site") == b"cross-site":
            return "pages of other sites may not use this server: start it with --auth tokens"
        return ""

    def _is_ours(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname or ""
        return name in (self._public_host, "localhost") or is_loopback(name)


def is_loopback(host: str) -> bool:
    """Whether a host, as a name or an address, can be nothing but this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
