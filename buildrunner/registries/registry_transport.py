"""Connections to a registry that a build names, and to the hosts that the registry refers to.

A registry redirects requests, and names the address of uploads and of its token service. Its
owner may be the author of the build. So each host is looked up once, checked, and connected to by
address: a registry can't lead this process into a more private network than its own.
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import httpx
import msgspec

from buildrunner.addresses import (
    Egress,
    address_of,
    is_loopback_host,
    is_public,
    kind_of,
    look_up,
    unwrapped,
)
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.deadline import Deadline
from buildrunner.errors import RegistryError
from buildrunner.pinned_transport import PinnedTransport

_CERTIFICATES: Final = "/etc/docker/certs.d"
_CLIENT: Final = "buildrunner"
LEAST_TOKEN_S: Final = 60
"""Lifetime of a token whose answer names none. Source: Docker's token specification."""


class RegistryToken(msgspec.Struct):
    """The answer of a registry's token service.

    Attributes:
        token: the token, or empty.
        access_token: the token under its other name, or empty.
        expires_in: its lifetime in seconds.
    """

    token: str = ""
    access_token: str = ""
    expires_in: float = LEAST_TOKEN_S

    @property
    def value(self) -> str:
        """Return the token itself."""
        return self.token or self.access_token


def token_request(
    login: RegistryLogin | None, scope: Mapping[str, str]
) -> tuple[str, dict[str, Any]]:
    """Return the method and the arguments of a request for a token.

    Args:
        login: the login; None for a token without one.
        scope: ``service`` and ``scope``, as the registry names them.
    """
    if login is None or not login.identity_token:
        return "GET", {
            "params": scope,
            "auth": (login.username, login.password) if login is not None else None,
        }
    grant = {
        "grant_type": "refresh_token",
        "refresh_token": login.identity_token,
        "client_id": _CLIENT,
    }
    return "POST", {"data": {**scope, **grant}}


def registry_tls(registry: str, *, insecure: bool = False) -> ssl.SSLContext:
    """Return TLS settings like Docker's: trust the system and the registry's ``certs.d`` folder.

    A client certificate in that folder is used, too.

    Args:
        registry: ``host:port``.
        insecure: accept every certificate.
    """
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    folder = os.path.join(_CERTIFICATES, registry)
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        stem, ending = os.path.splitext(path)
        if ending == ".crt":
            context.load_verify_locations(path)
        elif ending == ".cert" and os.path.isfile(f"{stem}.key"):
            context.load_cert_chain(path, f"{stem}.key")
    return context


def is_loopback(registry: str) -> bool:
    """Return whether a registry is written as a loopback address, where plain http is usual."""
    host = host_of(registry)
    return is_loopback_host(host) or host.lower().endswith(".localhost")


def host_of(registry: str) -> str:
    """Return the host of a registry's ``host:port``."""
    return re.sub(r":\d+$", "", registry)


class RegistryTransport(PinnedTransport):
    """Implements `PinnedTransport`. Thread-safe.

    A public registry may lead to public addresses only. One in a private network may lead to
    private addresses, too, and one that is named by a loopback address also to that. Link-local and
    multicast addresses, and the metadata services of clouds, are never reached.

    Args:
        registry: ``host:port`` of the registry.
        tls: how certificates are checked.
        egress: networks that builds do not reach.
        proxies: see `PinnedTransport`.
        addresses_of: looks up a name.
        deadline: ends every connection when its time is over; None: each has its own timeouts.
    """

    def __init__(
        self,
        registry: str,
        tls: ssl.SSLContext,
        *,
        egress: Egress | None = None,
        proxies: Mapping[str, str] | None = None,
        addresses_of: Callable[[str], Sequence[str]] = look_up,
        deadline: Deadline | None = None,
    ) -> None:
        super().__init__(tls, proxies)
        self._registry = registry
        self._host = host_of(registry).strip("[]").lower()
        egress = egress or Egress()
        self._deny = [ipaddress.ip_network(one) for one in egress.deny]
        self._denies_all = any(network.prefixlen == 0 for network in self._deny)
        self._allow = [ipaddress.ip_network(one) for one in egress.allow]
        self._addresses_of = addresses_of
        self._deadline = deadline
        self._known: dict[str, tuple[str, ...]] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See `PinnedTransport.handle_request`.

        Raises:
            RegistryError: the host may not be reached, or the time is over.
            httpx.TransportError: no address answers.
        """
        if self._deadline is not None:
            if self._deadline.is_over:
                raise RegistryError(f"the registry {self._registry} answers too slowly")
            request.extensions = {**request.extensions, "trace": self._deadline.trace}
        return super().handle_request(request)

    def addresses(self, url: httpx.URL, host: str) -> Sequence[str]:  # noqa: ARG002
        """See `PinnedTransport.addresses`."""
        return self._addresses(host)

    def is_here(self, host: str) -> bool:
        """See `PinnedTransport.is_here`."""
        return is_loopback(host)

    def wrong_proxy(self, kind: str) -> RegistryError:
        """See `PinnedTransport.wrong_proxy`."""
        return RegistryError(
            f"the registry {self._registry} can't be reached by a proxy of {kind}://",
            hint="Set HTTPS_PROXY and HTTP_PROXY to http://HOST:PORT, or name the registry's host "
            "in NO_PROXY.",
        )

    def _addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a host, from its first lookup."""
        if host not in self._known:
            try:
                found = tuple(self._addresses_of(host))
            except OSError as error:
                raise httpx.ConnectError(f"{host} can't be found: {error}") from error
            self._judge(host, found)
            self._known[host] = found
        return self._known[host]

    def _judge(self, host: str, found: Sequence[str]) -> None:
        """Raise RegistryError unless every address of a host may be reached."""
        for text in found:
            if not self._may_reach(host, text):
                cure = f'egress_allow = ["{text}"] below [sandbox] of config.toml'
                if ":" in text:
                    cure = "its IPv4 address in egress_allow, and a name that has no other"
                raise RegistryError(
                    f"the registry {self._registry} leads to {host} at {text}, an address that "
                    "is not reached for builds",
                    hint=f"If it belongs to the registry, the machine's admin can allow it: {cure}",
                )

    def _may_reach(self, host: str, text: str) -> bool:
        address = address_of(text)
        if address is None:
            return False
        address, kind = unwrapped(address), kind_of(address)
        if any(address in network for network in self._allow):
            return True
        if any(address in network for network in self._deny) or kind == "none":
            return False
        if isinstance(address, ipaddress.IPv6Address) and self._denies_all:
            return False
        if kind in ("loopback", "unspecified"):
            return is_loopback(self._registry)
        return kind == "public" or host == self._host or self._is_private()

    def _is_private(self) -> bool:
        """Return whether the registry itself is in a private network, or on this machine."""
        literals = (address_of(one) for one in self._known.get(self._host, ()))
        found = [one for one in literals if one is not None]
        return bool(found) and not any(map(is_public, found))


def read_bounded(response: httpx.Response, most_bytes: int) -> httpx.Response:
    """Read an answer that was requested as a stream and uncompressed; close it.

    Raises:
        RegistryError: the body is larger than ``most_bytes``.
    """
    body = bytearray()
    try:
        for piece in response.iter_raw():
            body += piece
            if len(body) > most_bytes:
                raise RegistryError(f"{response.url} answers with more than {most_bytes:,} bytes")
    finally:
        response.close()
    headers = [
        (name, value)
        for name, value in response.headers.multi_items()
        if name not in ("content-encoding", "content-length", "transfer-encoding")
    ]
    return httpx.Response(
        response.status_code, headers=headers, content=bytes(body), request=response.request
    )
