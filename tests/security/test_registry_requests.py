"""Attacks of a registry that a build names on the network of the process that asks it."""

from __future__ import annotations

import json
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from buildrunner.containers.image_name import ImageName
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.errors import RegistryError
from buildrunner.provenance.attachment import attach
from buildrunner.registries.distribution import Manifest, Repository
from tests.registry_servers import make_certificate, outward_address, trusted_at

DIGEST = f"sha256:{'1' * 64}"
PAYLOAD = b64encode(b'{"predicateType":"p"}').decode()
ENVELOPE = json.dumps({"payload": PAYLOAD, "signatures": [{"keyid": "k"}]}).encode()
LOGIN = RegistryLogin(username="me", password="pw")
REFRESH = RegistryLogin(identity_token="refresh-token")


class Server(ThreadingHTTPServer):
    """Notes requests, and answers them by ``answer(method, path, has_login)``."""

    daemon_threads = True

    def __init__(self, host: str, certificate: Path | None = None) -> None:
        super().__init__((host, 0), _Handler)
        self.requests: list[str] = []
        self.answer: Callable[[str, str, bool], tuple[int, dict[str, str]]] = lambda *_: (200, {})
        scheme = "http"
        if certificate is not None:
            scheme = "https"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate / "server.crt", certificate / "server.key")
            self.socket = context.wrap_socket(self.socket, server_side=True)
        self.address = f"{host}:{self.server_port}"
        self.url = f"{scheme}://{self.address}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        login = self.headers["Authorization"]
        self.server.requests.append(f"{self.command} {self.path} {login} {body.decode()}")
        status, headers = self.server.answer(self.command, self.path, login is not None)
        content = b'{"access_token": "stolen", "layers": []}'
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A hostile registry outside of the loopback address, and a service on it."""
    with ExitStack() as stack:
        address = outward_address()
        make_certificate(tmp_path, address)
        registry, internal = Server(address, tmp_path), Server("127.0.0.1")
        for server in (registry, internal):
            thread = threading.Thread(target=server.serve_forever, args=(0.02,))
            thread.start()
            stack.callback(server.server_close)
            stack.callback(thread.join)
            stack.callback(server.shutdown)
        stack.enter_context(trusted_at(registry.address, tmp_path / "ca.crt"))
        yield registry, internal


def attacked(registry: Server, login: RegistryLogin | None = None) -> None:
    """Attach an attestation as the process of a build does; it must fail."""
    name = ImageName.parse(f"{registry.address}/team/app@{DIGEST}")
    manifest = Manifest(DIGEST, "m", b"{}")
    with Repository(name, login) as repository, pytest.raises(RegistryError):
        attach(repository, manifest, ENVELOPE)


def test_no_upload_is_sent_to_a_service_of_the_machine(servers: tuple[Server, Server]) -> None:
    registry, internal = servers

    def answer(method: str, _path: str, _login: bool) -> tuple[int, dict[str, str]]:
        return (202, {"Location": f"{internal.url}/put"}) if method == "POST" else (404, {})

    registry.answer = answer
    attacked(registry)
    assert any(line.startswith("POST ") for line in registry.requests)
    assert internal.requests == []


@pytest.mark.parametrize("to", ["internal", "http://169.254.169.254/latest"])
def test_no_redirect_leads_to_a_service_of_the_machine(
    servers: tuple[Server, Server], to: str
) -> None:
    registry, internal = servers
    url = internal.url if to == "internal" else to
    registry.answer = lambda *_: (307, {"Location": f"{url}/json"})
    attacked(registry)
    name = ImageName.parse(f"{registry.address}/team/app@{DIGEST}")
    with Repository(name) as repository, pytest.raises(RegistryError, match="is not reached for"):
        repository.manifest(DIGEST)
    assert internal.requests == []


@pytest.mark.parametrize("login", [None, LOGIN, REFRESH])
def test_no_token_is_requested_of_a_service_of_the_machine(
    servers: tuple[Server, Server], login: RegistryLogin | None
) -> None:
    registry, internal = servers

    def answer(_method: str, path: str, has_login: bool) -> tuple[int, dict[str, str]]:
        if path.startswith("/realm"):
            return 307, {"Location": f"{internal.url}/token"}
        realm = f'Bearer realm="{registry.url}/realm",service="x"'
        return (200, {}) if has_login else (401, {"WWW-Authenticate": realm})

    registry.answer = answer
    attacked(registry, login)
    assert internal.requests == []
    assert not any("stolen" in line for line in registry.requests)


@pytest.mark.parametrize("login", [LOGIN, REFRESH])
def test_a_login_does_not_follow_the_redirect_of_a_token_service(
    servers: tuple[Server, Server], login: RegistryLogin, tmp_path: Path
) -> None:
    registry, _ = servers
    other = Server(outward_address(), tmp_path)
    thread = threading.Thread(target=other.serve_forever, args=(0.02,))
    thread.start()
    try:
        realm = f'Bearer realm="{registry.url}/realm",service="x"'
        registry.answer = lambda _method, path, _login: (
            (307, {"Location": f"{other.url}/token"})
            if path.startswith("/realm")
            else (401, {"WWW-Authenticate": realm})
        )
        attacked(registry, login)
    finally:
        other.shutdown()
        thread.join()
        other.server_close()
    assert other.requests == []
