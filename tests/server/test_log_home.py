"""Servers of one database answer for each other's logs."""

import contextlib
import json
import socket
import threading

import httpx
import pytest

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.logs.files.copies import log_piece
from buildrunner.logs.files.log_file import LogFileSink
from buildrunner.provenance.stored import store_attestations
from buildrunner.server.http.log_home import PASSED_ON
from buildrunner.store.model.builds import ClaimScope, KnownServer
from tests.conftest import DEADLINE_S
from tests.log_servers import PROJECT, log_server, now
from tests.server.test_pages import csrf_of

TEXT = b"FETCHSOURCE\nBUILD\n" + b"".join(b"Step #0: line %d\n" % n for n in range(30_000))


def known(server):
    one = KnownServer(name=server.settings.worker, url=server.url, started_at=now())
    server.store.servers.put(one)


@pytest.fixture
def home(tmp_path):
    with log_server(str(tmp_path / "home"), worker="home") as server:
        known(server)
        yield server


@pytest.fixture
def other(tmp_path, home):
    with log_server(str(tmp_path / "other"), worker="other", database_of=home.folder) as server:
        known(server)
        yield server


@pytest.fixture
def ended(home):
    build = home.build("ended", logsBucket="gs://logs").begin()
    build.write(TEXT)
    store_attestations(build.folder, [b'{"payload": ""}'])
    return build.end()


@pytest.mark.parametrize(
    "path",
    ["/log", "/log/lines?start=-5", "/log/steps", "/log/search?q=7", "/events", "/provenance"],
)
def test_another_server_answers_for_a_log_as_its_own_server_does(home, other, ended, path):
    answers = [
        httpx.get(f"{server.url}{ended.path}{path}", timeout=DEADLINE_S) for server in (home, other)
    ]
    assert {answer.status_code for answer in answers} == {200}
    assert answers[0].content == answers[1].content
    assert answers[0].headers["content-type"] == answers[1].headers["content-type"]


def test_the_log_of_a_lost_worker_s_build_stays_with_the_server_that_took_it(home, other):
    written = home.build("lost")
    queue, scope = home.store.queue, ClaimScope(servers=("home",))
    _, lease = queue.claim("worker:w1/x", now=now(), lease_s=1, limit=1, scope=scope)
    queue.set_process(lease, "1:1")
    log = LogFileSink(written.folder)
    log.write(LogChunk(TEXT, None, now()))
    log.close()
    stored, taken = other.store.queue.claim_again(
        "lost", "other", now=now(), lease_s=30, instead_of=lease.fence
    )
    other.store.queue.record(taken, {**stored.document, "status": "INTERNAL_ERROR"})
    assert home.store.servers.log_home("lost") == "home"
    answers = [
        httpx.get(f"{server.url}{written.path}/log", timeout=DEADLINE_S) for server in (home, other)
    ]
    assert [answer.content for answer in answers] == [TEXT, TEXT]


def test_ranges_and_heads_are_passed_on(other, ended):
    part = httpx.get(
        f"{other.url}/logs/log-ended.txt", headers={"Range": "bytes=7-20"}, timeout=DEADLINE_S
    )
    assert (part.status_code, part.content) == (206, TEXT[7:21])
    head = httpx.head(f"{other.url}{ended.path}/log", timeout=DEADLINE_S)
    assert (head.status_code, int(head.headers["content-length"])) == (200, len(TEXT))


def test_the_page_of_the_log_is_the_same_on_both(home, other, ended):
    pages = [
        httpx.get(f"{server.url}/builds/p/ended/log", timeout=DEADLINE_S)
        for server in (home, other)
    ]
    assert pages[0].status_code == 200
    assert "line 29999" in pages[1].text
    assert pages[0].text == pages[1].text


def test_a_running_build_is_seen_through_another_server_as_it_goes(home, other):
    build = home.build("live").begin()
    texts, first = [], threading.Event()

    def watch():
        url = f"{other.url}{build.path}/log/stream?offset=0"
        with httpx.stream("GET", url, timeout=30) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: ") and "text" in (data := json.loads(line[6:])):
                    texts.append(data["text"])
                    first.set()

    viewer = threading.Thread(target=watch)
    viewer.start()
    build.write(b"first\n")
    assert first.wait(30)  # while it runs
    build.write(b"second\n")
    build.end()
    viewer.join(30)
    assert "".join(texts) == "first\nsecond\n"


