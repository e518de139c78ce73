"""Package repositories as tests need them: pypiserver from PyPI, verdaccio from npm, and a shelf.

No server for Maven's, Go's and plain files' layouts comes as a Debian or PyPI package; what they
ask of a server is HTTP PUT with a login, which the shelf is.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.conftest import program, started_when, stop

USER, PASSWORD = "publisher", "s3cret-of-packages"
VERDACCIO = {
    "private": True,
    "dependencies": {"verdaccio": "5.33.0"},
    # This part of it asks for node-fetch by a moving tag, which not every mirror has. Debian's npm
    # can override neither a tag nor a prerelease that is not named.
    "overrides": {"verdaccio-audit@13.0.0-next-8.1": "10.2.2"},
}
_VERDACCIO_START = """
const { runServer } = require('verdaccio');
runServer(process.argv[2]).then((server) => server.listen(0, '127.0.0.1', () => {
  console.error(`ready ${server.address().port}`);
}));
"""


_PYPI_START = """
import sys
from wsgiref.simple_server import WSGIRequestHandler, make_server
import pypiserver

folder, *login = sys.argv[1:]
WSGIRequestHandler.log_message = lambda *_: None
app = pypiserver.app(
    roots=[folder], auther=lambda *given: list(given) == login, authenticate=["update"],
    disable_fallback=True,
)
server = make_server("127.0.0.1", 0, app, handler_class=WSGIRequestHandler)
print("ready", server.server_port, file=sys.stderr, flush=True)
server.serve_forever()
"""


class Shelf:
    """A server that keeps what is PUT or POSTed, for those who log in.

    Attributes:
        files: path -> content.
        requests: the first lines of all requests.
        failures: statuses of the next answers to PUT and POST, before anything is kept.
        retry_after: header of these answers.
        cuts: how many PUTs end with the connection, after their head.
    """

    def __init__(
        self, certificate: ssl.SSLContext | None = None, address: str = "127.0.0.1"
    ) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failures: list[int] = []
        self.retry_after = ""
        self.cuts = 0
        shelf = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def parse_request(self) -> bool:
                shelf.requests.append(self.raw_requestline.decode())
                return super().parse_request()

            def do_GET(self) -> None:
                found = shelf.files.get(unquote(self.path))
                self.answer(404 if found is None else 200, found or b"{}")

            def do_PUT(self) -> None:
                if shelf.cuts:
                    shelf.cuts -= 1
                    self.close_connection = True
                    return
                content = self.rfile.read(int(self.headers["Content-Length"]))
                pair = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
                if self.headers["Authorization"] != f"Basic {pair}":
                    self.answer(401, b"{}")
                elif shelf.failures:
                    self.answer(shelf.failures.pop(0), b"{}")
                else:
                    shelf.files[unquote(self.path)] = content
                    self.answer(201, b"{}")

            do_POST = do_PUT  # noqa: N815

            def answer(self, status: int, content: bytes) -> None:
                self.send_response(status)
                if status in (429, 503) and shelf.retry_after:
                    self.send_header("Retry-After", shelf.retry_after)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer((address, 0), Handler)
        scheme = "http"
        if certificate is not None:
            scheme = "https"
            self._server.socket = certificate.wrap_socket(self._server.socket, server_side=True)
        self.url = f"{scheme}://{address}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def running_pypi(folder: Path) -> Iterator[str]:
    """A pypiserver that keeps its files in ``folder``; its address. Uploads need the login."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _PYPI_START, str(folder), USER, PASSWORD],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        yield f"http://127.0.0.1:{started_when(process, b'ready ').split()[-1].decode()}"
    finally:
        stop(process)


@contextlib.contextmanager
def running_npm(folder: Path) -> Iterator[str]:
    """A verdaccio, fetched into ``folder``; its address. Publishing needs the login."""
    (folder / "package.json").write_text(json.dumps(VERDACCIO))
    quiet = (
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--loglevel",
        "error",
        "--prefer-offline",
        "--fetch-retries",
        "5",
    )
    npm = program("npm", "npm")
    done = subprocess.run(
        [npm, "install", *quiet], cwd=folder, check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.fail(f"npm can't fetch verdaccio: {done.stderr}")
    digest = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()
    (folder / "htpasswd").write_text(f"{USER}:{{SHA}}{digest}\n")
    (folder / "config.yaml").write_text(
        f"storage: {folder}/storage\n"
        f"auth: {{htpasswd: {{file: {folder}/htpasswd, max_users: -1}}}}\n"
        "packages: {'**': {access: $all, publish: $authenticated}}\n"
        "log: {type: stdout, level: fatal}\n"
    )
    (folder / "start.js").write_text(_VERDACCIO_START)
    process = subprocess.Popen(
        [program("node", "nodejs"), "start.js", f"{folder}/config.yaml"],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        yield f"http://127.0.0.1:{started_when(process, b'ready ').split()[-1].decode()}"
    finally:
        stop(process)
