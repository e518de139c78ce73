"""A registry of one image, through which a build's own engine pushes it without a login.

The build's steps control the engine in a nested sandbox, so that engine gets no login for a
registry. Instead, the engine pushes to a port of its loopback address (`PushGateway`). This process
forwards those requests with the login (`RegistryClient`), if they belong to the push of that one
image. See ADR 0035.

Source: the OCI distribution specification; Docker's token authentication specification.
"""

from __future__ import annotations

import http.server
import io
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import ip_network
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import httpx
import msgspec

from buildrunner.addresses import Egress, address_of, look_up
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.deadline import Deadline
from buildrunner.errors import CredentialsError, RegistryError
from buildrunner.registries.distribution import MANIFEST_TYPES, sha256
from buildrunner.registries.registry_transport import (
    LEAST_TOKEN_S,
    RegistryToken,
    RegistryTransport,
    host_of,
    read_bounded,
    registry_tls,
    token_request,
)
from buildrunner.spec.validation.references import attachment_refusal

_DOCKER_HUB = "registry-1.docker.io"
_CLIENT = "buildrunner"
_CONNECT_S = 30.0
_ANSWER_S = 300.0  # seconds: a registry may be slow to check a large layer
_LARGEST_MANIFEST = 4 << 20  # registries accept no larger manifest
_LARGEST_BYTES = 1 << 20  # of an answer with a token, or with a challenge
_FRESH = 0.7  # fraction of a token's lifetime after which another one is requested
_PARAMETER = re.compile(r'([a-zA-Z_]+)="([^"]*)"')


class RegistryPlace(msgspec.Struct, frozen=True, kw_only=True):
    """The way to reach a registry.

    Attributes:
        registry: host and port as in image names.
        insecure: registries without TLS, or with an unchecked certificate, in the form of the
            engine's setting: ``host:port``, or networks.
        proxies: the engine's proxy variables (``HTTPS_PROXY=...``).
    """

    registry: str
    insecure: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()

    @property
    def host(self) -> str:
        """Host and port to connect to."""
        return _DOCKER_HUB if self.registry == "docker.io" else self.registry


class RegistryClient:
    """Requests to one repository of a registry. Thread-safe; a context manager.

    Args:
        place: how the registry is reached.
        repository: name of the repository in the registry.
        login: the login; None for requests without one.
        egress: networks that builds do not reach: see `RegistryTransport`.
        addresses_of: looks up a name.
        deadline: see `RegistryTransport`.
        pulls_only: request only the right to pull from a token service.
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
        pulls_only: bool = False,
    ) -> None:
        self._actions = "pull,push" if login and not pulls_only else "pull"
        self._place = place
        # Looked up once: the address that permits plain http must be the one that is connected to.
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
                registry_tls(place.registry, insecure=self._is_insecure),
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
        """The address of the registry, set by the first request."""

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
        *,
        follow: bool = False,
    ) -> httpx.Response:
        """Send a request. Returns the answer, whose body is not read yet.

        Args:
            method: the HTTP method.
            url: an address from the registry, or a path on it. The login goes to the registry
                only.
            headers: headers of the request.
            content: body of the request.
            follow: follow redirects; another host gets no login.

        Raises:
            CredentialsError: the token service refused the login.
            RegistryError: builds may not reach the address.
            httpx.HTTPError: the registry does not answer.
        """
        self._find()
        full = httpx.URL(self.base).join(url)
        sent = dict(headers)
        if urlsplit(str(full))[:2] == urlsplit(self.base)[:2] and self._authorization:
            sent["Authorization"] = self._authorization()
        request = self._http.build_request(method, full, headers=sent, content=content)
        # A redirect to another host gets no login. The answer to HEAD has no content.
        return self._http.send(request, stream=True, follow_redirects=follow or method == "HEAD")

    def digest_of(self, tag: str) -> str:
        """Return the digest of the registry's manifest under a tag; empty if there is none.

        Raises:
            CredentialsError: the token service refused the login.
            RegistryError: the registry refuses, or builds may not reach the address.
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
        """Find out whether the registry has TLS, and which login it requests."""
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
                self._token = found.value
                self._token_until = time.monotonic() + _FRESH * max(found.expires_in, LEAST_TOKEN_S)
            return self._token

    def _request_token(self, wanted: Mapping[str, str]) -> RegistryToken:
        realm = wanted.get("realm", "")
        scope = {
            "service": wanted.get("service", ""),
            "scope": f"repository:{self._repository}:{self._actions}",
        }
        if urlsplit(realm).scheme != "https" and not self._is_insecure:
            raise CredentialsError(f"{self._place.registry} wants the login sent to {realm!r}")
        method, more = token_request(self._login, scope)
        answer = self._request(method, realm, **more)
        if answer.status_code == 200:
            with suppress(msgspec.DecodeError, RecursionError):
                return msgspec.json.decode(answer.content, type=RegistryToken)
        raise CredentialsError(
            f"the token service of {self._place.registry} refused the login: HTTP "
            f"{answer.status_code}"
        )