def test_a_stranger_has_nothing_passed_on_to_the_routes_of_workers(other, ended):
    head = (
        f"PUT /worker/v1/builds/{ended.id}/log?fence=1&offset=0 HTTP/1.1\r\n"
        "Host: x\r\nContent-Length: 1000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", httpx.URL(other.url).port), 30) as connection:
        connection.sendall(head.encode())  # and no body
        assert connection.recv(100).split()[1] in (b"401", b"403")


def test_headers_of_any_bytes_are_passed_on(other, ended):
    headers = [(b"Cookie", b"a=\xff"), (b"X-A", b"\xe9"), (b"X-A", b"2")]
    answer = httpx.get(f"{other.url}{ended.path}/log", headers=headers, timeout=DEADLINE_S)
    assert (answer.status_code, answer.content) == (200, TEXT)


def test_a_server_that_does_not_answer_is_named(home, other, ended):
    home.stop()
    answer = httpx.get(f"{other.url}{ended.path}/log", timeout=DEADLINE_S)
    assert answer.status_code == 503
    message = answer.json()["error"]["message"]
    assert message == "the log of build ended is on the server home, which does not answer"
    assert httpx.get(f"{other.url}/builds/p/ended", timeout=DEADLINE_S).status_code == 200
    home.start()


def test_a_whole_build_is_retried_without_the_server_that_has_its_log(home, other, ended):
    home.stop()
    retry = f"{other.url}/v1/projects/{PROJECT}/builds/{ended.id}:retry"
    resumed = httpx.post(retry, params={"fromStep": "0"}, timeout=DEADLINE_S)
    assert (resumed.status_code, "is not kept" in resumed.text) == (400, True)
    assert httpx.post(retry, timeout=DEADLINE_S).status_code == 200
    home.start()


def test_a_retry_that_breaks_off_is_not_begun_again(home, other, ended):
    def nothing(connection):
        connection.recv(65536)
        connection.close()

    with answering(nothing) as url:
        home.store.servers.put(KnownServer(name="home", url=url, started_at=now()))
        retry = f"{other.url}/v1/projects/{PROJECT}/builds/{ended.id}:retry"
        answer = httpx.post(retry, timeout=DEADLINE_S)
    assert answer.status_code == 504
    message = answer.json()["error"]["message"]
    assert message == f"the server {url} has not answered; look whether it has retried the build"
    assert len(home.store.builds.page(PROJECT).builds) == 1


def test_a_request_is_passed_on_once(home, other, ended):
    home.store.servers.put(KnownServer(name="home", url=other.url, started_at=now()))
    answer = httpx.get(f"{other.url}{ended.path}/log", timeout=DEADLINE_S)
    assert answer.status_code == 503
    direct = httpx.get(f"{home.url}{ended.path}/log", headers={PASSED_ON: "1"}, timeout=DEADLINE_S)
    assert direct.content == TEXT


def test_who_may_not_read_here_may_not_read_there(tmp_path):
    with (
        log_server(str(tmp_path / "home"), worker="home", auth=True) as home,
        log_server(
            str(tmp_path / "other"), worker="other", database_of=home.folder, auth=True
        ) as other,
    ):
        known(home), known(other)
        build = home.build("b").begin()
        build.write(b"secret\n")
        build.end()
        url = f"{other.url}{build.path}/log"
        assert (
            httpx.get(url, timeout=DEADLINE_S).status_code
            == httpx.get(f"{home.url}{build.path}/log", timeout=DEADLINE_S).status_code
            == 403
        )
        for project, status in (("q", 403), ("p", 200)):
            bearer = {"Authorization": f"Bearer {home.token('read', projects=(project,))}"}
            assert httpx.get(url, headers=bearer, timeout=DEADLINE_S).status_code == status


