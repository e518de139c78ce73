"""The SDK's client on our transport, against a peer that answers byte by byte what a test wants."""

from __future__ import annotations

import contextlib
import gc
import itertools
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildrunner.containers.docker.api import DockerApi
from buildrunner.containers.docker.endpoint import Endpoint
from buildrunner.containers.docker.errors import EndlessLine, Refusal, Stopped
from buildrunner.containers.docker.transfers import TransferFailure, transfer_events
from buildrunner.errors import EngineError, EngineUnavailable

Script = Callable[[socket.socket], object]

OK = b"HTTP/1.1 200 OK\r\n"
PING = OK + b"Api-Version: 1.41\r\nConnection: close\r\nContent-Length: 2\r\n\r\nOK"
SMALL = OK + b"Content-Length: 2\r\n\r\nok"


def read_request(conn: socket.socket) -> bytes:
    """One request's head, and its body when a length is given."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = conn.recv(65536)
        if not piece:
            return b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    if b"Content-Length: " in head:
        length = int(head.split(b"Content-Length: ")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += conn.recv(65536)
    return head + b"\r\n\r\n" + body


def answering(*answers: bytes) -> Script:
    """Answer each request with the next of these bytes, then hang up."""

    def script(conn: socket.socket) -> None:
        for answer in answers:
            if not read_request(conn):
                return
            conn.sendall(answer)

    return script


class Peer:
    """Runs the next script for each connection behind the ping's; the last one again and again."""

    def __init__(self, path: Path, *scripts: Script, trusted: bool = True) -> None:
        self._scripts = [answering(PING), *scripts]
        self.connections = 0
        self._threads: list[threading.Thread] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen()
        self._run(self._serve)
        self.api = DockerApi(Endpoint(address=f"unix://{path}", trusted=trusted))

    def _run(self, work: Callable[..., object], *args: object) -> None:
        thread = threading.Thread(target=work, args=args)
        self._threads.append(thread)  # before the answer, after which a test waits for its end
        thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = self._server.accept()
                script = self._scripts[min(self.connections, len(self._scripts) - 1)]
                self.connections += 1
                self._run(self._talk, conn, script)

    def _talk(self, conn: socket.socket, script: Script) -> None:
        with conn, contextlib.suppress(OSError):
            script(conn)

    def wait_for_conversations(self) -> None:
        """Wait until the scripts of all connections are through."""
        for thread in self._threads[1:]:
            thread.join(30)

    def stop(self) -> None:
        self.api.close()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


Talk = Callable[..., Peer]


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    made: list[Peer] = []

    def make(*scripts: Script, trusted: bool = True) -> Peer:
        made.append(Peer(tmp_path / f"{len(made)}.sock", *scripts, trusted=trusted))
        return made[-1]

    yield make
    for peer in made:
        peer.stop()


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%X;name=value\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\nTrailer: x\r\n\r\n"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(cuts=st.lists(st.integers(1, 120), max_size=12), pieces=st.lists(st.binary(min_size=1)))
def test_no_cutting_of_the_stream_changes_an_answer(
    talk: Talk, cuts: list[int], pieces: list[bytes]
) -> None:
    answer = chunked(*pieces)

    def script(conn: socket.socket) -> None:
        read_request(conn)
        start = 0
        for cut in [*sorted(cut for cut in cuts if cut < len(answer)), len(answer)]:
            if cut > start:
                conn.sendall(answer[start:cut])
                start = cut

    assert b"".join(talk(script).api.stream("GET", "/x").pieces()) == b"".join(pieces)


