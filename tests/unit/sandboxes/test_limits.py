"""What a nested sandbox may take of the machine, and what it is told of registries."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from buildrunner.sandboxes.nested.daemon import _last_error
from buildrunner.sandboxes.nested.layer_origins import Origin, decode_notes, write_origins
from buildrunner.sandboxes.nested.loopback import is_registry, loopback_ports, token_ports
from buildrunner.sandboxes.protocol import SandboxLimits, fair_share

GIB = 1 << 30


@pytest.mark.parametrize(
    ("builds", "memory", "limits"),
    [
        (0, 8 * GIB, SandboxLimits()),
        (1, 10 * GIB, SandboxLimits(cpu_shares=1024, memory_bytes=9 * GIB, pids=32768)),
        (3, 10 * GIB, SandboxLimits(cpu_shares=1024, memory_bytes=3 * GIB, pids=10922)),
        (64, 10 * GIB, SandboxLimits(cpu_shares=1024, memory_bytes=512 << 20, pids=2048)),
    ],
)
def test_builds_share_what_a_machine_has(builds, memory, limits):
    assert fair_share(builds, memory) == limits


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("localhost:5000/app:1", {5000}),
        ("127.0.0.1:80/a 127.1.2.3:81/b", {80, 81}),
        ("registry.example.com:5000/app", set()),
        ("notlocalhost:5000/app", set()),
        ("my.localhost:5000/app", set()),
        ("localhost:99999/app", set()),
        ("localhost/app", set()),
    ],
)
def test_registries_on_the_machine_itself_are_known_by_their_name(text, ports):
    assert loopback_ports(text) == ports


@contextlib.contextmanager
def answering(status, headers, body=b""):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    ("status", "headers", "body", "registry"),
    [
        (401, {"Docker-Distribution-Api-Version": "registry/2.0"}, b"", True),
        (404, {}, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "no"}]}', True),
        (401, {}, b'{"errors":[{"code":"UNAUTHORIZED"}]}', True),
        (401, {"WWW-Authenticate": "Basic realm=app"}, b"", False),
        (200, {}, b"{}", False),
        (404, {}, b'{"errors": [{"code": 404}]}', False),
        (404, {}, b'{"error": "MANIFEST_UNKNOWN"}', False),
    ],
)
def test_only_what_answers_as_a_registry_is_one(status, headers, body, registry):
    with answering(status, headers, body) as port:
        assert is_registry(port) is registry
    assert not is_registry(port)  # nobody listens any more


@pytest.mark.parametrize(
    ("challenge", "ports"),
    [
        ('Bearer realm="http://localhost:5001/token",service="x"', {5001}),
        ('bearer service="x",realm="http://127.0.0.1:5001/token"', {5001}),
        ('Bearer realm="https://login.example.com/token"', set()),
        ('Basic realm="http://localhost:5001/"', set()),
    ],
)
def test_where_a_registry_sends_clients_for_a_token(challenge, ports):
    with answering(401, {"WWW-Authenticate": challenge}) as port:
        assert token_ports(port) == ports
    assert token_ports(port) == set()


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (b'time="x" level=info msg="all is well"\n', ""),
        (b'time="x" level=fatal msg="no \\"room\\" left" a=b\ntime="x" level=warning msg="w"\n',
         'no "room" left'),
        (b"time=x level=info msg=up\nfailed to start daemon: no iptables\n",
         "failed to start daemon: no iptables"),
        (b"", ""),
    ],
)  # fmt: skip
def test_of_an_engines_last_words_the_errors_count(log, told):
    assert _last_error(log) == told


def origins(*numbers: int) -> tuple[Origin, ...]:
    return tuple(
        Origin(digest=f"sha256:{number:064x}", repository=f"localhost:{number}/app")
        for number in numbers
    )


def test_what_earlier_builds_know_is_told_after_what_the_engine_knows(tmp_path):
    first, second, third = origins(1, 2, 3)
    write_origins(str(tmp_path), {"sha256:d1": (first, second), "sha256:d2": (first,)})
    write_origins(str(tmp_path), {"sha256:d1": (third, first), "sha256:d3": (second,)})
    notes = {one.name: decode_notes(one.read_bytes()) for one in (tmp_path / "sha256").iterdir()}
    assert notes == {"d1": (second, third, first), "d2": (first,), "d3": (second,)}