def test_whoever_signs_in_on_one_server_sends_its_forms_to_any(tmp_path):
    with (
        log_server(str(tmp_path / "home"), worker="home", auth=True) as home,
        log_server(
            str(tmp_path / "other"), worker="other", database_of=home.folder, auth=True
        ) as other,
        httpx.Client(timeout=DEADLINE_S) as browser,
    ):
        known(home), known(other)
        home.build("b")
        credentials = {"token": home.token("admin"), "next": "/builds"}
        assert browser.post(f"{home.url}/login", data=credentials).status_code == 303
        page = f"/builds/{PROJECT}/b"
        form = {"csrf": csrf_of(browser.get(f"{home.url}{page}"))}
        assert browser.post(f"{other.url}{page}/cancel", data=form).status_code == 303
        assert home.store.builds.find("b").status == "CANCELLED"


def test_what_a_worker_sends_goes_to_the_server_that_has_the_log(home, other, tmp_path):
    home.build("remote")
    client = {"headers": {"Authorization": f"Bearer {home.token('worker')}"}, "timeout": 30}
    routes = f"{other.url}/worker/v1/builds"
    requested = httpx.post(f"{home.url}/worker/v1/builds:claim", json={"worker": "w"}, **client)
    lease = {"fence": requested.json()["fence"]}
    begin = {**lease, "incarnation": "1:1"}
    assert httpx.post(f"{routes}/remote:begin", params=begin, **client).status_code == 200
    sink = LogFileSink(str(tmp_path / "sent"))
    sink.write(LogChunk(TEXT, None, now()))
    sink.close()
    piece, end = log_piece(str(tmp_path / "sent"), 0)
    begun = {**lease, "offset": 0}
    sent = httpx.put(f"{routes}/remote/log", params=begun, content=piece, **client)
    assert sent.json() == {"offset": end}
    again = httpx.put(f"{routes}/remote/log", params=begun, content=piece, **client)
    assert (again.status_code, again.json()["error"]["details"]) == (409, [{"offset": end}])
    assert (tmp_path / "home" / "logs" / "remote" / "log.txt").read_bytes() == TEXT
    assert not (tmp_path / "other" / "logs").exists()
    home.stop()
    late = httpx.put(f"{routes}/remote/log", params={**lease, "offset": end}, **client)
    assert late.status_code == 503
    assert not (tmp_path / "other" / "logs").exists()
    assert not other.app.state.under_way  # a request that is passed on ends here, too
    home.start()


def test_a_worker_of_any_server_gets_a_build_whose_files_are_on_another_one(home, other):
    home.build("tied", only_worker="home")
    client = {"headers": {"Authorization": f"Bearer {home.token('worker')}"}, "timeout": 30}
    routes = f"{other.url}/worker/v1/builds"
    claimed = httpx.post(f"{routes}:claim", json={"worker": "w"}, **client)
    assert claimed.json()["document"]["id"] == "tied"
    begin = {"fence": claimed.json()["fence"], "incarnation": "1:1"}
    assert httpx.post(f"{routes}/tied:begin", params=begin, **client).status_code == 200
    assert home.store.servers.log_home("tied") == "home"


def test_a_worker_gets_no_build_whose_files_are_on_a_server_that_does_not_answer(home, other):
    home.build("tied", only_worker="home")
    home.stop()
    client = {"headers": {"Authorization": f"Bearer {home.token('worker')}"}, "timeout": 30}
    url = f"{other.url}/worker/v1/builds:claim"
    assert httpx.post(url, json={"worker": "w"}, **client).status_code == 204
    home.start()


def test_an_answer_that_breaks_off_does_not_look_whole(tmp_path, home, other, ended):
    def half(connection):
        connection.recv(65536)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n"
        connection.sendall(head + b"Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n5\r\nhalf\n\r\n")
        connection.close()

    with answering(half) as url:
        home.store.servers.put(KnownServer(name="home", url=url, started_at=now()))
        with httpx.stream("GET", f"{other.url}{ended.path}/log", timeout=DEADLINE_S) as answer:
            assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
            with pytest.raises(httpx.RemoteProtocolError):
                answer.read()


@contextlib.contextmanager
def answering(answer):
    """A server that answers one connection in its own way."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listening.accept()
        answer(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    thread.join()
    listening.close()
