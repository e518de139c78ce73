"""The metadata server hands out the user's Google tokens: to the steps of its build only."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing

import pytest

from buildrunner import metadata
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD, ContainerSpec, NetworkMember
from buildrunner.errors import EngineUnavailable
from buildrunner.metadata import MetadataServer, ProjectFacts, listen_on
from buildrunner.wiring.engines import is_of_build


class Network:
    """An engine, of which only the members of a network are asked."""

    def __init__(self, *members: NetworkMember) -> None:
        self.members = members

    def network_members(self, name: str) -> tuple[NetworkMember, ...]:
        """See `Resources.network_members`."""
        assert name == "cloudbuild"
        return self.members


class Gone:
    """An engine that does not answer."""

    def network_members(self, name: str) -> tuple[NetworkMember, ...]:
        """See `Resources.network_members`."""
        raise EngineUnavailable(name)


MEMBERS = Network(
    NetworkMember("a", {LABEL_BUILD: "mine"}, "169.254.169.2"),
    NetworkMember("b", {LABEL_BUILD: "theirs"}, "169.254.169.3"),
    NetworkMember("c", {}, "169.254.169.4"),
)


@pytest.mark.parametrize(
    ("address", "answered"),
    [
        ("169.254.169.2", True),
        ("169.254.169.3", False),
        ("169.254.169.4", True),  # `docker run --network cloudbuild` in a step
        ("169.254.169.254", False),  # a user of this machine
        ("172.17.0.2", False),
        ("127.0.0.1", False),
    ],
)
def test_only_clients_of_the_build_s_network_that_are_no_other_build_s_are_answered(
    address: str, answered: bool
) -> None:
    assert is_of_build(MEMBERS, "mine", address) is answered  # type: ignore[arg-type]


def test_nobody_is_answered_while_the_engine_does_not_tell_whose_a_client_is() -> None:
    assert not is_of_build(Gone(), "mine", "169.254.169.2")  # type: ignore[arg-type]


@pytest.mark.parametrize("answered", [True, False])
def test_a_client_that_may_not_ask_is_hung_up_on(answered: bool) -> None:
    requested: list[str] = []

    def may_ask(address: str) -> bool:
        requested.append(address)
        return answered

    facts = ProjectFacts("p1", "123", "builder@p1.example")
    listener = listen_on("127.0.0.1", 0)
    server = MetadataServer(listener, facts, credentials=None, may_ask=may_ask)
    try:
        with socket.create_connection(listener.getsockname(), timeout=30) as client:
            try:
                client.sendall(b"GET / HTTP/1.0\r\n\r\n")
                answer = client.recv(1000)
            except ConnectionError:
                answer = b""
    finally:
        server.close()
    assert requested == ["127.0.0.1"]
    assert bool(answer) is answered


ASK = b"GET /computeMetadata/v1/project/project-id HTTP/1.1\r\nMetadata-Flavor: Google\r\n\r\n"


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """The address of a build's metadata server that is patient for a second."""
    monkeypatch.setattr(metadata, "LONGEST_HEAD_S", 1.0)
    monkeypatch.setattr(metadata._Handler, "timeout", 1.0)
    listener = listen_on("127.0.0.1", 0)
    name = listener.getsockname()
    facts = ProjectFacts("p1", "123", "builder@p1.example")
    with closing(MetadataServer(listener, facts, credentials=None)):
        yield name


def until_end(client: socket.socket) -> bytes:
    """All that the server sends until it hangs up."""
    answer = b""
    try:
        while piece := client.recv(65536):
            answer += piece
    except ConnectionError:
        pass
    return answer


def test_a_step_s_connections_are_served_a_few_at_a_time_and_idle_ones_end(
    address: tuple[str, int],
) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(metadata.MOST_CONNECTIONS + 20):
            stack.enter_context(socket.create_connection(address, timeout=30))
        with socket.create_connection(address, timeout=30) as client:
            client.sendall(ASK)
            most = threading.active_count() - before
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert most <= metadata.MOST_CONNECTIONS


@pytest.mark.parametrize(
    "piece", [b"X" * 4000, b"X: " + b"y" * 4000 + b"\r\n"], ids=["a line", "lines"]
)
def test_the_head_of_a_step_s_request_is_small(
    address: tuple[str, int], piece: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "LONGEST_HEAD_S", 30.0)
    sent = 0
    with socket.create_connection(address, timeout=30) as client:
        try:
            while sent < 64 << 20:
                client.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
    assert sent < 32 << 20  # what the kernel keeps for a reader that is gone


def test_a_head_that_trickles_is_given_up(address: tuple[str, int]) -> None:
    began = time.monotonic()
    ended = threading.Event()
    with socket.create_connection(address, timeout=30) as client:

        def trickle() -> None:
            while not ended.wait(0.1):
                try:
                    client.sendall(b"X")
                except OSError:
                    return

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            assert until_end(client) == b""
        finally:
            ended.set()
            thread.join()
    assert time.monotonic() - began < 20


def test_requests_that_come_at_once_are_answered_in_turn(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=30) as client:
        client.sendall(ASK + ASK)
        assert until_end(client).count(b"HTTP/1.1 200") == 2


@pytest.mark.docker
def test_the_engine_tells_which_address_is_whose(docker_engine: DockerEngine, busybox: str) -> None:
    name = f"buildrunner-test-{uuid.uuid4().hex[:12]}"
    labels = {LABEL_BUILD: name}
    docker_engine.ensure_network(name, labels)
    command = ("sh", "-c", "hostname -i; sleep 300")
    spec = ContainerSpec(image=busybox, cmd=command, network=name, labels=labels)
    container = docker_engine.create_container(spec)
    try:
        said = next(iter(docker_engine.start_container(container, attach=True)))
        (member,) = docker_engine.network_members(name)
        assert member.address == said.decode().strip()
    finally:
        docker_engine.remove_container(container)
        docker_engine.remove_network(name)
