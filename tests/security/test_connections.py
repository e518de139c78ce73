"""One token, or one that never ends a handshake, leaves connections of the server to others."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from buildrunner.server.http import listener
from buildrunner.server.http.listener import Listener, listen_on
from tests.api_server import ApiServer, api_server
from tests.conftest import wait_until
from tests.fixtures_google import write_certificate
from tests.security.test_strangers import trickling

BODY = b'{"steps": [{"name": "busybox"}]}'


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        yield client


def head(token: str, length: int = len(BODY)) -> bytes:
    """The head of a request for a build; the server says 100 when it begins to read the body."""
    lines = (
        "POST /v1/projects/p/builds HTTP/1.1",
        "Host: localhost",
        f"Authorization: Bearer {token}",
        f"Content-Length: {length}",
        "Expect: 100-continue",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def code_of(client: socket.socket) -> int:
    return int(client.recv(1000).split()[1])


def status_for(server: ApiServer, token: str) -> int:
    """Ask over a new connection."""
    with connected(server.port) as client:
        client.sendall(head(token))
        if (code := code_of(client)) != 100:
            return code
        client.sendall(BODY)
        return code_of(client)


def test_bodies_of_one_token_that_trickle_leave_half_of_the_connections_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MOST_CONNECTIONS", 8)
    with api_server(tmp_path, auth=True) as server, contextlib.ExitStack() as stack:
        greedy, other = (server.token(name, "submit") for name in ("greedy", "other"))
        clients = [stack.enter_context(connected(server.port)) for _ in range(8)]
        codes = []
        for client in clients:
            client.sendall(head(greedy))
            codes.append(code_of(client))
        assert codes == [100] * 4 + [429] * 4
        assert status_for(server, other) == 200
        for client in clients[:4]:
            client.sendall(BODY)
            assert code_of(client) == 200
        assert status_for(server, greedy) == 200
        wait_until(lambda: not server.app.state.under_way)


def test_forms_of_one_session_that_trickle_leave_half_of_the_connections_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with api_server(tmp_path, auth=True) as server:
        signed_in = server.http.post("/login", data={"token": server.token("greedy", "read")})
        cookie = signed_in.headers["set-cookie"].partition(";")[0]
        message = begun("POST /logout", f"Cookie: {cookie}")
        assert_half_is_left(server, monkeypatch, message)


def test_calls_of_one_webhook_that_trickle_leave_half_of_the_connections_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with api_server(tmp_path, auth=True) as server:
        version = "projects/p/secrets/hook/versions/1"
        server.secrets[version] = "s3cret"
        trigger = {
            "name": "called",
            "webhookConfig": {"secret": version},
            "build": {"steps": [{"name": "busybox"}]},
        }
        boss = {"Authorization": f"Bearer {server.token('boss', 'admin')}"}
        made = server.http.post("/v1/projects/p/triggers", json=trigger, headers=boss)
        assert made.status_code == 200, made.text
        call = begun("POST /v1/projects/p/triggers/called:webhook?secret=s3cret")
        assert_half_is_left(server, monkeypatch, call)


def begun(line: str, *headers: str) -> bytes:
    """A request whose body does not come; the server says 100 when it waits for it."""
    wait = ("Host: localhost", "Content-Length: 1000", "Expect: 100-continue")
    return "\r\n".join((f"{line} HTTP/1.1", *wait, *headers)).encode() + b"\r\n\r\n"


def assert_half_is_left(server: ApiServer, monkeypatch: pytest.MonkeyPatch, message: bytes) -> None:
    other = server.token("other", "submit")
    server.http.close()
    monkeypatch.setattr(listener, "MOST_CONNECTIONS", 8)
    with contextlib.ExitStack() as stack:
        codes = []
        for _ in range(8):
            client = stack.enter_context(connected(server.port))
            client.sendall(message)
            codes.append(code_of(client))
        assert codes == [100] * 4 + [429] * 4
        assert status_for(server, other) == 200


def test_a_body_of_a_token_that_trickles_is_given_up(tmp_path: Path) -> None:
    with (
        api_server(tmp_path, auth=True, body_timeout_s=0.5) as server,
        connected(server.port) as client,
    ):
        client.sendall(head(server.token("slow", "submit"), 100_000))
        assert code_of(client) == 100
        with trickling(client):
            assert code_of(client) == 408


@pytest.fixture
def tls_port(tmp_path: Path) -> Iterator[int]:
    """The port of a server with a certificate."""
    certificate = str(tmp_path / "server.pem")
    write_certificate(Path(certificate))
    app = FastAPI()
    app.get("/")(lambda: {"ok": True})
    listening = listen_on("127.0.0.1", 0)
    port = listening.getsockname()[1]
    running = Listener(app, listening, tls_cert=certificate, tls_key=certificate)
    app.state.build_watches = app.state.passed_on = app.state.changes = contextlib.ExitStack()
    thread = threading.Thread(target=running.run)
    thread.start()
    running.wait_until_ready()
    yield port
    running.stop()
    thread.join()


def is_answered(port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with connected(port) as plain, context.wrap_socket(plain) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return code_of(client) == 200  # type: ignore[arg-type]


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return bool(client.recv(1))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_a_tls_handshake_has_a_deadline(tls_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HANDSHAKE_S", 0.2)
    with connected(tls_port) as client:
        client.settimeout(10)
        client.sendall(b"\x16\x03\x01")  # begins a greeting
        assert client.recv(100) == b""
    assert is_answered(tls_port)


def test_handshakes_that_never_end_take_places_and_lock_nobody_out(
    tls_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MOST_CONNECTIONS", 4)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(tls_port)) for _ in range(12)]
        wait_until(lambda: sum(map(is_open, clients)) <= 4)
        assert sum(map(is_open, clients)) == 4
        assert is_answered(tls_port)
