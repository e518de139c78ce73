"""Strangers, who have no token and know no secret, can't fill the server's database or memory."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.server.api import logs
from buildrunner.server.events.intake import MOST, MOST_OF_AN_ADDRESS
from buildrunner.server.http.bodies import UnverifiedBodies
from tests.api_server import ApiServer, api_server
from tests.conftest import wait_until

SECRET = "s3cret"
MIB = 1 << 20
PUSH = b'{"ref": "refs/heads/main"}'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path, auth=True, max_unverified_bytes=4 * MIB) as running:
        running.secrets["hooks-github"] = SECRET
        yield running


def head(length: int, path: str = "/hooks/github") -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "X-GitHub-Event: push",
        "X-Hub-Signature-256: sha256=00",
        f"Content-Length: {length}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@contextlib.contextmanager
def connected(server: ApiServer, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    """Connect from an address of this machine; all of 127.0.0.0/8 are."""
    place, own = ("127.0.0.1", server.port), (source, 0)
    with socket.create_connection(place, timeout=30, source_address=own) as client:
        yield client


@contextlib.contextmanager
def trickling(client: socket.socket) -> Iterator[None]:
    """Send bytes meanwhile, without a pause that is too long by itself."""
    ended = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not ended.wait(0.05):
                client.sendall(b"x")

    sender = threading.Thread(target=trickle)
    sender.start()
    try:
        yield
    finally:
        ended.set()
        sender.join()


def code_of(client: socket.socket) -> int:
    return int(client.recv(1000).split()[1])


def bodies_of(server: ApiServer) -> UnverifiedBodies:
    bodies = server.app.state.unverified_bodies
    assert isinstance(bodies, UnverifiedBodies)
    return bodies


def genuine(server: ApiServer) -> int:
    signature = hmac.new(SECRET.encode(), PUSH, hashlib.sha256).hexdigest()
    headers = {"X-GitHub-Event": "push", "X-Hub-Signature-256": f"sha256={signature}"}
    return server.http.post("/hooks/github", content=PUSH, headers=headers).status_code


def rows(server: ApiServer) -> tuple[int, int]:
    """Rows of the audit log, and records of deliveries."""
    return len(server.store.audit.page(limit=1000)), len(server.store.deliveries.page(limit=1000))


def test_a_body_for_a_hook_without_a_secret_is_not_read(server: ApiServer) -> None:
    for path in ("/hooks/gitlab", "/hooks/github/nobody", "/hooks/pubsub/topic?secret=guess"):
        with connected(server) as client:
            client.sendall(head(25 * MIB, path))  # and not one byte of it
            assert code_of(client) == 401


def test_a_body_for_a_webhook_trigger_is_not_read_before_its_secret_is_right(
    server: ApiServer,
) -> None:
    with connected(server) as client:
        client.sendall(head(MIB, "/v1/projects/p/triggers/t:webhook?secret=guess"))
        assert code_of(client) == 403


def test_many_large_bodies_are_held_up_to_a_limit_and_genuine_ones_pass(
    server: ApiServer,
) -> None:
    most = 0
    answers: list[int] = []

    def attack() -> None:
        with connected(server) as client, contextlib.suppress(OSError):
            client.sendall(head(8 * MIB))
            for _ in range(127):
                if select.select([client], [], [], 0)[0]:
                    break  # the answer; a server that is done with a client waits for it briefly
                client.sendall(b"x" * (MIB >> 4))
            answers.append(code_of(client))

    strangers = [threading.Thread(target=attack) for _ in range(24)]
    for stranger in strangers:
        stranger.start()
    while any(stranger.is_alive() for stranger in strangers):
        most = max(most, bodies_of(server).held_bytes)
        assert genuine(server) == 200
        if most > 3 * MIB and len(answers) >= 20:
            break
    server.http.close()
    assert most <= 4 * MIB + (1 << 16)  # a piece more, until it is displaced
    assert 429 in answers


def test_many_small_bodies_are_held_up_to_a_number(tmp_path: Path) -> None:
    with api_server(tmp_path, max_unverified_bodies=8) as server, contextlib.ExitStack() as stack:
        server.secrets["hooks-github"] = SECRET
        clients = [stack.enter_context(connected(server)) for _ in range(20)]
        poll = select.poll()
        for client in clients:
            client.sendall(head(100) + b"x" * 10)
            poll.register(client, select.POLLIN)
        answered: set[int] = set()
        while len(answered) < 12:
            answered.update(descriptor for descriptor, _ in poll.poll(30_000))
        codes = [code_of(client) for client in clients if client.fileno() in answered]
        assert codes == [429] * 12
        assert genuine(server) == 200


def from_address(address: str, signed: bool = False) -> bytes:
    """Return the head of a delivery that a trusted proxy passes on."""
    signature = hmac.new(SECRET.encode(), PUSH, hashlib.sha256).hexdigest() if signed else "00"
    more = f"\r\nX-Forwarded-For: {address}\r\nExpect: 100-continue\r\n\r\n"
    given = head(len(PUSH)).replace(b"sha256=00", f"sha256={signature}".encode())
    return given.replace(b"\r\n\r\n", more.encode())


FORGE = "2001:db8:f:1::1"


@pytest.mark.parametrize(
    ("is_known", "stranger"), [(True, "198.51.100.{}"), (False, "2001:db8:5:{}::1")]
)
def test_bodies_of_a_stranger_with_many_networks_displace_none_of_a_forge(
    tmp_path: Path, is_known: bool, stranger: str
) -> None:
    """Issue: the forge lost, since it sends several deliveries at a time."""
    with (
        api_server(tmp_path, max_unverified_bodies=8, trusted_proxies=("127.0.0.1",)) as server,
        contextlib.ExitStack() as stack,
    ):
        server.secrets["hooks-github"] = SECRET

        def begun(address: str, signed: bool = False) -> socket.socket:
            client = stack.enter_context(connected(server))
            client.sendall(from_address(address, signed))
            assert code_of(client) == 100
            return client

        for number in range(8):
            begun(stranger.format(number))
        if is_known:  # strangers with one body each lose the oldest
            first = begun(FORGE, signed=True)
            first.sendall(PUSH)
            assert code_of(first) == 200
        deliveries = [begun(FORGE, signed=True) for _ in range(4)]
        for number in range(8, 16):
            begun(stranger.format(number))
        for client in deliveries:
            client.sendall(PUSH)
        assert [code_of(client) for client in deliveries] == [200] * 4


def test_a_body_that_trickles_is_given_up(tmp_path: Path) -> None:
    with api_server(tmp_path, unverified_body_s=0.5) as server, connected(server) as client:
        server.secrets["hooks-github"] = SECRET
        client.sendall(head(100_000))
        with trickling(client):
            assert code_of(client) == 408
        assert bodies_of(server).held_bytes == 0


def test_a_form_to_sign_in_that_trickles_is_given_up(tmp_path: Path) -> None:
    with (
        api_server(tmp_path, auth=True, unverified_body_s=0.2) as server,
        connected(server) as client,
    ):
        client.sendall(head(60_000, "/login") + b"token=")
        assert code_of(client) == 408


def test_refused_posts_leave_a_bounded_trace_and_no_row_in_the_audit_log(
    server: ApiServer,
) -> None:
    before = rows(server)
    for number in range(40):
        for path in ("/hooks/github", f"/hooks/github/name{number}", "/hooks/pubsub?secret=x"):
            assert server.http.post(path, content=PUSH).status_code == 401
        path = f"/v1/projects/p{number}/triggers/t{number}:webhook?secret=x"
        assert server.http.post(path, content=PUSH).status_code == 403
    audit, deliveries = rows(server)
    assert audit == before[0]
    assert deliveries <= 2 * MOST_OF_AN_ADDRESS  # hooks of forges, and webhooks of triggers
    assert MOST >= MOST_OF_AN_ADDRESS


def test_the_numbers_for_prometheus_do_not_grow_with_made_up_methods(server: ApiServer) -> None:
    for number in range(50):
        assert server.http.request(f"METHOD{number}", "/builds").status_code == 405
    token = server.token("reader", "read")
    text = server.http.get("/metrics", headers={"Authorization": f"Bearer {token}"}).text
    assert "METHOD1" not in text
    assert 'method="other"' in text


def test_a_server_takes_a_bounded_number_of_connections(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.server.http.listener.MOST_CONNECTIONS", 10)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(server)) for _ in range(40)]
        assert all(is_answered(client) for client in clients[30:])
        assert not any(is_answered(client) for client in clients[:30])  # hung up on


STRANGER = "127.0.0.2"
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
OPENAPI = HEALTHZ.replace(b"/healthz", b"/openapi.json")


def is_answered(client: socket.socket) -> bool:
    """Return whether a connection is answered, and not hung up on."""
    with contextlib.suppress(ConnectionError):
        client.sendall(HEALTHZ)
        with http.client.HTTPResponse(client) as answer:
            answer.begin()
            answer.read()
            return answer.status == 200
    return False


def established(server: ApiServer) -> int:
    """Return the number of connections that the server has not closed."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    own = f":{server.port:04X}"
    return sum(row[1].endswith(own) and row[3] == "01" for row in rows)