def _is_insecure(place: RegistryPlace, addresses_of: Callable[[str], Sequence[str]]) -> bool:
    """Return whether a registry needs no TLS, by its name, or by the network of an address.

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


def _proxies(place: RegistryPlace) -> dict[str, str]:
    """Return the engine's proxies, by scheme."""
    known = {}
    for variable in place.proxies:
        name, _, value = variable.partition("=")
        known[name.lower().removesuffix("_proxy")] = value
    return known


_DIGEST = r"[a-z0-9+._-]+:[0-9a-fA-F]{32,}"
_BLOB = re.compile(rf"blobs/{_DIGEST}")
_MANIFEST = re.compile(rf"manifests/([A-Za-z0-9_][A-Za-z0-9._-]*|{_DIGEST})")
_UPLOAD = re.compile(r"blobs/uploads/([0-9a-f]{32})")
_SENT = ("Accept", "Content-Range", "Content-Type")
_RETURNED: tuple[str, ...] = (
    "Content-Type",
    "Docker-Content-Digest",
    "Docker-Distribution-Api-Version",
    "Docker-Upload-UUID",
    "Range",
    "Retry-After",
)
_PIECE = 1 << 18
_LINE = 1 << 10
_HEAD_BYTES = 16 << 10
_ANSWER_BYTES = 4 << 20  # manifests and errors: registries accept no larger manifest
_IDLE_S = 300.0
_MOST_CONNECTIONS = 16  # an engine sends 5 layers at a time
_MOST_UPLOADS = 256
_LOCATION = 4 << 10


