"""A proxy for git-lfs, whose server says from where files are downloaded.

Git itself is told which addresses were judged. git-lfs has no such setting: the address of a file
comes from the answer of its server. It reaches hosts through this proxy, which judges each. Only
loopback addresses are reached without a proxy: git-lfs, like all programs in Go, insists on that.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from buildrunner.errors import BuildrunnerError

_PIECE = 1 << 16
_CONNECT_S = 30.0
_IDLE_S = 300.0
_NOT_PASSED_ON = ("connection", "keep-alive", "proxy-authorization", "proxy-connection")


class GatedProxy:
    """An HTTP proxy on this machine's loopback address. A context manager.

    Args:
        addresses_of: gives the addresses of a URL's host, as they were judged. Raises a
            `BuildrunnerError` if the host may not be reached.
    """

    def __init__(self, addresses_of: Callable[[str], Sequence[str]]) -> None:
        self._server = _Server(addresses_of)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="git-proxy", daemon=True
        )

    def __enter__(self) -> GatedProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, addresses_of: Callable[[str], Sequence[str]]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.addresses_of = addresses_of

    def handle_error(self, *_: object) -> None:
        """Say nothing: git-lfs reports what went wrong."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_S
    server: _Server

    def do_CONNECT(self) -> None:
        """Join the client with a host that it talks TLS to."""
        upstream = self._connected(f"https://{self.path}/")
        if upstream is not None:
            with upstream:
                self.send_response_only(200)
                self.end_headers()
                self._join(upstream)

    def _forward(self) -> None:
        upstream = self._connected(self.path)
        if upstream is not None:
            with upstream:
                parts = urlsplit(self.path)
                target = parts._replace(scheme="", netloc="").geturl() or "/"
                head = [f"{self.command} {target} HTTP/1.1"]
                head += [
                    f"{name}: {value}"
                    for name, value in self.headers.items()
                    if name.lower() not in _NOT_PASSED_ON
                ]
                text = "\r\n".join([*head, "Connection: close", "", ""])
                upstream.sendall(text.encode("latin-1"))
                self._join(upstream)

    do_GET = do_HEAD = do_POST = do_PUT = _forward  # noqa: N815

    def _connected(self, url: str) -> socket.socket | None:
        """A connection to the host of a URL; None, with an answer, if there can be none."""
        self.close_connection = True
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            error: Exception = OSError(f"{parts.hostname} has no address")
            for address in self.server.addresses_of(url):
                try:
                    return socket.create_connection((address, port), timeout=_CONNECT_S)
                except OSError as failed:
                    error = failed
            self.send_error(502, "Bad Gateway", str(error))
        except (BuildrunnerError, ValueError) as refused:
            self.send_error(403, "Forbidden", str(refused))
        return None

    def _join(self, upstream: socket.socket) -> None:
        """Pass on what either side sends, until the host ends the connection."""
        upstream.settimeout(_IDLE_S)
        sending = threading.Thread(target=self._send, args=(upstream,), daemon=True)
        sending.start()
        with suppress(OSError):
            while piece := upstream.recv(_PIECE):
                self.wfile.write(piece)
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        sending.join()

    def _send(self, upstream: socket.socket) -> None:
        with suppress(OSError, ValueError):
            while piece := self.rfile.read1(_PIECE):
                upstream.sendall(piece)
        with suppress(OSError):
            upstream.shutdown(socket.SHUT_WR)

    def log_message(self, *_: object) -> None:
        """Say nothing: git-lfs reports what went wrong."""
