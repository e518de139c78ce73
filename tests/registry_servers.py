"""Registries as tests need them: over TLS with an authority of their own, and with faults."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Registry, program, started_when, stop

USER = "someone"
PASSWORD = "s3cret-of-tests"
HTPASSWD = f"{USER}:$2b$04$wIkkiaDGm0KdXpqWN0CFlOtdEmeHs5HmifpNkLYCgDR4XnMqjVq.u\n"
CERTS_FOLDER = Path("/etc/docker/certs.d")
CUT = -1
"""In place of a status: close the connection after the first part of the body."""


_ERRORS = {
    401: ("UNAUTHORIZED", "authentication required"),
    403: ("DENIED", "requested access to the resource is denied"),
    429: ("TOOMANYREQUESTS", "too many requests"),
}


class Fault:
    """What a `FaultyProxy` does to requests.

    Args:
        method: of the requests that fail; several are separated by ``|``.
        part: what must be in their path.
        status: what they are answered with, or `CUT`.
        times: how many fail; the others get through.
        message: what the answer says; by default what registries say with that status.
    """

    def __init__(
        self, method: str, part: str, status: int, times: int = 1, message: str = ""
    ) -> None:
        self.method = method
        self.part = part
        self.status = status
        self.left = times
        self.message = message or _ERRORS.get(status, ("", ""))[1]
        self.hits = 0
        self._lock = threading.Lock()

    def strikes(self, method: str, path: str) -> bool:
        """Whether this request fails; counts it."""
        with self._lock:
            if method not in self.method.split("|") or self.part not in path:
                return False
            self.hits += 1
            self.left -= 1
            return self.left >= 0


def _handler(target: str, fault: Fault) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _forward(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if fault.strikes(self.command, self.path):
                self._fail(length)
                return
            body = _body(self, length)
            connection = http.client.HTTPConnection(target, timeout=60)
            headers = {
                name: ", ".join(self.headers.get_all(name) or ())
                for name in set(map(str.lower, self.headers)) - {"transfer-encoding"}
            }
            if body:
                headers["Content-Length"] = str(len(body))
            with contextlib.closing(connection):
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "date", "server"):
                    self.send_header(name, value)
            size = answer.getheader("Content-Length") if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(size or 0))
            self.end_headers()
            self.wfile.write(content)

        def _fail(self, length: int) -> None:
            self.close_connection = True
            if fault.status == CUT:
                self.rfile.read(min(length, 1000) or 1)
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            _body(self, length)
            code = _ERRORS.get(fault.status, ("", ""))[0]
            text = f'{{"errors":[{{"code":"{code}","message":"{fault.message}"}}]}}' if code else ""
            self.send_response(fault.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _forward  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _body(handler: BaseHTTPRequestHandler, length: int) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(length)
    body = b""
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    handler.rfile.readline()
    return body


@contextlib.contextmanager
def faulty_proxy(target: str, fault: Fault) -> Iterator[str]:
    """A proxy in front of a registry; its ``127.0.0.1:PORT``."""
    with _serving(_handler(target, fault)) as address:
        yield address


@contextlib.contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _with_referrers(target: str, page: int, circle: bool) -> type[BaseHTTPRequestHandler]:
    """A registry's handler with the referrers API of OCI 1.1, which Debian's registry lacks."""
    found: dict[str, list[dict[str, object]]] = {}
    forwarding: Any = _handler(target, Fault("NONE", "", 0))

    class Handler(forwarding):
        _subject = ""

        def do_PUT(self) -> None:  # noqa: N802
            if "/manifests/" in self.path:
                body = _body(self, int(self.headers["Content-Length"]))
                self.rfile = io.BytesIO(body)
                self._note(body)
            self._forward()

        def _note(self, body: bytes) -> None:
            manifest = json.loads(body)
            self._subject = manifest.get("subject", {}).get("digest", "")
            if self._subject:
                entry = {
                    "mediaType": manifest["mediaType"],
                    "digest": f"sha256:{hashlib.sha256(body).hexdigest()}",
                    "size": len(body),
                    "artifactType": manifest["artifactType"],
                    "annotations": manifest.get("annotations", {}),
                }
                found.setdefault(self._subject, []).append(entry)

        def end_headers(self) -> None:
            if self._subject:
                self.send_header("OCI-Subject", self._subject)
                self.close_connection = True  # the input stream was replaced
            super().end_headers()

        def do_GET(self) -> None:  # noqa: N802
            if "/referrers/" not in self.path:
                self._forward()
                return
            path, _, query = self.path.partition("?")
            first = int(query.removeprefix("last=") or 0)
            manifests = found.get(path.rpartition("/")[2], [])
            some = manifests[first : first + page]
            body = json.dumps({"schemaVersion": 2, "manifests": some}).encode()
            self.send_response(200)
            if circle or first + page < len(manifests):
                following = 0 if circle else first + page
                self.send_header("Link", f'<{path}?last={following}>; rel="next"')
            self.send_header("Content-Type", "application/vnd.oci.image.index.v1+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextlib.contextmanager
def referrers_proxy(target: str, page: int = 100, *, circle: bool = False) -> Iterator[str]:
    """A real registry with the referrers API in front of it; its ``127.0.0.1:PORT``.

    Args:
        target: the registry.
        page: how many referrers are on a page.
        circle: each page leads to the first one.
    """
    with _serving(_with_referrers(target, page, circle)) as address:
        yield address


@contextlib.contextmanager
def registry_that_answers(status: int, body: bytes = b"") -> Iterator[str]:
    """A registry with one answer, which leads to the same address; its ``127.0.0.1:PORT``."""

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            self.send_response(200 if self.path == "/v2/" else status)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_POST = do_PUT = _any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with _serving(Handler) as address:
        yield address


def outward_address() -> str:
    """An address of this machine that is not a loopback one: Docker insists on TLS there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return str(probe.getsockname()[0])


