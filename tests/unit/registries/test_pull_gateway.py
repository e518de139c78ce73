"""Requests that pass the gateway of a pull, and the headers that go with them."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from buildrunner.containers.protocol import RegistryLogin
from buildrunner.registries.pull_gateway import PullGateway
from buildrunner.registries.push_gateway import Refused, RegistryClient, RegistryPlace
from tests.unit.registries.test_push_gateway import BASIC, DIGEST, Caller, served

LAYER = bytes(range(256)) * 5000
MANIFEST = json.dumps({"layers": [DIGEST]}).encode()


class Registry(ThreadingHTTPServer):
    """A registry that keeps its layers elsewhere.

    Attributes:
        seen: method, path and login of each request.
        broken: layers end too early.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self.server_port}"
        self.seen: list[tuple[str, str, str | None]] = []
        self.storage = ""
        self.broken = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def _any(self) -> None:
        registry = self.server
        login = self.headers["Authorization"]
        if self.path == "/v2/":
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic realm=tests")
            self.end_headers()
            return
        registry.seen.append((self.command, self.path, login))
        if "/blobs/" in self.path:
            self.send_response(307)
            self.send_header("Location", f"http://{registry.storage}/layer")
            self.end_headers()
            return
        content, status = MANIFEST, 200
        if self.path == "/layer" or self.headers["Range"]:
            content = LAYER if self.path == "/layer" else MANIFEST
            begin = int((self.headers["Range"] or "bytes=0-")[6:-1])
            content, status = content[begin:], 206 if begin else 200
        self.send_response(status)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.send_header("Docker-Content-Digest", digest)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:1000] if registry.broken.is_set() else content)

    do_GET = do_HEAD = do_PUT = do_POST = _any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Registry]:
    made, storage = Registry(), Registry()
    made.storage = storage.address
    made.seen, made.broken = storage.seen, storage.broken
    with served(made), served(storage):
        yield made


@pytest.fixture
def caller(tmp_path: Path, registry: Registry) -> Iterator[tuple[Caller, PullGateway]]:
    path = str(tmp_path / "push.sock")
    place = RegistryPlace(registry=registry.address, insecure=("127.0.0.0/8",))
    login = RegistryLogin(username="me", password="pw")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with (
            RegistryClient(place, "team/app", login, pulls_only=True) as client,
            PullGateway(listener, client, "team/app", "one") as gateway,
        ):
            yield Caller(path), gateway


def test_a_manifest_comes_with_the_login_and_tells_the_digest(
    registry: Registry, caller: tuple[Caller, PullGateway]
) -> None:
    engine, gateway = caller
    status, headers, body = engine.send("GET", "/v2/team/app/manifests/one")
    assert (status, body) == (200, MANIFEST)
    assert gateway.digest == f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
    assert registry.seen == [("GET", "/v2/team/app/manifests/one", BASIC)]
    assert "Authorization" not in headers


def test_a_part_of_the_manifest_tells_no_digest(
    caller: tuple[Caller, PullGateway],
) -> None:
    """Attack: a step requests a part of the manifest while the engine pulls."""
    engine, gateway = caller
    whole = f"sha256:{hashlib.sha256(MANIFEST).hexdigest()}"
    assert engine.send("GET", "/v2/team/app/manifests/one")[2] == MANIFEST
    engine.send("GET", "/v2/team/app/manifests/one", Range="bytes=3-")
    assert gateway.digest == whole


def test_a_layer_comes_from_where_the_registry_leads_which_gets_no_login(
    registry: Registry, caller: tuple[Caller, PullGateway]
) -> None:
    path = f"/v2/team/app/blobs/{DIGEST}"
    assert caller[0].send("GET", path)[2] == LAYER
    assert registry.seen == [("GET", path, BASIC), ("GET", "/layer", None)]
    status, _, rest = caller[0].send("GET", path, Range="bytes=7-")
    assert (status, rest) == (206, LAYER[7:])


def test_an_engine_learns_that_a_layer_broke_off(
    registry: Registry, caller: tuple[Caller, PullGateway]
) -> None:
    registry.broken.set()
    with pytest.raises(http.client.IncompleteRead):
        caller[0].send("GET", f"/v2/team/app/blobs/{DIGEST}")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/team/app/manifests/two"),
        ("GET", f"/v2/team/other/blobs/{DIGEST}"),
        ("GET", f"/v2/team/app/../other/blobs/{DIGEST}"),
        ("GET", "/v2/team/app/tags/list"),
        ("GET", "/v2/_catalog"),
        ("POST", "/v2/team/app/blobs/uploads/"),
        ("PUT", "/v2/team/app/manifests/one"),
        ("DELETE", "/v2/team/app/manifests/one"),
    ],
)
def test_what_is_no_part_of_the_pull_is_refused(method: str, path: str) -> None:
    gateway = PullGateway.__new__(PullGateway)
    gateway.repository, gateway.tag = "team/app", "one"
    with pytest.raises(Refused, match="not part of the pull"):
        gateway.target(method, path, "")


@pytest.mark.parametrize("inner", ["manifests/one", f"manifests/{DIGEST}", f"blobs/{DIGEST}"])
def test_what_the_pull_needs_is_passed_on(inner: str) -> None:
    gateway = PullGateway.__new__(PullGateway)
    gateway.repository, gateway.tag = "team/app", "one"
    assert gateway.target("GET", f"/v2/team/app/{inner}", "") == f"/v2/team/app/{inner}"
