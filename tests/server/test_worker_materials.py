"""What a worker gets from its server: the uploaded source; and the stored log."""

import hashlib
import threading
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from buildrunner.client.http import ServerConnection
from buildrunner.engine.deployments import Deployment
from buildrunner.errors import LeaseLost, SecretError, StorageError
from buildrunner.plan.build_plan import SecretReference
from buildrunner.sources.uploads import ARCHIVES, ENDINGS
from buildrunner.spec.model.build import Build, Status
from buildrunner.spec.model.source import StorageSource
from buildrunner.storage.object_store import ObjectReader
from buildrunner.storage.stores import UPLOADS_BUCKET
from buildrunner.store.model.builds import Lease
from buildrunner.store.model.deployments import recorded
from buildrunner.store.model.remote import BegunBuild, RemoteSecret
from buildrunner.worker.leases import LeasedRecord
from buildrunner.worker.remote import materials
from buildrunner.worker.remote.materials import RemoteSecrets, RemoteUpload, store_log
from buildrunner.worker.remote.queue import RemoteQueue

CONTENT = bytes(range(256)) * 4096 * 4
LEASE = Lease("b", 1)


@contextmanager
def answering(answer):
    """A server that answers every request by a function; yields a connection to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def do_POST(self):
            answer(self)

        def do_PUT(self):
            answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    connection = ServerConnection(url, "token", "", lambda _: None)
    try:
        yield connection
    finally:
        connection.close()
        server.shutdown()
        thread.join()
        server.server_close()


class Broken:
    """Sends half of the upload at the first read, and the rest when asked for it."""

    def __init__(self, *, rest=CONTENT, ranges=True):
        self.rest = rest
        self.ranges = ranges
        self.starts = []

    def __call__(self, request):
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        self.starts.append(start)
        size = len(CONTENT)
        if start and self.ranges:
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            request.send_response(200)
            start = 0
        request.send_header("Content-Length", str(size - start))
        request.end_headers()
        if len(self.starts) == 2:  # the first one asked for the size
            request.wfile.write(CONTENT[: size // 2])
        else:
            with suppress(ConnectionError):  # the client does not want it
                request.wfile.write(self.rest[start:])
        request.close_connection = True


def read(broken):
    name = f"p/{ARCHIVES}/{hashlib.sha256(CONTENT).hexdigest()}{ENDINGS[0]}"
    with answering(broken) as connection:
        source = StorageSource(bucket=UPLOADS_BUCKET, object=name)
        upload = RemoteUpload(connection, LEASE, "p", source)
        found = upload.find(UPLOADS_BUCKET, name)
        assert found.size_bytes == len(CONTENT)
        reader = ObjectReader(upload, found, cancel=threading.Event(), wait_s=0)
        return reader.read()


def test_a_download_that_breaks_off_goes_on_and_is_verified_as_a_whole():
    broken = Broken()
    assert read(broken) == CONTENT
    assert broken.starts[:2] == [0, 0]
    assert broken.starts[2] > 0


def test_a_download_that_goes_on_with_other_bytes_is_refused():
    with pytest.raises(StorageError, match="is not what was uploaded"):
        read(Broken(rest=bytes(len(CONTENT))))


def test_a_download_that_begins_again_in_place_of_going_on_is_refused():
    with pytest.raises(StorageError, match="begins at another byte than requested: all"):
        read(Broken(ranges=False))


@pytest.mark.parametrize("status", [400, 503])
def test_a_log_that_the_server_does_not_store_is_a_warning(monkeypatch, status):
    monkeypatch.setattr(materials, "_STORE_S", 0.1)

    def answer(request):
        request.rfile.read(int(request.headers["Content-Length"]))
        request.send_error(status)

    sent = []
    with answering(answer) as connection:
        queue = RemoteQueue(connection, send_log=lambda *_: None)
        build = Build(id="b", status=Status.SUCCESS, logs_bucket="gs://logs")
        stored = store_log(queue, LEASE, lambda: sent.append(1), None, build)
    assert (stored.status, sent) == (Status.SUCCESS, [1])
    assert "the log is not stored in its bucket" in stored.warnings[0].text


def test_a_secret_under_two_variables_is_given_only_to_the_one_that_may_have_it():
    references = [SecretReference(env, "secretManager", "s") for env in ("API_KEY", "STOLEN")]
    secrets = [
        RemoteSecret(reference=references[0], value="value"),
        RemoteSecret(reference=references[1], error="refused"),
    ]

    def answer(request):
        body = msgspec.json.encode({"secrets": secrets})
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    with answering(answer) as connection:
        queue = RemoteQueue(connection, send_log=lambda *_: None)
        queue._begun[LEASE] = BegunBuild()
        remote = RemoteSecrets(queue, LEASE)
        assert remote.resolve(references[0]) == "value"
        with pytest.raises(SecretError, match="refused"):
            remote.resolve(references[1])


def test_deployments_that_the_server_refuses_hold_up_no_end_of_a_build():
    def answer(request):
        request.rfile.read(int(request.headers["Content-Length"]))
        request.send_response(400 if "deployments" in request.path else 204)
        request.send_header("Content-Length", "0")
        request.end_headers()

    made = recorded(
        Deployment(target="run://p/r/s"),
        project_id="p",
        build_id="b",
        step=0,
        step_id="",
        time=datetime.now(UTC),
    )
    with answering(answer) as connection:
        queue = RemoteQueue(connection, send_log=lambda *_: None)
        queue._begun[LEASE] = BegunBuild()
        record = LeasedRecord(queue, LEASE, on_lost=lambda: None)
        record.save_deployments([made])
        record.finish({"id": "b", "status": "SUCCESS"})
    assert record._finished


def test_a_lease_that_was_lost_is_no_warning():
    def lost():
        raise LeaseLost("gone")

    with pytest.raises(LeaseLost):
        store_log(None, LEASE, lost, None, Build(id="b"))