@pytest.mark.parametrize(
    ("sent", "code", "then"),
    [
        (HEALTHZ, 200, b""),
        (HEALTHZ, 200, HEALTHZ[:9]),  # a head without an end
        (head(MIB, "/hooks/gitlab"), 401, b"x"),  # the body of a refused request
    ],
    ids=("idle", "head", "body"),
)
def test_connections_of_a_stranger_lock_nobody_out(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, sent: bytes, code: int, then: bytes
) -> None:
    monkeypatch.setattr("buildrunner.server.http.listener.MOST_CONNECTIONS", 10)
    with contextlib.ExitStack() as stack:
        member = stack.enter_context(connected(server))
        assert is_answered(member)  # and is idle from now on, for longer than any other
        attack = [stack.enter_context(connected(server, STRANGER)) for _ in range(9)]
        for stranger in attack:
            stranger.sendall(sent)
            assert int(stranger.recv(13).split()[1]) == code
            stranger.sendall(then)
        for _ in range(4):
            assert is_answered(stack.enter_context(connected(server)))
        assert is_answered(member)


def test_answers_that_a_stranger_does_not_read_lock_nobody_out(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.server.http.listener.MOST_CONNECTIONS", 4)
    monkeypatch.setattr("buildrunner.server.http.listener.STALLED_S", 0.0)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stranger = stack.enter_context(connected(server, STRANGER))
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            stranger.sendall(OPENAPI * 100)
            assert code_of(stranger) == 200
        deadline = time.monotonic() + 30
        # The server refuses new connections until it waits for a reader.
        while not is_answered(stack.enter_context(connected(server))):
            assert time.monotonic() < deadline
        assert established(server) <= 4  # none waits for its reader before it is closed


@contextlib.contextmanager
def asking_for_much(
    server: ApiServer, build: str, source: str, held: int = 4096
) -> Iterator[socket.socket]:
    """Ask for many large answers, of which the kernel holds the first ones only."""
    asked = f"GET /v1/projects/p/builds/{build} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.socket() as client:
        client.settimeout(30)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, held)
        client.bind((source, 0))
        client.connect(("127.0.0.1", server.port))
        client.sendall(asked.encode() * 20)
        assert code_of(client) == 200
        yield client


