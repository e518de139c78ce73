"""Where redirects of a package repository lead, and what goes along."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

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
