"""Requests of many tiny pieces, which take long to parse, hold up nobody else's requests."""

from __future__ import annotations

import hashlib
import hmac
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h11
import pytest

from buildrunner.server.http.listener import (
    CHUNK_BYTES,
    FREE_CHUNKS,
    HEADER_FIELDS,
    QUERY_PARAMETERS,
    READ_BYTES,
)
from tests.api_server import ApiServer, api_server

MIB = 1 << 20
SECRET = "of-the-hook"
PUSH = b'{"ref": "refs/heads/main"}'
CHUNKED = "Transfer-Encoding: chunked"
TINY = b"1\r\na\r\n"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path, auth=True) as running:
        running.secrets["hooks-github"] = SECRET
        yield running


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join((line, "Host: localhost", *headers)).encode() + b"\r\n\r\n"


@contextmanager
def connected(server: ApiServer) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        yield client


def answer_of(client: socket.socket) -> bytes:
    """Read an answer to its end, which is also that of the connection."""
    parts = []
    try:
        while part := client.recv(65_536):
            parts.append(part)
    except ConnectionResetError:  # the server did not read what the client went on to send
        pass
    return b"".join(parts)


def signed(body: bytes) -> tuple[str, ...]:
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    return ("X-GitHub-Event: push", f"X-Hub-Signature-256: sha256={signature}")


def in_chunks(body: bytes, size: int) -> bytes:
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def answer_to(server: ApiServer, body: bytes, size: int) -> bytes:
    begun = head("POST /hooks/github HTTP/1.1", *signed(body), CHUNKED, "Connection: close")
    with connected(server) as client:
        client.sendall(begun + in_chunks(body, size))
        return answer_of(client)


def test_a_body_of_many_tiny_chunks_is_refused(server: ApiServer) -> None:
    with connected(server) as client:
        client.sendall(head("POST /hooks/github HTTP/1.1", *signed(PUSH), CHUNKED))
        client.sendall(TINY * (FREE_CHUNKS + 1))
        answer = answer_of(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"the chunks of the body are too small" in answer


def test_a_body_of_few_tiny_chunks_or_of_many_others_is_read(server: ApiServer) -> None:
    assert answer_to(server, PUSH, 1).startswith(b"HTTP/1.1 200 ")
    large = PUSH + b" " * (4 * FREE_CHUNKS * CHUNK_BYTES)
    assert answer_to(server, large, CHUNK_BYTES).startswith(b"HTTP/1.1 200 ")


def test_a_refused_body_of_tiny_chunks_is_not_read_to_its_end(
    server: ApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    with connected(server) as client:
        client.sendall(head("POST /nothing HTTP/1.1", CHUNKED))
        answer = client.recv(65_536)
        while not answer.endswith(b"}}"):
            answer += client.recv(65_536)
        assert answer.startswith(b"HTTP/1.1 404 ")
        client.sendall(TINY * (FREE_CHUNKS + 1))
        assert answer_of(client) == b""
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("body", [TINY * (FREE_CHUNKS + 1), b"z\r\n"])
def test_a_request_with_an_invalid_body_in_one_piece_leaves_no_errors_in_the_log(
    server: ApiServer, caplog: pytest.LogCaptureFixture, body: bytes
) -> None:
    with connected(server) as client:
        client.sendall(head("POST /nothing HTTP/1.1", CHUNKED) + body)
        assert answer_of(client).startswith(b"HTTP/1.1 400 ")
    assert server.http.get("/healthz").status_code == 200
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("count", [HEADER_FIELDS, HEADER_FIELDS + 1])
def test_a_request_of_too_many_header_fields_is_refused(server: ApiServer, count: int) -> None:
    fields = ["Connection: close", *(f"a{number}: b" for number in range(count - 2))]
    with connected(server) as client:
        client.sendall(head("GET /healthz HTTP/1.1", *fields))
        answer = answer_of(client)
    refused = b"HTTP/1.1 400 " in answer and b"too many header fields" in answer
    assert refused if count > HEADER_FIELDS else answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("count", [QUERY_PARAMETERS, QUERY_PARAMETERS + 1])
def test_a_query_of_too_many_parameters_is_refused(server: ApiServer, count: int) -> None:
    answer = server.http.get("/login?" + "a=&" * (count - 1) + "a=")
    refused = answer.status_code == 400 and "too many parameters" in answer.text
    assert refused if count > QUERY_PARAMETERS else answer.status_code == 200


def test_a_form_of_too_many_fields_is_refused(server: ApiServer) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = server.http.post("/login", content=b"a=b&" * 201, headers=form)
    assert answer.status_code == 400
    assert "at most 200 fields" in answer.text


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What the server reads."""
    noted: list[bytes] = []
    received = h11.Connection.receive_data

    def noting(connection: h11.Connection, data: bytes) -> None:
        noted.append(data)
        received(connection, data)

    monkeypatch.setattr(h11.Connection, "receive_data", noting)
    return noted


def test_what_a_client_sends_ahead_of_its_answer_takes_one_small_read(
    server: ApiServer, reads: list[bytes]
) -> None:
    with connected(server) as client:
        client.sendall(head("GET /healthz HTTP/1.1", "Connection: close") + b"a" * MIB)
        answer_of(client)
    assert max(map(len, reads)) <= READ_BYTES


def test_a_client_sends_no_more_ahead_while_a_route_waits_for_it(
    tmp_path: Path, reads: list[bytes]
) -> None:
    with api_server(tmp_path) as server, connected(server) as client:
        stream = f"/buildrunner/v1/projects/p/builds/{server.create()}/log/stream"
        client.sendall(head(f"GET {stream} HTTP/1.1") + b"a" * (MIB // 4))
        while b"event: state" not in client.recv(4096):
            pass
        assert server.http.get("/healthz").status_code == 200
        assert sum(data.count(b"a" * 1024) for data in reads) <= READ_BYTES // 1024


def test_a_head_that_is_too_large_is_refused_also_if_it_comes_in_one_piece(
    server: ApiServer,
) -> None:
    with connected(server) as client:
        client.sendall(head("GET /healthz HTTP/1.1", "a: " + "b" * 70_000))
        assert answer_of(client).startswith(b"HTTP/1.1 400 ")


def test_a_body_with_too_many_trailers_is_refused(server: ApiServer) -> None:
    with connected(server) as client:
        client.sendall(head("POST /hooks/github HTTP/1.1", *signed(PUSH), CHUNKED))
        client.sendall(b"0\r\n" + b"a:\r\n" * (HEADER_FIELDS + 2) + b"\r\n")
        assert answer_of(client).startswith(b"HTTP/1.1 400 ")