class TestConnections:
    def test_are_kept_for_the_next_request(self, talk: Talk) -> None:
        peer = talk(answering(SMALL, SMALL, SMALL))
        assert [peer.api.send("GET", "/") for _ in range(3)] == [b"ok"] * 3
        assert peer.connections == 2  # with that of the ping

    def test_that_the_peer_closed_while_idle_are_replaced(self, talk: Talk) -> None:
        peer = talk(answering(SMALL))
        for _ in range(3):
            assert peer.api.send("GET", "/") == b"ok"
            peer.wait_for_conversations()

    def test_of_a_half_read_stream_are_not_used_again(self, talk: Talk) -> None:
        peer = talk(answering(chunked(b"a", b"b"), b""))
        pieces = peer.api.stream("GET", "/").pieces()
        assert next(pieces) == b"a"
        pieces.close()  # type: ignore[attr-defined]
        assert b"".join(peer.api.stream("GET", "/").pieces()) == b"ab"

    @pytest.mark.filterwarnings("error")
    def test_of_a_stream_that_nobody_refers_to_are_closed_also_in_a_circle(
        self, talk: Talk
    ) -> None:
        ended = threading.Event()

        def script(conn: socket.socket) -> None:
            read_request(conn)
            conn.sendall(chunked(b"a", b"b")[:-5])
            if conn.recv(1) == b"":
                ended.set()

        pieces = talk(script).api.stream("GET", "/events").pieces()
        assert next(pieces) == b"a"
        circle: list[object] = [pieces]
        circle.append(circle)
        del pieces, circle
        unraisable: list[object] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "unraisablehook", unraisable.append)
            gc.collect()
        assert not unraisable
        assert ended.wait(30)

    def test_can_be_used_again_after_a_close(self, talk: Talk) -> None:
        peer = talk(answering(SMALL), answering(SMALL))
        assert peer.api.send("GET", "/") == b"ok"
        peer.api.close()
        assert peer.api.send("GET", "/") == b"ok"

    def test_many_threads_share_the_client(self, talk: Talk) -> None:
        peer = talk(answering(*[SMALL] * 100))
        said: list[bytes] = []

        def ask() -> None:
            said.extend(peer.api.send("GET", "/") for _ in range(10))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert said == [b"ok"] * 80


class TestUploads:
    def test_are_sent_in_chunks(self, talk: Talk) -> None:
        seen = bytearray()

        def script(conn: socket.socket) -> None:
            while not seen.endswith(b"\r\n0\r\n\r\n"):
                seen.extend(conn.recv(65536))
            conn.sendall(SMALL)

        talk(script).api.send("PUT", "/x", body=[b"ab", b"", b"cd"])
        assert seen.partition(b"\r\n\r\n")[2] == b"4\r\nabcd\r\n0\r\n\r\n"

    def test_that_the_peer_refuses_half_way_still_get_its_answer(self, talk: Talk) -> None:
        def script(conn: socket.socket) -> None:
            conn.recv(1024)
            conn.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone")

        peer = talk(script)
        with pytest.raises(Refusal, match="gone") as caught:
            peer.api.send("PUT", "/x", body=(b"x" * 100_000 for _ in range(100)))
        assert caught.value.status == 404

    @pytest.mark.parametrize("error", [ValueError("no more"), OSError("no more")])
    def test_whose_source_fails_drop_the_connection(self, talk: Talk, error: Exception) -> None:
        def body() -> Iterator[bytes]:
            yield b"x" * 300_000
            raise error

        def script(conn: socket.socket) -> None:
            while conn.recv(65536):
                pass

        with pytest.raises(type(error), match="no more"):
            talk(script).api.send("PUT", "/x", body=body())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        OK + b"X: " + b"y" * 200_000,
        OK + b"Content-Length: 10\r\n\r\nshort",
        OK + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 100_000,
    ],
)
def test_a_peer_that_leaves_the_protocol_is_dropped(talk: Talk, answer: bytes) -> None:
    peer = talk(answering(answer))
    with pytest.raises(EngineUnavailable, match="broke off"):
        peer.api.send("GET", "/")


def test_a_peer_that_dies_between_two_pieces_is_said_to_have_ended(talk: Talk) -> None:
    peer = talk(answering(chunked(b"a")[: -len(b"0\r\nTrailer: x\r\n\r\n")]))
    with pytest.raises(EngineUnavailable, match="its answer is incomplete"):
        peer.api.send("GET", "/")


def test_an_engine_can_not_send_the_client_elsewhere(talk: Talk) -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
    with pytest.raises(Refusal):
        talk(answering(moved)).api.send("GET", "/")