def make_certificate(folder: Path, address: str) -> None:
    """An authority (ca.crt) and a server certificate for ``address`` (server.crt, server.key)."""
    openssl = program("openssl", "openssl")

    def run(command: str, *more: str) -> None:
        argv = [openssl, *command.split(), *more]
        subprocess.run(argv, check=True, capture_output=True, cwd=folder)

    authority = ("-subj", "/CN=tests of buildrunner")
    run("req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.crt", *authority)
    subject = ("-subj", f"/CN={address}")
    run("req -newkey rsa:2048 -nodes -keyout server.key -out server.csr", *subject)
    (folder / "names").write_text(f"subjectAltName=IP:{address}\n")
    signed = ("-out", "server.crt", "-extfile", "names")
    run("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2", *signed)


@contextlib.contextmanager
def tls_registry(root: Path) -> Iterator[Registry]:
    """A registry over TLS with a login, whose certificate no one knows yet."""
    address = outward_address()
    make_certificate(root, address)
    (root / "htpasswd").write_text(HTPASSWD)
    (root / "config.yml").write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {root}/data}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{address}:0', "
        f"tls: {{certificate: {root}/server.crt, key: {root}/server.key}}}}\n"
        f"auth: {{htpasswd: {{realm: tests, path: {root}/htpasswd}}}}\n"
    )
    process = subprocess.Popen(
        [program("docker-registry", "docker-registry"), "serve", str(root / "config.yml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
    )
    line = started_when(process, b"listening on").decode()
    port = line.split(f"{address}:")[1].split('"')[0].split(",")[0].split()[0]
    try:
        yield Registry(f"{address}:{port}", process, root)
    finally:
        stop(process)


def trusted(registry: Registry) -> contextlib.AbstractContextManager[None]:
    """The engine trusts the registry's authority. Needs root, as Docker's folder is root's."""
    return trusted_at(registry.address, registry.root / "ca.crt")


@contextlib.contextmanager
def trusted_at(address: str, authority: Path) -> Iterator[None]:
    """The engine trusts an authority for the registry at ``host:port``. Needs root."""
    folder = CERTS_FOLDER / address
    try:
        folder.mkdir(parents=True)
    except PermissionError:
        pytest.fail(f"only root can make {folder}, which tells Docker whom to trust")
    shutil.copy(authority, folder / "ca.crt")
    try:
        yield
    finally:
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # others have theirs in it
            CERTS_FOLDER.rmdir()


def helper_program(folder: Path, name: str, answers: dict[str, tuple[str, str]]) -> Path:
    """A credential helper ``docker-credential-NAME`` in ``folder``, for these registries."""
    path = folder / f"docker-credential-{name}"
    cases = "".join(
        f'{host}) echo \'{{"ServerURL":"{host}","Username":"{user}","Secret":"{word}"}}\';;\n'
        for host, (user, word) in answers.items()
    )
    path.write_text(
        f'#!/bin/sh\n[ "$1" = get ] || exit 1\nread -r host\ncase "$host" in\n{cases}'
        "*) echo 'credentials not found in native keychain'; exit 1;;\nesac\n"
    )
    path.chmod(0o755)
    return path
