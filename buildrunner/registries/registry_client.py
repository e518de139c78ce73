"""Requests to an image registry, with a login that stays in this process.

Source: the OCI distribution specification; Docker's token authentication specification.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from buildrunner.addresses import Egress, address_of, look_up
from buildrunner.containers.types import RegistryLogin
from buildrunner.deadline import Deadline
from buildrunner.errors import CredentialsError, RegistryError
from buildrunner.registries.distribution import MANIFEST_TYPES, sha256
from buildrunner.registries.registry_transport import RegistryTransport, host_of, read_bounded

_CERTIFICATES = "/etc/docker/certs.d"
_DOCKER_HUB = "registry-1.docker.io"
_CLIENT = "buildrunner"
_CONNECT_S = 30.0
_ANSWER_S = 300.0  # a registry may take its time to check a large layer
_LARGEST_MANIFEST = 4 << 20  # registries take no larger one
_LARGEST_BYTES = 1 << 20  # of a token, and of what says how to get one
_TOKEN_S = 60  # where the answer does not say; source: Docker's token specification
_FRESH = 0.7  # of a token's lifetime: then another one is requested
_PARAMETER = re.compile(r'([a-zA-Z_]+)="([^"]*)"')


class RegistryPlace(msgspec.Struct, frozen=True, kw_only=True):
    """How a registry is reached.

    Attributes:
        registry: host and port as in names of images.
        insecure: registries without TLS, or with a certificate that nobody checks, as the engine is
            told: ``host:port``, or networks.
        proxies: variables that the engine reaches it with (``HTTPS_PROXY=...``).
    """

    registry: str
    insecure: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """Host and port to connect to."""
        return _DOCKER_HUB if self.registry == "docker.io" else self.registry


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""
    expires_in: float = _TOKEN_S


class RegistryClient:
    """Requests to one repository of a registry. Thread-safe; a context manager.

    Args:
        place: how the registry is reached.
        repository: its name there.
        login: who to be; None for requests without a login.
        egress: networks that builds do not reach: see `RegistryTransport`.
        addresses_of: looks a name up.
        deadline: see `RegistryTransport`.
    """

    def __init__(
        self,
        place: RegistryPlace,
        repository: str,
        login: RegistryLogin | None,
        egress: Egress | None = None,
        *,
        addresses_of: Callable[[str], Sequence[str]] = look_up,
        deadline: Deadline | None = None,
    ) -> None:
        self._place = place
        # Once for all: what says that the registry has no TLS is what is connected to.
        known = lru_cache(addresses_of)
        self._is_insecure = _is_insecure(place, known)
        self._repository = repository
        self._login = login
        self._lock = threading.Lock()
        self._authorization: Callable[[], str] | None = None
        self._token = ""
        self._token_until = 0.0
        self._http = httpx.Client(
            transport=RegistryTransport(
                place.host,
                _tls(place, insecure=self._is_insecure),
                egress=egress,
                proxies=_proxies(place),
                addresses_of=known,
                deadline=deadline,
            ),
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
            trust_env=False,
            headers={"User-Agent": _CLIENT, "Accept-Encoding": "identity"},
        )
        self.base = ""
        """The address of the registry, once something was sent."""

    def __enter__(self) -> RegistryClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        content: bytes | Iterable[bytes] | None,
    ) -> httpx.Response:
        """Send a request; its answer, whose body is not read yet.

        Args:
            method: of HTTP.
            url: an address that the registry gave, or a path of it. The login goes to the registry
                itself only.
            headers: of the request.
            content: its body.

        Raises:
            CredentialsError: the token service refused the login.
            RegistryError: the address leads where nothing is reached for a build.
            httpx.HTTPError: the registry does not answer.
        """
        self._find()
        full = httpx.URL(self.base).join(url)
        sent = dict(headers)
        if urlsplit(str(full))[:2] == urlsplit(self.base)[:2] and self._authorization:
            sent["Authorization"] = self._authorization()
        request = self._http.build_request(method, full, headers=sent, content=content)
        # Without the login, to another host. No content of that comes back.
        return self._http.send(request, stream=True, follow_redirects=method == "HEAD")

    def digest_of(self, tag: str) -> str:
        """Return the digest of what the registry sends as a tag; empty if there is none.

        Raises:
            CredentialsError: the token service refused the login.
            RegistryError: the registry refuses, or the address leads where nothing is reached.
            httpx.HTTPError: the registry does not answer.
        """
        self._find()
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        if self._authorization:
            headers["Authorization"] = self._authorization()
        url = f"{self.base}/v2/{self._repository}/manifests/{tag}"
        request = self._http.build_request("GET", url, headers=headers)
        answer = self._http.send(request, stream=True, follow_redirects=True)
        answer = read_bounded(answer, _LARGEST_MANIFEST)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return ""
        if not answer.is_success:
            raise RegistryError(f"HTTP {answer.status_code}")
        return sha256(answer.content)

    def _find(self) -> None:
        """Find out whether the registry speaks TLS, and which login it wants."""
        with self._lock:
            if self.base:
                return
            base = f"https://{self._place.host}"
            try:
                answer = self._request("GET", f"{base}/v2/")
            except httpx.TransportError:
                if not self._is_insecure:
                    raise
                base = f"http://{self._place.host}"
                answer = self._request("GET", f"{base}/v2/")
            self._authorization = self._way(answer.headers.get_list("WWW-Authenticate"))
            self.base = base

    def _request(
        self, method: str, url: str, *, auth: tuple[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        request = self._http.build_request(method, url, **more)
        return read_bounded(self._http.send(request, stream=True, auth=auth), _LARGEST_BYTES)

    def _way(self, challenges: list[str]) -> Callable[[], str] | None:
        for challenge in challenges:
            scheme, _, rest = challenge.partition(" ")
            if scheme.lower() == "bearer":
                wanted = {name.lower(): value for name, value in _PARAMETER.findall(rest)}
                return lambda: f"Bearer {self._fresh_token(wanted)}"
            if scheme.lower() == "basic" and self._login is not None:
                pair = httpx.BasicAuth(self._login.username, self._login.password)
                value = next(pair.auth_flow(httpx.Request("GET", "http://none"))).headers
                return lambda: value["Authorization"]
        return None

    def _fresh_token(self, wanted: Mapping[str, str]) -> str:
        with self._lock:
            if time.monotonic() > self._token_until:
                found = self._request_token(wanted)
                self._token = found.token or found.access_token
                self._token_until = time.monotonic() + _FRESH * max(found.expires_in, _TOKEN_S)
            return self._token

    def _request_token(self, wanted: Mapping[str, str]) -> _Token:
        realm = wanted.get("realm", "")
        actions = "pull,push" if self._login else "pull"
        scope = {
            "service": wanted.get("service", ""),
            "scope": f"repository:{self._repository}:{actions}",
        }
        if urlsplit(realm).scheme != "https" and not self._is_insecure:
            raise CredentialsError(f"{self._place.registry} wants the login sent to {realm!r}")
        if self._login is None:
            answer = self._request("GET", realm, params=scope)
        elif self._login.identity_token:
            grant = {
                "grant_type": "refresh_token",
                "refresh_token": self._login.identity_token,
                "client_id": _CLIENT,
            }
            answer = self._request("POST", realm, data={**scope, **grant})
        else:
            login = (self._login.username, self._login.password)
            answer = self._request("GET", realm, params=scope, auth=login)
        if answer.status_code == 200:
            with suppress(msgspec.DecodeError, RecursionError):
                return msgspec.json.decode(answer.content, type=_Token)
        raise CredentialsError(
            f"the token service of {self._place.registry} refused the login: HTTP "
            f"{answer.status_code}"
        )


def _is_insecure(place: RegistryPlace, addresses_of: Callable[[str], Sequence[str]]) -> bool:
    """Whether a registry needs no TLS: by its name, or as one of its addresses is in a network.

    Source: Docker, "insecure-registries".
    """
    if place.registry in place.insecure:
        return True
    networks = []
    for one in place.insecure:
        with suppress(ValueError):
            networks.append(ip_network(one))
    host = host_of(place.host).strip("[]").lower()
    try:
        found = [address_of(one) for one in addresses_of(host)]
    except (OSError, UnicodeError):
        return False
    return any(one in network for one in found if one for network in networks)


def _tls(place: RegistryPlace, *, insecure: bool) -> ssl.SSLContext:
    """Trust as the engine does: the system's authorities, and those of the registry's folder."""
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    folder = os.path.join(_CERTIFICATES, place.registry)
    for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        stem, ending = os.path.splitext(path)
        if ending == ".crt":
            context.load_verify_locations(path)
        elif ending == ".cert" and os.path.isfile(f"{stem}.key"):
            context.load_cert_chain(path, f"{stem}.key")
    return context


def _proxies(place: RegistryPlace) -> dict[str, str]:
    """The engine's proxies, by scheme."""
    known = {}
    for variable in place.proxies:
        name, _, value = variable.partition("=")
        known[name.lower().removesuffix("_proxy")] = value
    return known
