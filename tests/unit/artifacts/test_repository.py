"""Where redirects of a package repository lead, and what goes along."""

import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from buildrunner.artifacts.publisher import maven, repository
from buildrunner.artifacts.publisher.repository import Refused, Repository


class Host(ThreadingHTTPServer):
    """Redirects what begins with ``/repo``, keeps the rest.

    Attributes:
        kept: path -> content and ``Authorization``.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.status, self.to = 307, self.url
        self.kept = {}


class _Handler(BaseHTTPRequestHandler):
    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/repo"):
            self._answer(self.server.status, Location=f"{self.server.to}/real{self.path}")
        else:
            self.server.kept[self.path] = content, self.headers["Authorization"]
            self._answer(201)

    def do_GET(self):
        self._answer(self.server.status, Location=f"{self.server.to}/real{self.path}")

    def _answer(self, status, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def running():
    with Host() as host:
        thread = threading.Thread(target=host.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield host
        finally:
            host.shutdown()
            thread.join()


@pytest.mark.parametrize("status", [307, 308])
def test_a_file_goes_where_the_repository_sends_it_with_the_login(status):
    with running() as host:
        host.status = status
        Repository(f"{host.url}/repo", "me", "pw").put("a b/c", b"content")
        assert host.kept == {"/real/repo/a%20b/c": (b"content", "Basic bWU6cHc=")}


def test_another_host_gets_the_file_without_the_login():
    with running() as host, running() as other:
        host.to = other.url
        Repository(f"{host.url}/repo", "me", "pw").put("c", b"content")
        assert other.kept == {"/real/repo/c": (b"content", None)}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("v2/team/app/manifests", "sha256-1.att"),
        ("v2", "team/app/manifests/sha256-1.att"),
        ("repository/v2/app/m%61nifests", "one"),
        ("v2/app/blobs/uploads", "1"),
    ],
)
def test_no_file_is_put_where_a_registry_has_images(path, name):
    """With a login for the registry, it could be taken for an attestation of an image."""
    with running() as host:
        with pytest.raises(Refused, match="an address of images"):
            Repository(f"{host.url}/{path}", "me", "pw").put(name, b"content")
        assert host.kept == {}


@contextmanager
def saying(*answers):
    """A server that gives these answers, one each, as they are; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for answer in answers:
                with listener.accept()[0] as peer:
                    with peer.makefile("rb") as requested:
                        while requested.readline().strip():
                            pass
                    peer.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/repo"
        thread.join()


CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<metadata>"
NO_HTTP = b"SSH-2.0-OpenSSH_9.2\r\n"
CHUNKS_CUT = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole"


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(repository, "_FIRST_WAIT_S", 0.001)


def test_an_answer_that_breaks_off_is_asked_for_again(hasty, capsys):
    with saying(CUT, NO_HTTP, CHUNKS_CUT, WHOLE) as url:
        assert Repository(url, "", "").get("x") == b"whole"
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said] == [
        f"its answer breaks off, or is no HTTP ({kind})"
        for kind in ("IncompleteRead", "BadStatusLine", "IncompleteRead")
    ]


def test_answers_that_all_break_off_are_one_sentence(hasty):
    with saying(*[CUT] * 4) as url, pytest.raises(Refused) as caught:
        Repository(url, "", "").get("x")
    assert str(caught.value) == (
        f"{url} can't be reached: its answer breaks off, or is no HTTP (IncompleteRead)"
    )


def test_an_answer_without_end_is_not_read_to_it(hasty, monkeypatch):
    monkeypatch.setattr(repository, "_LARGEST_ANSWER", 4)
    with saying(WHOLE) as url, pytest.raises(Refused, match="answers x with more than"):
        Repository(url, "", "").get("x")


def test_a_page_in_the_place_of_a_list_of_versions_is_not_put_back(hasty):
    page = b"<html><body>Please log in</body></html>"
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(page), page)
    with saying(answer) as url:
        old = Repository(url, "", "").get("g/a/maven-metadata.xml")
    with pytest.raises(Refused, match=r"maven-metadata\.xml of a is none: it begins with <html>"):
        maven._metadata(old, "g", "a", "1.0")


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_would_lose_the_file_is_an_error(status):
    with running() as host:
        host.status = status
        with pytest.raises(Refused, match=rf"HTTP {status}, a redirect: name the address"):
            Repository(f"{host.url}/repo", "me", "pw").put("c", b"content")
        assert host.kept == {}


def test_a_circle_of_redirects_ends():
    with running() as host, pytest.raises(Refused, match=r"HTTP 307, a redirect: [^\n]*$"):
        Repository(host.url, "me", "pw").get("c")


def test_a_redirect_to_another_protocol_is_not_followed():
    with running() as host:
        host.to = "ftp://127.0.0.1"
        with pytest.raises(Refused, match="HTTP 307, a redirect"):
            Repository(f"{host.url}/repo", "", "").put("c", b"content")