class Refused(Exception):
    """A refusal by the gateway itself."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class PushGateway:
    """Serves a push until it is closed. A context manager.

    Args:
        listener: accepts the connections of the build's engine. Closed with the gateway.
        client: the registry. Not closed.
        repository: the only repository that is pushed to.
        tag: the only tag that may be set.
    """

    sent: tuple[str, ...] = _SENT
    """Headers of requests that are forwarded to the registry."""
    returned: tuple[str, ...] = _RETURNED
    """Headers of answers that are forwarded to the engine."""
    sends_blobs = False
    """Whether blobs are forwarded to the engine, also from redirects."""

    def __init__(
        self, listener: socket.socket, client: RegistryClient, repository: str, tag: str
    ) -> None:
        self.client = client
        self.repository = repository
        self.tag = tag
        self.digest = ""
        """The digest of the manifest that the registry accepted under the tag; empty before."""
        self._uploads: dict[str, str] = {}
        self._server = _Server(listener, self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="push-gateway", daemon=True
        )

    def __enter__(self) -> PushGateway:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def target(self, method: str, path: str, query: str) -> str:
        """Return the registry's address for a request.

        A blob is never mounted from another repository: the build might not be allowed to read it.

        Raises:
            Refused: the request does not belong to the push.
        """
        inner = path.removeprefix(f"/v2/{self.repository}/")
        if inner != path:
            if method == "POST" and inner == "blobs/uploads/":
                return path
            if method == "HEAD" and _BLOB.fullmatch(inner):
                return path
            if method in ("GET", "HEAD", "PUT") and self._is_manifest(inner):
                return path
            upload = _UPLOAD.fullmatch(inner)
            if upload and method in ("GET", "PATCH", "PUT") and upload[1] in self._uploads:
                return _with_query(self._uploads[upload[1]], query)
        raise Refused(403, "DENIED", "this is not part of the push of the build's image")

    def note(self, method: str, path: str, answer: httpx.Response, digest: str) -> None:
        """Record the answer to a request.

        Args:
            method: the request's method.
            path: the request's path.
            answer: the registry's answer.
            digest: digest of the manifest that was sent to the registry, or by it.
        """
        is_tag = path.endswith(f"/manifests/{self.tag}")
        if is_tag and method == "PUT" and answer.is_success:
            is_kept = (answer.headers.get("Docker-Content-Digest") or digest) == digest
            self.digest = digest if is_kept else ""

    def _is_manifest(self, inner: str) -> bool:
        """Return whether a request is about the manifest of the tag, or one named by its digest.

        Raises:
            Refused: the tag has the form of a tag for attestations.
        """
        found = _MANIFEST.fullmatch(inner)
        if found and (refusal := attachment_refusal(found[1])):
            raise Refused(403, "DENIED", refusal)
        return found is not None and (found[1] == self.tag or ":" in found[1])

    def location(self, url: str) -> str:
        """Return the gateway's address for an upload at an address of the registry.

        Raises:
            Refused: the registry's address is too long.
        """
        if len(url) > _LOCATION:
            raise Refused(502, "UNKNOWN", "the registry's address for the upload is too long")
        if len(self._uploads) >= _MOST_UPLOADS:
            self._uploads.pop(next(iter(self._uploads)))
        name = secrets.token_hex(16)
        self._uploads[name] = url
        return f"/v2/{self.repository}/blobs/uploads/{name}"


def _with_query(url: str, query: str) -> str:
    """Return ``url`` with the digest in ``query``, the only parameter that ends an upload."""
    digest = [(key, value) for key, value in parse_qsl(query) if key == "digest"]
    if not digest:
        return url
    parts = urlsplit(url)
    return parts._replace(query=urlencode([*parse_qsl(parts.query), *digest])).geturl()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, gateway: PushGateway) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.gateway = gateway
        self._free = threading.Semaphore(_MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread. Connections beyond the limit are closed."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """See `http.server.ThreadingHTTPServer`."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = self.socket.accept()
        return connection, ("sandbox", 0)

    def handle_error(self, *_: object) -> None:
        """Log nothing: the engine's push reports the error."""


