"""The HTTP client against a peer that says exactly what a test wants, byte by byte."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.containers.docker.http import HttpClient, Stopped, quoted
from buildrunner.errors import EngineUnavailable

Script = Callable[[socket.socket], None]

OK = b"HTTP/1.1 200 OK\r\n"


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


class Peer:
    """Runs a script for each new connection; the script talks on the far end."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self.connections = 0
        self._threads: list[threading.Thread] = []

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        script = self._scripts[min(self.connections, len(self._scripts) - 1)]
        self.connections += 1

        def talk() -> None:
            with theirs:
                script(theirs)

        thread = threading.Thread(target=talk)
        thread.start()
        self._threads.append(thread)
        return ours

    def join(self) -> None:
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive()


def answering(*answers: bytes) -> Script:
    """Answer each request with the next of these bytes, then hang up."""

    def script(conn: socket.socket) -> None:
        for answer in answers:
            if not read_request(conn):
                return
            conn.sendall(answer)

    return script


@pytest.fixture
def talk() -> Iterator[Callable[..., tuple[HttpClient, Peer]]]:
    made: list[tuple[HttpClient, Peer]] = []

    def make(*scripts: Script) -> tuple[HttpClient, Peer]:
        peer = Peer(*scripts)
        made.append((HttpClient(peer.connect), peer))
        return made[-1]

    yield make
    for client, peer in made:
        client.close()
        peer.join()


Talk = Callable[..., tuple[HttpClient, Peer]]