def large_build(server: ApiServer) -> str:
    large = [{"name": "busybox", "script": "#" * 900_000}] * 3
    return server.create(steps=large)


def test_answers_that_nobody_reads_take_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.server.http.listener.MOST_UNREAD", 6 * MIB)
    with api_server(tmp_path) as server, contextlib.ExitStack() as stack:
        build = large_build(server)
        server.http.close()
        stack.enter_context(asking_for_much(server, build, "127.0.1.3"))  # holds less
        for _ in range(8):
            stack.enter_context(asking_for_much(server, build, STRANGER))
        wait_until(lambda: established(server) <= 3)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port)) as member:
            member.request("GET", f"/v1/projects/p/builds/{build}")
            assert len(member.getresponse().read()) > 2_700_000


def test_a_client_that_takes_nothing_of_its_answer_is_hung_up_on_and_a_slow_reader_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.server.http.listener.UNREAD_S", 2.5)
    with api_server(tmp_path) as server:
        build = large_build(server)
        server.http.close()
        with (
            asking_for_much(server, build, STRANGER, held=MIB // 4) as slow,
            asking_for_much(server, build, STRANGER),
        ):
            assert established(server) == 2

            # The kernel alone has enough for seconds at this pace, which a busy machine keeps, too.
            pace, taken, begun = 200_000, 0, time.monotonic()

            def slow_has_read() -> bool:
                nonlocal taken
                passed = time.monotonic() - begun
                while taken < passed * pace:
                    piece = slow.recv(8192)
                    assert piece
                    taken += len(piece)
                left = established(server)
                assert left
                return left == 1 and passed > 6

            wait_until(slow_has_read)


def test_the_connection_that_was_idle_for_the_longest_time_gives_way(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.server.http.listener.MOST_CONNECTIONS", 4)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(server, STRANGER)) for _ in range(4)]
        for number in (2, 0, 3, 1, 2):
            assert is_answered(clients[number])
        for number in (0, 3):
            assert is_answered(stack.enter_context(connected(server)))
            assert not is_answered(clients[number])  # hung up on
        assert is_answered(clients[1])
        assert is_answered(clients[2])


def begin(client: socket.socket) -> None:
    """Begin a request whose body has not come yet."""
    client.sendall(head(len(PUSH)).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    assert code_of(client) == 100


def test_requests_under_way_give_way_only_to_networks_that_hold_less(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.server.http.listener.MOST_CONNECTIONS", 4)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(server, STRANGER)) for _ in range(4)]
        for client in clients:
            begin(client)
        assert not is_answered(stack.enter_context(connected(server, STRANGER)))
        members = [stack.enter_context(connected(server)) for _ in range(2)]
        for member in members:
            begin(member)
        assert not is_answered(stack.enter_context(connected(server)))  # both have their share
        for client in members + clients[:2]:  # those that began last gave way
            client.sendall(PUSH)
            assert code_of(client) == 401
        assert not any(is_answered(client) for client in clients[2:])


def test_pipelines_of_a_stranger_lock_nobody_out(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.server.http.listener.MOST_CONNECTIONS", 8)
    ended = threading.Event()

    def flood() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError), connected(server, STRANGER) as stranger:
                stranger.sendall(HEALTHZ * 50)
                while not ended.is_set() and (answers := stranger.recv(65536)):
                    stranger.sendall(HEALTHZ * answers.count(b"HTTP/1.1 "))

    attack = [threading.Thread(target=flood) for _ in range(9)]
    for thread in attack:
        thread.start()
    try:
        wait_until(lambda: established(server) >= 8)
        for _ in range(20):
            with connected(server) as member:
                assert is_answered(member)
    finally:
        ended.set()
        for thread in attack:
            thread.join()


def test_idle_connections_end_sooner_while_many_places_are_taken(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("buildrunner.server.http.listener.MOST_CONNECTIONS", 4)
    monkeypatch.setattr("buildrunner.server.http.listener.CROWDED_KEEP_ALIVE_S", 0.1)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connected(server)) for _ in range(2)]
        assert all(is_answered(client) for client in clients)
        third = stack.enter_context(connected(server))
        assert is_answered(third)
        assert third.recv(1000) == b""  # hung up on
        assert all(is_answered(client) for client in clients)


@pytest.mark.parametrize(("limit", "most"), [("STREAMS_OF_SOURCE", 3), ("STREAMS_OF_STRANGERS", 2)])
def test_streams_of_a_public_build_leave_connections_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, most: int
) -> None:
    monkeypatch.setattr(logs, limit, most)
    with api_server(tmp_path, auth=True, public_projects=("p",)) as server:
        token = server.token("member", "read", "submit")
        member = {"Authorization": f"Bearer {token}"}
        steps = {"steps": [{"name": "busybox"}]}
        made = server.http.post("/v1/projects/p/builds", json=steps, headers=member).json()
        build = f"/buildrunner/v1/projects/p/builds/{made['metadata']['build']['id']}"

        @contextlib.contextmanager
        def following(path: str, headers: dict[str, str]) -> Iterator[int]:
            with server.http.stream("GET", build + path, headers=headers) as answer:
                chunks = answer.iter_bytes()  # kept, or the connection is closed
                next(chunks)
                yield answer.status_code

        events = {"Accept": "text/event-stream"}
        with contextlib.ExitStack() as streams:
            for number in range(most):
                path, headers = ("/events", events) if number % 2 else ("/log/stream", {})
                assert streams.enter_context(following(path, headers)) == 200
            for path, headers in (("/log/stream", {}), ("/events", events)):
                with following(path, headers) as code:
                    assert code == 429
            with following("/log/stream", member) as code:
                assert code == 200


def test_streams_of_one_token_leave_connections_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "STREAMS_OF_TOKEN", 2)
    with api_server(tmp_path, auth=True) as server, contextlib.ExitStack() as streams:
        greedy, other = (
            {"Authorization": f"Bearer {server.token(name, 'read', 'submit')}"}
            for name in ("greedy", "other")
        )
        steps = {"steps": [{"name": "busybox"}]}
        made = server.http.post("/v1/projects/p/builds", json=steps, headers=other).json()
        stream = f"/buildrunner/v1/projects/p/builds/{made['metadata']['build']['id']}/log/stream"

        def follow(headers: dict[str, str]) -> int:
            answer = streams.enter_context(server.http.stream("GET", stream, headers=headers))
            next(kept.append(answer.iter_bytes()) or kept[-1])
            return answer.status_code

        kept: list[Iterator[bytes]] = []  # a stream that nobody holds is closed
        assert [follow(greedy) for _ in range(3)] == [200, 200, 429]
        assert follow(other) == 200
