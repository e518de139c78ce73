"""What passes the gateway of a push, and what goes along."""

import base64
import hashlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from buildrunner.addresses import Egress
from buildrunner.containers.protocol import RegistryLogin
from buildrunner.registries.push_gateway import PushGateway, Refused, RegistryClient, RegistryPlace

DIGEST = f"sha256:{'a' * 64}"
OF_MANIFEST = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
LOGIN = RegistryLogin(username="me", password="pw")
BASIC = "Basic " + base64.b64encode(b"me:pw").decode()


class FakeRegistry(ThreadingHTTPServer):
    """Answers as a registry with a token service.

    Attributes:
        challenge: what it asks for a login with.
        seen: method, path with query, and ``Authorization`` of each request but those for tokens.
        scopes: of the tokens that were given, and the login.
        bodies: path without query -> content.
        upload_host: where uploads go to; empty for the registry itself.
        expires_in: of the tokens.
        digest: what it says that the digest of a manifest is; empty for the truth.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Registry)
        self.address = f"127.0.0.1:{self.server_port}"
        self.challenge = f'Bearer realm="http://{self.address}/token",service="fake"'
        self.seen: list[tuple[str, str, str | None]] = []
        self.scopes: list[tuple[str, str | None]] = []
        self.bodies: dict[str, bytes] = {}
        self.upload_host = ""
        self.expires_in = 300
        self.digest = ""
        self.token_status = 200


class _Registry(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeRegistry

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _any(self) -> None:
        registry = self.server
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = urlsplit(self.path).path
        if path == "/token":
            wanted = parse_qs(urlsplit(self.path).query or body.decode())
            login = self.headers["Authorization"] or wanted.get("refresh_token", [""])[0]
            registry.scopes.append((wanted["scope"][0], login))
            token = {"token": f"t{len(registry.scopes)}", "expires_in": registry.expires_in}
            self._answer(registry.token_status, json.dumps(token).encode())
            return
        if path == "/v2/":
            self._answer(401, WWW_Authenticate=registry.challenge)
            return
        registry.seen.append((self.command, self.path, self.headers["Authorization"]))
        registry.bodies[path] = body
        if self.command == "POST":
            self._answer(202, Location=f"{registry.upload_host}/elsewhere/1?state=x")
        elif self.command == "PATCH":
            self._answer(202, Location=f"{registry.upload_host}/elsewhere/2?state=y")
        else:
            digest = registry.digest or f"sha256:{hashlib.sha256(body).hexdigest()}"
            self._answer(201, Docker_Content_Digest=digest)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = _any  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(server: ThreadingHTTPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    made = FakeRegistry()
    with served(made):
        yield made


class Caller:
    """The build's engine: sends requests to the gateway."""

    def __init__(self, path: str) -> None:
        self.path = path

    def send(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("gateway")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(self.path)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), content


def answers(caller: Caller) -> bool:
    """Whether a new connection is served, once those that were closed are given up."""
    for _ in range(10_000):
        with suppress(ConnectionError, http.client.HTTPException):
            return caller.send("GET", "/v2/")[0] == 200
    return False