def chunked(*pieces: bytes) -> bytes:
    body = b"".join(b"%X;name=value\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return OK + b"Transfer-Encoding: chunked\r\n\r\n" + body + b"0\r\nTrailer: x\r\n\r\n"


class TestAnswers:
    def test_with_a_length_are_read_to_it(self, talk: Talk) -> None:
        client, _ = talk(answering(OK + b"Content-Length: 5\r\nX-One: 1\r\n\r\nhello"))
        response = client.request("GET", "/")
        assert (response.status, response.headers["x-one"], response.body()) == (200, "1", b"hello")

    def test_in_chunks_are_put_together(self, talk: Talk) -> None:
        client, _ = talk(answering(chunked(b"hello ", b"w", b"orld")))
        assert client.request("GET", "/").body() == b"hello world"

    def test_without_a_length_end_with_the_connection(self, talk: Talk) -> None:
        client, peer = talk(answering(OK + b"\r\nall of it"), answering(OK + b"\r\nagain"))
        assert client.request("GET", "/").body() == b"all of it"
        assert client.request("GET", "/").body() == b"again"
        assert peer.connections == 2

    def test_without_a_body_are_complete_at_once(self, talk: Talk) -> None:
        client, _ = talk(answering(b"HTTP/1.1 204 No Content\r\n\r\n"))
        assert client.request("DELETE", "/").body() == b""

    def test_continue_is_not_the_answer(self, talk: Talk) -> None:
        answer = b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nok"
        client, _ = talk(answering(answer))
        assert client.request("POST", "/").body() == b"ok"

    def test_an_upgrade_hands_over_the_stream_with_what_came_early(self, talk: Talk) -> None:
        head = b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\n"
        client, _ = talk(answering(head + b"early"))
        stream = client.request("POST", "/attach").upgraded()
        assert stream.receive(2) + stream.receive(65536) == b"early"
        assert stream.receive() == b""
        stream.close()


@given(cuts=st.lists(st.integers(1, 120), max_size=12), pieces=st.lists(st.binary(min_size=1)))
def test_no_cutting_of_the_stream_changes_an_answer(cuts: list[int], pieces: list[bytes]) -> None:
    answer = chunked(*pieces)

    def script(conn: socket.socket) -> None:
        read_request(conn)
        start = 0
        for cut in [*sorted(cut for cut in cuts if cut < len(answer)), len(answer)]:
            if cut > start:
                conn.sendall(answer[start:cut])
                start = cut

    peer = Peer(script)
    client = HttpClient(peer.connect)
    assert client.request("GET", "/").body() == b"".join(pieces)
    client.close()
    peer.join()


class TestConnections:
    def test_are_kept_for_the_next_request(self, talk: Talk) -> None:
        answer = OK + b"Content-Length: 2\r\n\r\nok"
        client, peer = talk(answering(answer, answer, answer))
        assert [client.request("GET", "/").body() for _ in range(3)] == [b"ok"] * 3
        assert peer.connections == 1

    def test_that_the_peer_closed_while_idle_are_replaced(self, talk: Talk) -> None:
        answer = OK + b"Content-Length: 2\r\n\r\nok"
        client, peer = talk(answering(answer))
        assert client.request("GET", "/").body() == b"ok"
        peer.join()
        assert client.request("GET", "/").body() == b"ok"
        assert peer.connections == 2

    def test_that_are_asked_to_close_are_closed(self, talk: Talk) -> None:
        answer = OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok"
        client, peer = talk(answering(answer, answer))
        assert [client.request("GET", "/").body() for _ in range(2)] == [b"ok"] * 2
        assert peer.connections == 2

    def test_with_a_half_read_answer_are_not_used_again(self, talk: Talk) -> None:
        client, peer = talk(answering(chunked(b"a", b"b"), b""))
        pieces = client.request("GET", "/").pieces()
        assert next(pieces) == b"a"
        pieces.close()  # type: ignore[attr-defined]
        assert client.request("GET", "/").body() == b"ab"
        assert peer.connections == 2

    def test_answers_to_several_requests_may_be_pending(self, talk: Talk) -> None:
        client, peer = talk(answering(OK + b"Content-Length: 1\r\n\r\n1"))
        pending = [client.send("POST", "/wait") for _ in range(3)]
        assert [one.head().body() for one in pending] == [b"1"] * 3
        assert peer.connections == 3


class TestBodies:
    def test_are_sent_with_their_length(self, talk: Talk) -> None:
        seen: list[bytes] = []

        def script(conn: socket.socket) -> None:
            seen.append(read_request(conn))
            conn.sendall(OK + b"Content-Length: 0\r\n\r\n")

        client, _ = talk(script)
        client.request("POST", "/x", body=b"data", headers={"X-A": "b"}).body()
        assert seen == [
            b"POST /x HTTP/1.1\r\nHost: docker\r\nX-A: b\r\nContent-Length: 4\r\n\r\ndata"
        ]

    def test_of_pieces_are_sent_in_chunks(self, talk: Talk) -> None:
        seen = bytearray()

        def script(conn: socket.socket) -> None:
            while not seen.endswith(b"\r\n0\r\n\r\n"):
                seen.extend(conn.recv(65536))
            conn.sendall(OK + b"Content-Length: 0\r\n\r\n")

        client, _ = talk(script)
        client.request("PUT", "/x", body=iter([b"ab", b"", b"cd"])).body()
        assert seen.partition(b"\r\n\r\n")[2] == b"4\r\nabcd\r\n0\r\n\r\n"

    def test_that_the_peer_refuses_half_way_still_get_its_answer(self, talk: Talk) -> None:
        def script(conn: socket.socket) -> None:
            conn.recv(1024)
            conn.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone")

        client, _ = talk(script)
        response = client.request("PUT", "/x", body=(b"x" * 100_000 for _ in range(100)))
        assert (response.status, response.body()) == (404, b"gone")

    def test_that_fail_to_be_made_drop_the_connection(self, talk: Talk) -> None:
        def body() -> Iterator[bytes]:
            yield b"x" * 300_000
            raise ValueError("no more")

        def script(conn: socket.socket) -> None:
            while conn.recv(65536):
                pass

        client, peer = talk(script)
        with pytest.raises(ValueError, match="no more"):
            client.request("PUT", "/x", body=body())
        peer.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        OK + b"X: " + b"y" * 200_000,
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: 1_0\r\n\r\n",
        OK + b"Content-Length: 0x5\r\n\r\nhello",
        OK + b"Content-Length: 10\r\n\r\nshort",
        OK + b"Transfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1" * 10_000,
    ],
)
def test_a_peer_that_leaves_the_protocol_is_dropped(talk: Talk, answer: bytes) -> None:
    client, _ = talk(answering(answer))
    with pytest.raises(EngineUnavailable, match="broke off"):
        client.request("GET", "/").body()


def test_a_peer_that_never_answers_is_given_up(talk: Talk) -> None:
    client, _ = talk(lambda conn: conn.recv(65536) and conn.recv(1) and None)
    with pytest.raises(EngineUnavailable, match="did not answer"):
        client.request("GET", "/", timeout_s=0.05)


def test_a_stop_event_ends_the_wait_for_an_answer(talk: Talk) -> None:
    stop = threading.Event()

    def script(conn: socket.socket) -> None:
        read_request(conn)
        stop.set()
        conn.recv(1)  # until the client hangs up

    client, peer = talk(script)
    pending = client.send("POST", "/pull", stop=stop)
    with pytest.raises(Stopped):
        pending.head()
    peer.join()


def test_names_can_not_smuggle_anything_into_a_request() -> None:
    assert quoted("localhost:5000/a@sha256:1") == "localhost:5000/a@sha256:1"
    assert quoted("a b?c&d=é\r\nX: y") == "a%20b%3Fc%26d%3D%C3%A9%0D%0AX:%20y"