class _Received(io.BufferedReader):
    """The bytes that a connection receives.

    Attributes:
        lines_left: the number of bytes that lines may still have; more bytes end the connection.
    """

    lines_left = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        """See `io.BufferedReader.readline`."""
        most = self.lines_left + 1
        line = super().readline(most if size is None or size < 0 else min(size, most))
        self.lines_left -= len(line)
        if self.lines_left < 0:
            raise ConnectionResetError
        return line


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    server: _Server

    def setup(self) -> None:
        """Limit the heads of requests, of which `http.server` accepts 6 MiB."""
        super().setup()
        self.rfile.close()
        self.rfile = self._received = _Received(self.connection.makefile("rb", buffering=0))

    def handle_one_request(self) -> None:
        """See `http.server.BaseHTTPRequestHandler`."""
        self._received.lines_left = _HEAD_BYTES
        super().handle_one_request()

    def _pass_on(self) -> None:
        gateway = self.server.gateway
        path, _, query = self.path.partition("?")
        if path == "/v2/" and self.command == "GET":
            self._answer(200, {"Docker-Distribution-Api-Version": "registry/2.0"}, b"{}")
            return
        try:
            self._send_to(gateway.target(self.command, path, query))
        except Refused as refused:
            error = {"code": refused.code, "message": str(refused)}
            self.close_connection = True  # the body of the request may be unread
            content = msgspec.json.encode({"errors": [error]})
            self._answer(refused.status, {"Content-Type": "application/json"}, content)

    def _send_to(self, target: str) -> None:
        gateway = self.server.gateway
        kind = urlsplit(target).path.rpartition("/")[0].rpartition("/")[2]
        headers = {
            name: ", ".join(values)
            for name in gateway.sent
            if (values := self.headers.get_all(name)) and (name != "Range" or kind == "blobs")
        }
        length = self.headers.get("Content-Length")
        pieces = self._body(length)
        content: bytes | Iterator[bytes] | None = pieces
        digest = ""
        if self.command == "PUT" and kind == "manifests":
            content = _manifest(pieces or ())
            length = str(len(content))
            digest = sha256(content)
        if content is not None and length is not None:
            headers["Content-Length"] = length
        elif content is None and self.command in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = "0"
        try:
            answer = gateway.client.send(
                self.command, target, headers, content, follow=gateway.sends_blobs
            )
            try:
                is_blob = self.command == "GET" and kind == "blobs"
                if gateway.sends_blobs and is_blob and answer.is_success:
                    self._send_blob(answer)
                    return
                body = _bounded(answer)
            finally:
                answer.close()
        except CredentialsError as error:
            raise Refused(401, "UNAUTHORIZED", str(error)) from error
        except RegistryError as error:
            raise Refused(403, "DENIED", str(error)) from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Refused(503, "UNAVAILABLE", f"the registry can't be reached: {reason}") from error
        self._return(answer, body, digest or sha256(body))

    def _returned(self, answer: httpx.Response) -> dict[str, str]:
        names = self.server.gateway.returned
        return {name: value for name in names if (value := answer.headers.get(name))}

    def _send_blob(self, answer: httpx.Response) -> None:
        """Forward a blob while it arrives. A truncated blob ends the connection."""
        self.close_connection = True
        self.send_response_only(answer.status_code)
        for name, value in self._returned(answer).items():
            self.send_header(name, value)
        if size := answer.headers.get("Content-Length"):
            self.send_header("Content-Length", size)
        self.send_header("Connection", "close")
        self.end_headers()
        with suppress(httpx.HTTPError, RegistryError):
            for piece in answer.iter_raw(_PIECE):
                self.wfile.write(piece)

    def _return(self, answer: httpx.Response, body: bytes, digest: str) -> None:
        gateway = self.server.gateway
        headers = self._returned(answer)
        if (location := answer.headers.get("Location")) and self.command != "HEAD":
            headers["Location"] = gateway.location(urljoin(str(answer.url), location))
        gateway.note(self.command, urlsplit(self.path).path, answer, digest)
        size = answer.headers.get("Content-Length") if self.command == "HEAD" else None
        self._answer(answer.status_code, headers, body, size)

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, size: str | None = None
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", size or str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self, length: str | None) -> Iterator[bytes] | None:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            return self._chunks()
        if length is None or not length.isascii() or not length.isdigit() or int(length) == 0:
            return None
        return self._exactly(int(length))

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self.rfile.read(min(size, _PIECE))
            if not piece:
                raise ConnectionResetError
            size -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while True:
            self._received.lines_left = 2 * _LINE
            line = self.rfile.readline(_LINE).partition(b";")[0].strip()
            if not re.fullmatch(rb"[0-9a-fA-F]{1,15}", line):
                raise ConnectionResetError
            size = int(line, 16)
            if not size:
                break
            yield from self._exactly(size)
            if self.rfile.readline(_LINE).strip():
                raise ConnectionResetError
        while self.rfile.readline(_LINE).strip():
            pass  # trailers

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Log nothing: the engine's push reports the error."""


def _manifest(pieces: Iterable[bytes]) -> bytes:
    """Read a manifest.

    Raises:
        Refused: the manifest is invalid or too large, or would be attached to another image of the
            repository, as signatures and attestations are.
    """
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > _ANSWER_BYTES:
            raise Refused(413, "MANIFEST_INVALID", "the manifest is too large")
    try:
        fields = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Refused(400, "MANIFEST_INVALID", "the manifest is no JSON object") from error
    # Registries in Go ignore the case of field names.
    if any(name.casefold() == "subject" for name in fields):
        raise Refused(403, "DENIED", "a push attaches nothing to other images")
    return bytes(content)


def _bounded(answer: httpx.Response) -> bytes:
    body = bytearray()
    for piece in answer.iter_raw():
        body += piece
        if len(body) > _ANSWER_BYTES:
            raise Refused(502, "UNKNOWN", "the registry's answer is too large")
    return bytes(body)