def answer_to(caller: Caller, head: bytes) -> bytes:
    """What the gateway answers to a head that does not end."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(caller.path)
        with suppress(ConnectionError):
            connection.sendall(head)
            return connection.recv(1)
    return b""


@contextmanager
def gateway(
    registry: FakeRegistry, folder: Path, login: RegistryLogin = LOGIN, tag: str = "one"
) -> Iterator[tuple[PushGateway, Caller]]:
    path = str(folder / "s")
    place = RegistryPlace(registry=registry.address, insecure=(registry.address,))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    with (
        RegistryClient(place, "team/app", login) as client,
        PushGateway(listener, client, "team/app", tag) as made,
    ):
        yield made, Caller(path)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/other/app/manifests/one"),
        ("GET", "/v2/_catalog"),
        ("GET", "/v2/team/app/tags/list"),
        ("GET", f"/v2/team/app/blobs/{DIGEST}"),
        ("PUT", "/v2/team/app/manifests/two"),
        ("PUT", "/v2/team/app/manifests/one/../two"),
        ("PUT", "/v2/team/app/../other/manifests/one"),
        ("PUT", "/v2/team/app%2f..%2fother/manifests/one"),
        ("DELETE", "/v2/team/app/manifests/one"),
        ("DELETE", f"/v2/team/app/manifests/{DIGEST}"),
        ("POST", "/v2/other/blobs/uploads/"),
        ("PATCH", f"/v2/team/app/blobs/uploads/{'0' * 32}"),
        ("PUT", "http://other/v2/team/app/manifests/one"),
    ],
)
def test_what_is_no_part_of_the_push_is_refused(
    registry: FakeRegistry, tmp_path: Path, method: str, path: str
) -> None:
    with gateway(registry, tmp_path) as (made, _), pytest.raises(Refused):
        made.target(method, path, "")


def test_a_push_goes_to_the_registry_with_a_token_for_its_repository(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    with gateway(registry, tmp_path) as (made, caller):
        assert caller.send("GET", "/v2/")[0] == 200
        _, headers, _ = caller.send("POST", "/v2/team/app/blobs/uploads/")
        pieces = iter([b"a layer", b" in pieces"])
        status, headers, _ = caller.send("PATCH", headers["Location"], pieces)
        assert status == 202
        assert caller.send("PUT", f"{headers['Location']}?digest={DIGEST}")[0] == 201
        assert made.digest == ""
        assert caller.send("PUT", "/v2/team/app/manifests/one", b"{}")[0] == 201
        assert made.digest == OF_MANIFEST
    assert registry.scopes == [("repository:team/app:pull,push", BASIC)]
    assert {authorization for _, _, authorization in registry.seen} == {"Bearer t1"}
    assert registry.bodies["/elsewhere/1"] == b"a layer in pieces"
    assert registry.seen[2][1] == f"/elsewhere/2?state=y&digest={DIGEST.replace(':', '%3A')}"


def test_no_blob_of_another_repository_is_mounted(registry: FakeRegistry, tmp_path: Path) -> None:
    with gateway(registry, tmp_path) as (_, caller):
        caller.send("POST", f"/v2/team/app/blobs/uploads/?mount={DIGEST}&from=secret/app")
    assert registry.seen[0][:2] == ("POST", "/v2/team/app/blobs/uploads/")


@pytest.mark.parametrize("reference", ["one", DIGEST])
@pytest.mark.parametrize("name", ["subject", "Subject", "\u017fubject"])
def test_nothing_is_attached_to_another_image(
    registry: FakeRegistry, tmp_path: Path, reference: str, name: str
) -> None:
    body = json.dumps({"layers": [], name: {"digest": DIGEST}}).encode()
    with gateway(registry, tmp_path) as (made, caller):
        path = f"/v2/team/app/manifests/{reference}"
        assert caller.send("PUT", path, body)[0] == 403
        assert caller.send("PUT", path, iter([body[:9], body[9:]]))[0] == 403
        assert caller.send("PUT", path, b"[]")[0] == 400
        assert made.digest == ""
    assert registry.seen == []


@pytest.mark.parametrize("ending", ["", ".att", ".sig", ".sbom"])
def test_no_tag_is_set_where_attestations_of_other_images_are(
    registry: FakeRegistry, tmp_path: Path, ending: str
) -> None:
    tag = DIGEST.replace(":", "-") + ending
    path = f"/v2/team/app/manifests/{tag}"
    with gateway(registry, tmp_path, tag=tag) as (made, caller):
        with pytest.raises(Refused, match="signatures and attestations"):
            made.target("PUT", path, "")
        assert caller.send("HEAD", path)[0] == 403
    assert registry.seen == []


def test_the_end_of_an_upload_names_a_digest_and_nothing_else(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    with gateway(registry, tmp_path) as (_, caller):
        _, headers, _ = caller.send("POST", "/v2/team/app/blobs/uploads/")
        caller.send("PUT", f"{headers['Location']}?digest=sha256:1&from=secret/app&state=z")
    assert registry.seen[1][:2] == ("PUT", "/elsewhere/1?state=x&digest=sha256%3A1")


def test_the_digest_of_a_tag_is_known_however_the_engine_writes_its_address(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    with gateway(registry, tmp_path) as (made, caller):
        assert caller.send("PUT", "/v2/team/app/manifests/one?any", b"{}")[0] == 201
        assert made.digest == OF_MANIFEST


def test_a_registry_that_names_another_digest_than_that_of_the_manifest_is_not_believed(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.digest = DIGEST
    with gateway(registry, tmp_path) as (made, caller):
        assert caller.send("PUT", "/v2/team/app/manifests/one", b"{}")[0] == 201
        assert made.digest == ""


def test_no_header_of_the_engine_is_passed_on_that_a_push_does_not_need(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    with gateway(registry, tmp_path) as (_, caller):
        headers = {"Authorization": "Basic evil", "Host": "other"}
        _, answer, _ = caller.send("HEAD", "/v2/team/app/manifests/one", **headers)
    assert registry.seen[0][2] == "Bearer t1"
    assert "Authorization" not in answer


def test_the_login_goes_to_no_other_host(registry: FakeRegistry, tmp_path: Path) -> None:
    other = FakeRegistry()
    with served(other), gateway(registry, tmp_path) as (_, caller):
        registry.upload_host = f"http://{other.address}"
        _, headers, _ = caller.send("POST", "/v2/team/app/blobs/uploads/")
        assert caller.send("PATCH", headers["Location"], b"a layer")[0] == 202
    assert other.seen == [("PATCH", "/elsewhere/1?state=x", None)]


def test_a_token_is_requested_anew_before_it_expires(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.registries.push_gateway._FRESH", 0.0)
    with gateway(registry, tmp_path) as (_, caller):
        for _ in range(2):
            caller.send("HEAD", "/v2/team/app/manifests/one")
    assert [authorization for _, _, authorization in registry.seen] == ["Bearer t1", "Bearer t2"]


def test_an_identity_token_is_changed_for_a_token(registry: FakeRegistry, tmp_path: Path) -> None:
    login = RegistryLogin(identity_token="refresh")
    with gateway(registry, tmp_path, login) as (_, caller):
        caller.send("HEAD", "/v2/team/app/manifests/one")
    assert registry.scopes == [("repository:team/app:pull,push", "refresh")]


def test_a_registry_without_tokens_gets_the_password(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.challenge = 'Basic realm="fake"'
    with gateway(registry, tmp_path) as (_, caller):
        caller.send("HEAD", "/v2/team/app/manifests/one")
    assert registry.seen[0][2] == BASIC


def test_a_login_that_is_refused_is_told_as_the_registry_would(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.token_status = 401
    with gateway(registry, tmp_path) as (_, caller):
        status, _, body = caller.send("PUT", "/v2/team/app/manifests/one", b"{}")
    assert status == 401
    assert json.loads(body)["errors"][0]["code"] == "UNAUTHORIZED"
    assert b"pw" not in body


def test_a_registry_that_is_not_there_is_no_refusal(registry: FakeRegistry, tmp_path: Path) -> None:
    with gateway(registry, tmp_path) as (_, caller):
        registry.socket.close()
        status, _, _body = caller.send("HEAD", "/v2/team/app/manifests/one")
    assert status == 503


def test_a_password_is_sent_to_no_token_service_without_tls(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gateway(registry, tmp_path) as (made, caller):
        made.client._is_insecure = False
        made.client.base = f"http://{registry.address}"
        made.client._authorization = made.client._way([registry.challenge])
        status, _, _ = caller.send("PUT", "/v2/team/app/manifests/one", b"{}")
    assert status == 401
    assert registry.scopes == []


@pytest.mark.parametrize(
    "head",
    [
        b"GET /v2/ HTTP/1.1\r\n" + b"".join(b"X-%d: %b\r\n" % (n, b"x" * 1000) for n in range(99)),
        b"GET /" + b"x" * 60_000,
        b"PATCH /v2/team/app/blobs/uploads/ HTTP/1.1\r\nX: " + b"x" * 60_000,
    ],
)
def test_the_head_of_a_request_is_small(
    registry: FakeRegistry, tmp_path: Path, head: bytes
) -> None:
    with gateway(registry, tmp_path) as (_, caller):
        assert answer_to(caller, head) == b""
        assert caller.send("GET", "/v2/")[0] == 200


def test_a_step_opens_few_connections_at_a_time(registry: FakeRegistry, tmp_path: Path) -> None:
    with gateway(registry, tmp_path) as (_, caller), ExitStack() as opened:
        connections = []
        for _ in range(60):
            one = opened.enter_context(socket.socket(socket.AF_UNIX))
            one.connect(caller.path)
            one.settimeout(10)
            connections.append(one)
        for one in connections[16:]:
            assert one.recv(1) == b""
        connections[0].sendall(b"GET /v2/ HTTP/1.1\r\n\r\n")
        assert connections[0].recv(12) == b"HTTP/1.1 200"
        for one in connections[:16]:
            one.close()
        assert answers(caller)


def test_the_address_of_an_upload_is_short(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.upload_host = f"http://{registry.address}/{'x' * 5000}"
    with gateway(registry, tmp_path) as (_, caller):
        assert caller.send("POST", "/v2/team/app/blobs/uploads/")[0] == 502


def test_what_says_that_a_registry_has_no_tls_is_what_is_connected_to(
    registry: FakeRegistry,
) -> None:
    """Its name must not have another address, elsewhere, when the login is sent."""
    answers = [["127.0.0.1"], ["127.0.0.9"]]
    registry.challenge = 'Basic realm="fake"'
    port = registry.address.rpartition(":")[2]
    place = RegistryPlace(registry=f"r.example:{port}", insecure=("127.0.0.0/8", "not a network"))
    egress = Egress(allow=("127.0.0.0/8",))
    with RegistryClient(
        place, "team/app", LOGIN, egress, addresses_of=lambda _: answers.pop(0)
    ) as client:
        assert client.digest_of("one").startswith("sha256:")
    assert answers == [["127.0.0.9"]]


def test_a_registry_that_can_not_be_looked_up_has_tls() -> None:
    def unknown(_: str) -> list[str]:
        raise OSError("no such name")

    place = RegistryPlace(registry="r.example", insecure=("0.0.0.0/0",))
    with (
        RegistryClient(place, "team/app", LOGIN, addresses_of=unknown) as client,
        pytest.raises(httpx.ConnectError, match=r"r\.example can't be found"),
    ):
        client.digest_of("one")
