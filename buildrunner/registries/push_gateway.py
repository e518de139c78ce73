"""A registry of one image, through which a build's own engine pushes it without a login.

The engine in a nested sandbox is in the hands of the build's steps. A login for a registry does not
go there. Instead, that engine pushes to a port of its loopback address. This process passes those
requests on with the login, as far as they belong to the push of that one image. See ADR 0035.
"""

from __future__ import annotations

import http.server
import io
import re
import secrets
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit

import httpx
import msgspec

from buildrunner.errors import CredentialsError, RegistryError
from buildrunner.registries.distribution import sha256
from buildrunner.registries.registry_client import RegistryClient
from buildrunner.spec.validation.references import attachment_refusal

_DIGEST = r"[a-z0-9+._-]+:[0-9a-fA-F]{32,}"
_BLOB = re.compile(rf"blobs/{_DIGEST}")
_MANIFEST = re.compile(rf"manifests/([A-Za-z0-9_][A-Za-z0-9._-]*|{_DIGEST})")
_UPLOAD = re.compile(r"blobs/uploads/([0-9a-f]{32})")
_SENT = ("Accept", "Content-Range", "Content-Type")
_RETURNED = (
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
_ANSWER_BYTES = 4 << 20  # manifests and errors: registries take no larger manifest
_IDLE_S = 300.0
_MOST_CONNECTIONS = 16  # an engine sends 5 layers at a time
_MOST_UPLOADS = 256
_LOCATION = 4 << 10


class Refused(Exception):
    """An answer of our own."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class PushGateway:
    """Serves a push until it is closed. A context manager.

    Args:
        listener: where the build's engine connects to. Closed with the gateway.
        client: the registry. Not closed.
        repository: the only repository that is pushed to.
        tag: the only tag that is set there.
    """

    def __init__(
        self, listener: socket.socket, client: RegistryClient, repository: str, tag: str
    ) -> None:
        self.client = client
        self.repository = repository
        self.tag = tag
        self.digest = ""
        """The digest of the manifest that the registry took as the tag; empty before."""
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
        """The registry's address for a request.

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

    def _is_manifest(self, inner: str) -> bool:
        """Whether it is the manifest of the tag, or has no tag.

        Raises:
            Refused: the tag is where attestations of another image are.
        """
        found = _MANIFEST.fullmatch(inner)
        if found and (refusal := attachment_refusal(found[1])):
            raise Refused(403, "DENIED", refusal)
        return found is not None and (found[1] == self.tag or ":" in found[1])

    def location(self, url: str) -> str:
        """Our own address for the upload at an address of the registry.

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
    """``url`` with the digest that ``query`` names: all that ends an upload says."""
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
        """Handle a connection in a thread; those beyond the limit are closed."""
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
        """Say nothing: the engine's push reports what went wrong."""


class _Received(io.BufferedReader):
    """The bytes that a connection sends.

    Attributes:
        lines_left: how many bytes of lines may come: more end the connection.
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
        """Limit the heads of requests, of which `http.server` takes 6 MiB."""
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
        headers = {
            name: ", ".join(values) for name in _SENT if (values := self.headers.get_all(name))
        }
        length = self.headers.get("Content-Length")
        pieces = self._body(length)
        content: bytes | Iterator[bytes] | None = pieces
        digest = ""
        if self.command == "PUT" and "/manifests/" in target:
            content = _manifest(pieces or ())
            length = str(len(content))
            digest = sha256(content)
        if content is not None and length is not None:
            headers["Content-Length"] = length
        elif content is None and self.command in ("POST", "PUT", "PATCH"):
            headers["Content-Length"] = "0"
        try:
            answer = self.server.gateway.client.send(self.command, target, headers, content)
            try:
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
        self._return(answer, body, digest)

    def _return(self, answer: httpx.Response, body: bytes, digest: str) -> None:
        gateway = self.server.gateway
        headers = {name: value for name in _RETURNED if (value := answer.headers.get(name))}
        if (location := answer.headers.get("Location")) and self.command != "HEAD":
            headers["Location"] = gateway.location(urljoin(str(answer.url), location))
        is_tag = urlsplit(self.path).path.endswith(f"/manifests/{gateway.tag}")
        if is_tag and self.command == "PUT" and answer.is_success:
            is_kept = headers.get("Docker-Content-Digest", digest) == digest
            gateway.digest = digest if is_kept else ""
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
        """The engine's push reports what went wrong."""


def _manifest(pieces: Iterable[bytes]) -> bytes:
    """Read a manifest.

    Raises:
        Refused: it is none, or it would be attached to another image of the repository, as
            signatures and attestations are.
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
    # Registries in Go read the names of fields without regard to case.
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