def test_an_answer_without_an_end_is_dropped(talk: Talk) -> None:
    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(OK + b"\r\n")
        while True:
            conn.sendall(b"x" * 1_000_000)

    peer = talk(script)
    with pytest.raises(EngineUnavailable, match="larger than 64 MiB"):
        peer.api.send("GET", "/")
    with pytest.raises(EndlessLine):
        list(peer.api.stream("GET", "/").lines(1 << 20))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"[%b{}]" % (b"{}," * 300_000), "more than 200,000 values"),
        (b'"%b"' % (b"x" * (9 << 20)), "larger than 8 MiB"),
        (b"[" * 100_000 + b"]" * 100_000, "can't be understood: RecursionError"),
    ],
)
def test_an_engine_that_steps_can_replace_takes_little_memory(
    talk: Talk, body: bytes, why: str
) -> None:
    """8 MiB of empty objects would take 500 MiB as values."""
    answer = OK + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    peer = talk(answering(answer), trusted=False)
    with pytest.raises(EngineError, match=why), peer.api.client() as client:
        client.info()


@pytest.mark.parametrize(
    "line",
    [
        '{{"status": "Pushing", "id": "{0}", "progressDetail": {{"current": {0}}}}}',
        '{{"status": "Pushed {0}", "id": "layer"}}',
        '{{"status": "again"}}',
    ],
)
def test_an_engine_reports_no_more_of_a_transfer_than_its_caller_can_keep(line: str) -> None:
    lines = (line.format(number).encode() for number in itertools.count(1))
    with pytest.raises(TransferFailure, match="reports too much"):
        for _ in transfer_events(lines):
            pass


def test_the_head_of_an_answer_is_small(talk: Talk) -> None:
    head = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 60_000) for number in range(50))
    peer = talk(answering(OK + head + b"Content-Length: 2\r\n\r\nok"))
    with pytest.raises(EngineUnavailable, match="head of its answer is larger than 64 KiB"):
        peer.api.stream("GET", "/events")


def test_an_error_is_small(talk: Talk) -> None:
    body = b"x" * (2 << 20)
    answer = b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    with pytest.raises(EngineUnavailable, match="larger than 1 MiB"):
        talk(answering(answer)).api.send("GET", "/")


def test_a_peer_that_never_answers_is_given_up(talk: Talk) -> None:
    peer = talk(lambda conn: conn.recv(65536) and conn.recv(1))
    with pytest.raises(EngineUnavailable, match="did not answer"):
        peer.api.send("GET", "/", timeout_s=0.05)


def test_a_cancel_ends_the_wait_for_an_answer(talk: Talk) -> None:
    cancel = threading.Event()

    def script(conn: socket.socket) -> None:
        read_request(conn)
        cancel.set()
        conn.recv(1)  # until the client hangs up

    peer = talk(script)
    with pytest.raises(Stopped), peer.api.until(cancel) as own:
        own.stream("POST", "/pull", timeout_s=None)


def test_a_stream_is_closed_by_another_thread(talk: Talk) -> None:
    def script(conn: socket.socket) -> None:
        read_request(conn)
        conn.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        conn.recv(1)  # until the client hangs up

    stream = talk(script).api.stream("GET", "/events", timeout_s=None)
    pieces = stream.pieces()
    assert next(pieces) == b"a"
    closer = threading.Thread(target=stream.close)
    closer.start()
    with pytest.raises(EngineUnavailable, match="broke off"):
        next(pieces)
    closer.join()


def test_names_can_not_smuggle_anything_into_a_request(talk: Talk) -> None:
    seen: list[bytes] = []

    def script(conn: socket.socket) -> None:
        seen.append(read_request(conn).partition(b"\r\n")[0])
        conn.sendall(OK + b"Content-Length: 2\r\n\r\n{}")

    with talk(script).api.client() as client:
        client.inspect_image("a b?c&d=é\r\nX: y")
    assert seen == [b"GET /v1.41/images/a%20b%3Fc%26d%3D%C3%A9%0D%0AX:%20y/json HTTP/1.1"]
