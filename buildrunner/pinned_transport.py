"""HTTP connections to hosts that another party names, only at addresses that were checked.

A second lookup of a name can return another address (DNS rebinding). So each host is looked up
once, checked, and connected to by address, also on redirects.
"""

from __future__ import annotations

import ssl
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib import request as urllib_request

import httpx

from buildrunner.addresses import is_loopback_host

_MOST_ADDRESSES: Final = 4


class PinnedTransport(httpx.BaseTransport):
    """Implements `httpx.BaseTransport`. Thread-safe.

    Args:
        tls: how certificates are checked.
        proxies: addresses of proxies by scheme, and ``no``, as `urllib.request.getproxies` has
            them. A proxy looks up names itself; names that this machine can resolve are also
            checked.
    """

    def __init__(self, tls: ssl.SSLContext, proxies: Mapping[str, str] | None = None) -> None:
        self._tls = tls
        self._proxies = dict(proxies or {})
        self._transports: dict[tuple[str, str, ssl.SSLContext], httpx.HTTPTransport] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def addresses(self, url: httpx.URL, host: str) -> Sequence[str]:
        """Return the checked addresses of a host, the same ones each time.

        Args:
            url: URL of the request.
            host: host of the URL, in lower-case ASCII.

        Raises:
            BuildrunnerError: the host may not be reached.
            httpx.ConnectError: the host can't be found.
        """

    @abstractmethod
    def wrong_proxy(self, kind: str) -> Exception:
        """Return the error for a proxy of a kind that is not supported."""

    def is_here(self, host: str) -> bool:
        """Return whether a host is always reached without a proxy."""
        return is_loopback_host(host)

    def tls(self, url: httpx.URL) -> ssl.SSLContext:  # noqa: ARG002
        """Return how the certificate of a request's host is checked."""
        return self._tls

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to an address that was checked.

        Raises:
            BuildrunnerError: the host may not be reached.
            httpx.TransportError: no address answers.
        """
        # In ASCII: the resolver would encode other letters by an older rule than certificates.
        host = request.url.raw_host.decode("ascii").lower()
        tls = self.tls(request.url)
        if proxy := self._proxy(request.url.scheme, host):
            with suppress(httpx.ConnectError):  # in many networks only the proxy resolves names
                self.addresses(request.url, host)
            return self._transport(host, proxy, tls).handle_request(request)
        failure: httpx.TransportError = httpx.ConnectError(f"{host} has no address")
        for address in self.addresses(request.url, host)[:_MOST_ADDRESSES]:
            pinned = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,  # the Host header has the name
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                # Not one for all hosts: a connection belongs to the name in its certificate.
                return self._transport(host, "", tls).handle_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error  # nothing was sent: the next address may answer
        raise failure

    def close(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            transport.close()

    def _transport(self, host: str, proxy: str, tls: ssl.SSLContext) -> httpx.HTTPTransport:
        with self._lock:
            found = self._transports.get((host, proxy, tls))
            if found is None:
                try:
                    found = httpx.HTTPTransport(verify=tls, trust_env=False, proxy=proxy or None)
                except (ImportError, ValueError) as error:
                    # The rest of the address may hold a password.
                    raise self.wrong_proxy(proxy.partition("://")[0]) from error
                self._transports[host, proxy, tls] = found
        return found

    def _proxy(self, scheme: str, host: str) -> str:
        bypass: Callable[[str, Mapping[str, Any]], bool] = urllib_request.proxy_bypass_environment  # type: ignore[attr-defined]
        if self.is_here(host) or bypass(host, self._proxies):
            return ""
        proxy = self._proxies.get(scheme) or self._proxies.get("all", "")
        return proxy if "://" in proxy or not proxy else f"http://{proxy}"
