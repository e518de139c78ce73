"""The other servers of the database: their addresses, and which of them answer now."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Mapping

import httpx

from buildrunner.store.sql.servers import SqlServers

_KNOWN_S = 5.0
_TIMEOUT_S = 1.0


class Peers:
    """The other servers of the database. Thread-safe.

    Args:
        servers: the stored servers.
        own: name of this server.
    """

    def __init__(self, servers: SqlServers, own: str) -> None:
        self._servers = servers
        self._own = own
        self._urls: Mapping[str, str] = {}
        self._answering: tuple[str, ...] = ()
        self._urls_known_until = self._answering_known_until = 0.0
        self._asks = threading.Lock()
        self._tls: ssl.SSLContext | None = None

    def urls(self) -> Mapping[str, str]:
        """Return the addresses of the others by name, as they were at most 5 s ago.

        Raises:
            StoreError: the database does not answer.
        """
        if time.monotonic() >= self._urls_known_until:
            self._urls = {one.name: one.url for one in self._servers.all() if one.name != self._own}
            self._urls_known_until = time.monotonic() + _KNOWN_S
        return self._urls

    def answering(self) -> tuple[str, ...]:
        """Return the names of the others that answered a request at most 5 s ago.

        One thread at a time asks them. The other threads get the earlier result meanwhile.

        Raises:
            StoreError: the database does not answer.
        """
        if time.monotonic() >= self._answering_known_until and self._asks.acquire(blocking=False):
            try:
                urls = self.urls()
                self._answering = tuple(name for name, url in urls.items() if self._answers(url))
                self._answering_known_until = time.monotonic() + _KNOWN_S
            finally:
                self._asks.release()
        return self._answering

    def tls(self) -> ssl.SSLContext:
        """Return the TLS settings for requests to other servers."""
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls

    def _answers(self, url: str) -> bool:
        verify = self.tls() if url.startswith("https:") else False
        try:
            answer = httpx.get(f"{url}/healthz", timeout=_TIMEOUT_S, verify=verify, trust_env=False)
        except (httpx.HTTPError, httpx.InvalidURL):
            return False
        return answer.is_success
