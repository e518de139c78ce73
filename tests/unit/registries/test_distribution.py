"""Reading from a registry whose connections break."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from buildrunner.containers.image_name import ImageName
from buildrunner.errors import RegistryError
from buildrunner.registries.distribution import Repository

BLOB = b"layer" * 1000
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"


class Breaking(ThreadingHTTPServer):
    """A registry that breaks off within the blob as often as it is told to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Breaking)
        self.breaks = 0


class _Breaking(BaseHTTPRequestHandler):
    server: Breaking

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BLOB)))
        self.end_headers()
        is_broken = self.server.breaks > 0
        self.server.breaks -= 1
        self.wfile.write(BLOB[: len(BLOB) // 2] if is_broken else BLOB)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def registry() -> Iterator[Breaking]:
    made = Breaking()
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.mark.parametrize("breaks", [0, 1, 2])
def test_a_blob_is_read_again_from_its_beginning(
    registry: Breaking, tmp_path: Path, breaks: int
) -> None:
    registry.breaks = breaks
    path = tmp_path / "blob"
    with Repository(ImageName.parse(f"127.0.0.1:{registry.server_port}/app")) as repository:
        assert repository.save_blob(DIGEST, str(path), len(BLOB)) == len(BLOB)
    assert path.read_bytes() == BLOB


def test_a_name_that_no_host_can_have_is_an_error_in_words() -> None:
    with (
        Repository(ImageName.parse("xn--a.example/app")) as repository,
        pytest.raises(RegistryError, match=r"xn--a\.example does not answer"),
    ):
        repository.manifest("1")
