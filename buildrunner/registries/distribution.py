"""A client of OCI registries: manifests, blobs and referrers of one repository.

Source: the OCI distribution specification 1.1, and Docker's token authentication for registries.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies

import httpx
import msgspec

from buildrunner.addresses import Egress
from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.deadline import Deadline
from buildrunner.errors import RegistryError
from buildrunner.registries.registry_transport import (
    RegistryToken,
    RegistryTransport,
    is_loopback,
    read_bounded,
    registry_tls,
    token_request,
)

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
MANIFEST_TYPES: Final = (
    MANIFEST,
    INDEX,
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)

_HUB = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_TRIES = 3
_LARGEST_BYTES = 32 << 20
_MOST_PAGES = 1_000  # pages of referrers: a registry has 50 or more on a page


class Manifest(msgspec.Struct, frozen=True):
    """A manifest as a registry has it.

    Attributes:
        digest: SHA-256 of ``body``, with its ``sha256:``.
        media_type: its media type.
        body: the bytes that the digest is about.
    """

    digest: str
    media_type: str
    body: bytes


class Repository:
    """One repository of a registry. Use it in a ``with`` statement, by one thread at a time.

    Args:
        image: an image of the repository; its tag and digest don't matter.
        login: the login; None for requests without a login.
        egress: networks that builds do not reach: see `RegistryTransport`.
        deadline: ends all reads and writes; None: each has its own timeout.
    """

    def __init__(
        self,
        image: ImageName,
        login: RegistryLogin | None = None,
        egress: Egress | None = None,
        *,
        deadline: Deadline | None = None,
    ) -> None:
        self._login = login
        host = _HUB.get(image.registry, image.registry)
        path = image.repository.removeprefix(f"{image.registry}/")
        if host in _HUB.values() and "/" not in path:
            path = f"library/{path}"
        self.name = f"{image.registry}/{path}"
        self._host = host
        self._path = path
        self._authorization = ""
        self._http = httpx.Client(
            transport=RegistryTransport(
                host, registry_tls(host), egress=egress, proxies=getproxies(), deadline=deadline
            ),
            timeout=_TIMEOUT,
            trust_env=False,
            headers={"Accept-Encoding": "identity"},
        )
        self._base = ""

    def __enter__(self) -> Repository:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def manifest(self, reference: str) -> Manifest | None:
        """Return the manifest of a tag or a digest; None if there is none.

        Raises:
            RegistryError: the registry refuses, breaks, or sends another manifest than requested.
        """
        accept = ", ".join(MANIFEST_TYPES)
        response = self._send("GET", f"manifests/{reference}", headers={"Accept": accept})
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        self._check(response)
        digest = sha256(response.content)
        if reference.startswith("sha256:") and digest != reference:
            raise RegistryError(f"{self.name}@{reference}: the registry sent another manifest")
        return Manifest(digest, response.headers.get("Content-Type", MANIFEST), response.content)

    def put_manifest(self, reference: str, body: bytes, media_type: str) -> str:
        """Store a manifest under a tag or its digest.

        Returns:
            The digest of the subject, if the registry keeps its list of referrers by itself.

        Raises:
            RegistryError: the registry does not accept the manifest.
        """
        response = self._send(
            "PUT", f"manifests/{reference}", content=body, headers={"Content-Type": media_type}
        )
        self._check(response)
        return str(response.headers.get("OCI-Subject", ""))

    def blob(self, digest: str, most_bytes: int = _LARGEST_BYTES) -> bytes:
        """Return a small blob.

        Raises:
            RegistryError: the blob is missing, too large, or does not match its digest.
        """
        read = partial(read_bounded, most_bytes=most_bytes)
        response = self._send("GET", f"blobs/{digest}", read=read)
        self._check(response)
        if sha256(response.content) != digest:
            raise RegistryError(f"{self.name}@{digest}: the registry sent another blob")
        return response.content

    def save_blob(self, digest: str, path: str, most_bytes: int) -> int:
        """Write a blob to a file; return its size.

        Raises:
            RegistryError: the blob is missing, too large, or does not match its digest.
        """
        found = ""

        def save(response: httpx.Response) -> httpx.Response:
            nonlocal found
            hashed = hashlib.sha256()
            if response.status_code != httpx.codes.OK:
                return read_bounded(response, _LARGEST_BYTES)
            with contextlib.closing(response), open(path, "wb") as file:
                for piece in response.iter_raw():
                    hashed.update(piece)
                    if file.tell() + len(piece) > most_bytes:
                        raise RegistryError(
                            f"{self.name}@{digest} is larger than {most_bytes:,} bytes"
                        )
                    file.write(piece)
            found = f"sha256:{hashed.hexdigest()}"
            return httpx.Response(httpx.codes.OK)

        self._check(self._send("GET", f"blobs/{digest}", read=save))
        if found != digest:
            raise RegistryError(f"{self.name}@{digest}: the registry sent another blob")
        return os.path.getsize(path)

    def put_blob(self, data: bytes) -> str:
        """Store a blob unless the registry has it; return its digest.

        Raises:
            RegistryError: the registry does not accept the blob.
        """
        digest = sha256(data)
        if self._send("HEAD", f"blobs/{digest}").is_success:
            return digest
        begun = self._send("POST", "blobs/uploads/")
        self._check(begun)
        place = urljoin(str(begun.url), begun.headers.get("Location", ""))
        place += ("&" if urlsplit(place).query else "?") + f"digest={digest}"
        headers = {"Content-Type": "application/octet-stream"}
        self._check(self._send("PUT", place, content=data, headers=headers))
        return digest

    def referrers(self, digest: str) -> Iterator[dict[str, Any]]:
        """Yield the descriptors of the manifests whose subject is ``digest``, page by page.

        A registry without the referrers API has them in an index under a tag.

        Raises:
            RegistryError: the registry refuses or breaks, or its pages do not end.
        """
        place = f"referrers/{digest}"
        for page in range(_MOST_PAGES):
            response = self._send("GET", place, headers={"Accept": INDEX})
            if response.status_code == httpx.codes.NOT_FOUND and not page:
                found = self.manifest(referrers_tag(digest))
                yield from _descriptors(found.body) if found else ()
                return
            self._check(response)
            yield from _descriptors(response.content)
            following = response.links.get("next", {}).get("url", "")
            if not following:
                return
            place = urljoin(str(response.url), following)
        raise RegistryError(
            f"{self.name}@{digest} has more than {_MOST_PAGES:,} pages of referrers"
        )

    # -- requests --------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        place: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        read: Callable[[httpx.Response], httpx.Response] | None = None,
    ) -> httpx.Response:
        """Send a request, with a login once the registry demands one."""
        url = place if "://" in place else f"{self._address()}/v2/{self._path}/{place}"
        more = {"content": content, "headers": dict(headers or {}), "read": read}
        response = self._tried(method, url, more)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            self._authorization = self._authorized(response)
            if self._authorization:
                response = self._tried(method, url, more)
        return response

    def _tried(self, method: str, url: str, more: dict[str, Any]) -> httpx.Response:
        """Send a request, up to three times if the registry does not answer or breaks."""
        if self._authorization and urlsplit(url)[:2] == urlsplit(self._base)[:2]:
            more["headers"]["Authorization"] = self._authorization
        for attempt in range(_TRIES):
            try:
                response = self._request(method, url, follow=method in ("GET", "HEAD"), **more)
            except (httpx.RequestError, httpx.InvalidURL, UnicodeError) as error:
                if attempt == _TRIES - 1:
                    reason = str(error) or type(error).__name__
                    raise RegistryError(
                        f"the registry {self._host} does not answer: {reason}"
                    ) from error
            else:
                if not response.is_server_error or attempt == _TRIES - 1:
                    return response
        raise AssertionError  # the last attempt returns or raises

    def _request(
        self,
        method: str,
        url: str,
        *,
        auth: tuple[str, str] | None = None,
        follow: bool = False,
        read: Callable[[httpx.Response], httpx.Response] | None = None,
        **more: Any,
    ) -> httpx.Response:
        """Send a request once. With ``follow``, follow redirects; another host gets no login."""
        request = self._http.build_request(method, url, **more)
        answer = self._http.send(request, stream=True, auth=auth, follow_redirects=follow)
        return read(answer) if read else read_bounded(answer, _LARGEST_BYTES)

    def _address(self) -> str:
        """Return the registry's address: https, or http if a loopback address offers only that."""
        if not self._base:
            self._base = f"https://{self._host}"
            if is_loopback(self._host):
                plain = f"http://{self._host}"
                try:
                    answer = self._request("HEAD", f"{plain}/v2/")
                except httpx.TransportError:
                    return self._base
                # 400 is the answer of a TLS server to plain http.
                if answer.status_code != httpx.codes.BAD_REQUEST:
                    self._base = plain
        return self._base

    def _authorized(self, response: httpx.Response) -> str:
        """Return the ``Authorization`` that answers a challenge; empty if there is no login."""
        challenge = response.headers.get("WWW-Authenticate", "")
        scheme = challenge.partition(" ")[0].lower()
        if scheme == "basic" and self._login:
            pair = httpx.BasicAuth(self._login.username, self._login.password)
            request = httpx.Request("GET", self._base)
            return str(next(pair.auth_flow(request)).headers["Authorization"])
        if scheme != "bearer":
            return ""
        return self._bearer(dict(_CHALLENGE.findall(challenge)))

    def _bearer(self, facts: dict[str, str]) -> str:
        realm = facts.get("realm", "")
        place = urlsplit(realm)
        here = urlsplit(self._base)
        if place.scheme != "https" and (here.scheme, here.hostname) != ("http", place.hostname):
            raise RegistryError(f"the registry {self._host} asks for a login at {realm}")
        requested: dict[str, str] = {
            name: value for name, value in facts.items() if name in ("service", "scope")
        }
        method, more = token_request(self._login, requested)
        try:
            answer = self._request(method, realm, **more)
            self._check(answer)
            found = msgspec.json.decode(answer.content, type=RegistryToken)
        except (httpx.RequestError, msgspec.DecodeError, RecursionError) as error:
            raise RegistryError(f"{realm} gives no token for {self.name}: {error}") from error
        return f"Bearer {found.value}"

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        refused = response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
        hint = f"log in: docker login {self._host}" if refused else ""
        raise RegistryError(
            f"the registry answers {response.status_code} for {self.name}{_reason(response)}",
            hint=hint,
        )


def sha256(data: bytes) -> str:
    """Return the digest of data, as registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def referrers_tag(digest: str) -> str:
    """Return the tag of the list of referrers, for a registry without the referrers API."""
    return digest.replace(":", "-")


def _descriptors(body: bytes) -> list[dict[str, Any]]:
    try:
        found = msgspec.json.decode(body, type=dict[str, Any]).get("manifests")
    except (msgspec.DecodeError, RecursionError):
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _reason(response: httpx.Response) -> str:
    try:
        errors = response.json()["errors"]
        text = errors[0].get("message") or errors[0].get("code")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return ""
    return f": {text}" if text else ""
