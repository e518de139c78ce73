"""The client against a real server, over a network that fails: no byte lost, none repeated."""

import hashlib
import io
import itertools
import json
import random
import socket
import ssl
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from buildrunner.client.client import MissingBlobs, ServerClient, checked_url
from buildrunner.client.http import _refusal, _trust
from buildrunner.client.stream import EventPiece, LogPiece, StateChange, StreamEnd
from buildrunner.engine.events import StepStarted
from buildrunner.errors import (
    AuthError,
    Conflict,
    FilterError,
    NotFound,
    ServerError,
    ServerUnavailable,
    UsageError,
)
from tests.fixtures_google import write_certificate
from tests.log_servers import PROJECT, CuttingProxy, log_server

STEPS = {"steps": [{"name": "busybox", "args": ["true"]}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with log_server(str(tmp_path_factory.mktemp("server"))) as server:
        yield server


@pytest.fixture
def client(server):
    client = ServerClient(server.url, project=PROJECT, pause=lambda _: None)
    yield client
    client.close()


@pytest.fixture
def cutting(server):
    made = []

    def make(budgets):
        proxy = CuttingProxy(server.port, budgets)
        client = ServerClient(proxy.url, project=PROJECT, pause=lambda _: None)
        made.append((proxy, client))
        return proxy, client

    yield make
    for proxy, client in made:
        client.close()
        proxy.close()


def lines_of(chance, count):
    for number in range(count):
        yield b"Step #0: %d %s\xe2\x80\xa8\xff\r\n" % (number, b"x" * chance.randrange(300))


def log_of(items):
    log, sequences = b"", []
    for item in items:
        if isinstance(item, LogPiece):
            assert item.offset == len(log)
            log += item.data
        if isinstance(item, EventPiece):
            sequences.append(item.sequence)
    return log, sequences, item


@pytest.mark.parametrize("seed", range(4))
def test_a_connection_that_is_cut_again_and_again_loses_and_repeats_nothing(server, cutting, seed):
    chance = random.Random(seed)
    build = server.build(f"cut-{seed}").begin()
    budgets = (chance.randrange(300, 60_000) for _ in itertools.count())
    proxy, client = cutting(budgets)
    expected = b"".join(lines_of(chance, 3000))

    def write():
        rest, step = expected, 0
        while rest:
            size = chance.randrange(1, 9000)
            build.write(rest[:size])
            rest = rest[size:]
            build.events.on_event(StepStarted(at=datetime.now(UTC), step=step))
            step += 1
        build.end()

    writer = threading.Thread(target=write)
    writer.start()
    losses = []
    log, sequences, last = log_of(
        client.follow(build.id, events=0, on_lost=losses.append, wait_limit_s=60)
    )
    writer.join()
    assert log == expected
    assert sequences == list(range(1, len(sequences) + 1))
    assert last == StreamEnd("SUCCESS")
    assert proxy.cuts > 10
    assert losses


def test_a_server_that_stops_and_starts_again_loses_and_repeats_nothing(tmp_path):
    with log_server(str(tmp_path)) as server:
        build = server.build("restarted").begin()
        client = ServerClient(server.url, project=PROJECT)
        seen = threading.Semaphore(0)
        expected = b"".join(lines_of(random.Random(1), 50))
        result = []

        def follow():
            log = b""
            for item in client.follow(build.id):
                if isinstance(item, LogPiece):
                    assert item.offset == len(log)
                    log += item.data
                    seen.release()
            result.append(log)

        follower = threading.Thread(target=follow)
        follower.start()
        build.write(expected[:1000])
        seen.acquire()
        server.stop()
        build.write(expected[1000:3000])
        server.start()
        seen.acquire()
        build.write(expected[3000:])
        build.end()
        follower.join()
        client.close()
        assert result == [expected]


def test_a_stream_begins_where_it_is_told(server, client):
    build = server.build("from-offset").begin()
    build.write(b"one\ntwo\n")
    build.end()
    items = list(client.follow(build.id, offset=4))
    assert items == [
        StateChange("SUCCESS", None),
        LogPiece(4, b"two\n"),
        StreamEnd("SUCCESS"),
    ]


def test_a_stream_can_be_stopped(server, client):
    build = server.build("stopped").begin()
    stop = threading.Event()
    build.write(b"x\n")
    items = []
    for item in client.follow(build.id, stop=stop):
        items.append(item)
        if isinstance(item, LogPiece):
            stop.set()
            build.write(b"y\n")
    assert items[-1] == LogPiece(0, b"x\n")
    build.end()


def test_a_server_that_stays_away_is_given_up(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = ServerClient(f"http://127.0.0.1:{port}", pause=lambda _: None)
    with pytest.raises(ServerUnavailable, match="does not answer"):
        list(client.follow("b", wait_limit_s=0.1))
    with pytest.raises(ServerUnavailable, match="does not answer") as caught:
        client.get_build("b")
    assert "check that it runs" in caught.value.hint
    client.close()


def test_a_whole_log_is_read_over_a_connection_that_is_cut(server, cutting):
    build = server.build("read").begin()
    expected = b"".join(lines_of(random.Random(5), 3000))
    build.write(expected)
    build.end()
    chance = random.Random(9)
    proxy, client = cutting(chance.randrange(2000, 200_000) for _ in itertools.count())
    assert b"".join(client.read_log("read")) == expected
    assert proxy.cuts > 2


def test_a_build_is_made_once_however_often_it_is_asked_for(server, cutting):
    # The first answers are cut off behind the request: the client can't know that it arrived.
    proxy, client = cutting(itertools.chain([1, 1, 1], itertools.repeat(1 << 30)))
    build = client.create_build({**STEPS, "tags": ["once"]}, request_id="r1")
    assert proxy.cuts == 3
    assert build["status"] == "QUEUED"
    assert [one["id"] for one in client.list_builds(filter='tags="once"')] == [build["id"]]


def test_builds_are_made_listed_found_and_cancelled(client):
    ids = [
        client.create_build({**STEPS, "tags": ["few"]}, request_id=f"few-{n}")["id"]
        for n in range(3)
    ]
    listed = [one["id"] for one in client.list_builds(filter='tags="few"', limit=2)]
    assert listed == ids[:0:-1]
    far = client.create_build(STEPS, request_id="far", location="europe-west1")["id"]
    listed = client.list_builds(location="europe-west1", page_size=1)
    assert [one["id"] for one in listed] == [far]
    listed = client.list_builds(filter='tags="few"', location="global", page_size=1)
    assert [one["id"] for one in listed] == ids[::-1]
    assert client.find_build(ids[0][:10])["id"] == ids[0]
    assert client.cancel_build(ids[0])["status"] == "CANCELLED"
    with pytest.raises(Conflict, match=r"\S"):
        client.cancel_build(ids[0])
    with pytest.raises(Conflict, match=r"\S"):
        client.decide_build(ids[1], approved=True)
    again = client.retry_build(ids[0])
    assert again["id"] not in ids
    assert again["tags"] == ["few"]
    assert client.why_waiting(ids[1])["text"]


def test_what_the_server_refuses_is_a_sentence(server, client):
    with pytest.raises(NotFound):
        client.get_build("nobody")
    with pytest.raises(NotFound, match="no build"):
        client.find_build("zzz")
    with pytest.raises(UsageError, match="steps"):
        client.create_build({"steps": []}, request_id="none")
    with pytest.raises(FilterError):
        list(client.list_builds(filter="no such thing ="))


def test_a_token_is_needed_and_told(tmp_path):
    with log_server(str(tmp_path), auth=True) as server:
        for token in ("", "nonsense"):
            client = ServerClient(server.url, token=token, project=PROJECT)
            with pytest.raises(AuthError) as caught:
                client.whoami()
            assert "buildrunner login" in caught.value.hint
            client.close()
        client = ServerClient(server.url, token=server.token("read"), project=PROJECT)
        assert client.whoami()["scopes"] == ["read"]
        client.close()


def test_sources_travel_once(server, cutting):
    contents = [random.Random(n).randbytes(40_000) for n in range(5)]
    sums = [hashlib.sha256(content).hexdigest() for content in contents]
    _, client = cutting(itertools.chain([1, 1], itertools.repeat(1 << 30)))
    assert client.sources.missing_blobs(sums) == set(sums)
    for content, sha256 in zip(contents[:4], sums, strict=False):
        counted = []
        client.sources.upload_blob(sha256, io.BytesIO(content), len(content), counted.append)
        assert sum(counted) == len(content)
    assert client.sources.missing_blobs(sums) == {sums[4]}
    files = [
        {"path": f"f{n}", "mode": 0o644, "sha256": one, "size": 40_000, "mtimeNs": 0}
        for n, one in enumerate(sums)
    ]
    with pytest.raises(MissingBlobs) as caught:
        client.sources.make_source({"files": files})
    assert caught.value.sha256s == (sums[4],)
    source = client.sources.make_source({"files": files[:4]})
    assert source["storageSource"]["bucket"] == "buildrunner-sources"
    with pytest.raises(UsageError):
        client.sources.upload_blob(sums[4], io.BytesIO(b"something else"), 14, lambda _: None)


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://x", "http://", "http://h:x", "/x"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(UsageError, match="not the address of a server"):
        checked_url(url)


def test_a_server_with_a_certificate_of_ones_own_is_trusted_when_told(tmp_path):
    certificate = tmp_path / "server.pem"
    write_certificate(certificate)
    with log_server(str(tmp_path), certificate=str(certificate)) as server:
        build = server.build("tls").begin()
        build.write(b"over tls\n")
        build.end()
        client = ServerClient(server.url, project=PROJECT, ca_file=str(certificate))
        assert list(client.follow("tls"))[1:] == [LogPiece(0, b"over tls\n"), StreamEnd("SUCCESS")]
        assert b"".join(client.read_log("tls")) == b"over tls\n"
        client.close()
        stranger = ServerClient(server.url, project=PROJECT, pause=lambda _: None)
        with pytest.raises(ServerUnavailable, match="certificate verify failed") as caught:
            stranger.get_build("tls")
        assert "--ca-file" in caught.value.hint
        stranger.close()


def test_a_connection_without_tls_reads_no_certificates_and_trusts_none():
    context = _trust("", is_used=False)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.get_ca_certs() == []
    assert _trust("", is_used=True) is _trust("", is_used=True)


def test_a_ca_file_that_holds_no_certificate_is_a_sentence(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(UsageError, match="holds no certificates"):
            ServerClient("https://localhost", ca_file=str(tmp_path / name))


def refused(code, status="", **more):
    return _refusal(
        "http://s", code, json.dumps({"error": {"message": "m", "status": status, **more}})
    )


@pytest.mark.parametrize(
    ("error", "kind", "exit_code"),
    [
        (refused(401, "UNAUTHENTICATED"), AuthError, 2),
        (refused(403, "PERMISSION_DENIED"), AuthError, 2),
        (refused(404, "NOT_FOUND"), NotFound, 2),
        (refused(409, "ABORTED"), Conflict, 2),
        (refused(400, "FAILED_PRECONDITION"), Conflict, 2),
        (refused(400, "INVALID_ARGUMENT"), UsageError, 2),
        (
            refused(400, "INVALID_ARGUMENT", details=[{"fieldViolations": [{"field": "filter"}]}]),
            FilterError,
            2,
        ),
        (
            refused(400, "INVALID_ARGUMENT", details=[{"fieldViolations": [{"field": "steps"}]}]),
            UsageError,
            2,
        ),
        (refused(413, "INVALID_ARGUMENT"), UsageError, 2),
        (refused(500, "INTERNAL"), ServerUnavailable, 3),
        (refused(501, "UNIMPLEMENTED"), ServerError, 3),
        (refused(503, "UNAVAILABLE"), ServerUnavailable, 3),
        (_refusal("http://s", 502, "<html>Bad gateway</html>"), ServerUnavailable, 3),
        (_refusal("http://s", 404, "not here"), NotFound, 2),
    ],
)
def test_each_refusal_has_its_error(error, kind, exit_code):
    assert type(error) is kind
    assert error.exit_code == exit_code
    assert str(error)


def test_something_else_that_answers_is_no_server(tmp_path):
    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>hello</html>")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as web:
        serving = threading.Thread(target=web.serve_forever, args=(0.02,))
        serving.start()
        client = ServerClient(f"http://127.0.0.1:{web.server_port}", pause=lambda _: None)
        try:
            with pytest.raises(ServerUnavailable, match="does not answer as a buildrunner server"):
                client.whoami()
            with pytest.raises(ServerUnavailable, match="no stream of events"):
                list(client.follow("b", wait_limit_s=0.1))
        finally:
            client.close()
            web.shutdown()
            serving.join()
