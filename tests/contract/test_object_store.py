"""One suite for every store of objects: a real server by Google's client, and a folder."""

import base64
import hashlib
import io
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from buildrunner.errors import StorageError, UsageError
from buildrunner.retry import asked_wait_s
from buildrunner.storage import gcs as gcs_client
from buildrunner.storage import gcs as gcs_retry
from buildrunner.storage.gcs import AnswerReader, GoogleStore
from buildrunner.storage.object_store import ObjectReader, ObjectUrl, StoredObject, parse_object_url
from buildrunner.storage.parallel import in_parallel
from buildrunner.storage.stores import FolderStore, Stores
from tests.fixtures_gcs import Fault, faulty, running_gcs
from tests.fixtures_google import GoogleServer

BUCKET = "suite-bucket"
NEVER = threading.Event()


@pytest.fixture(scope="module")
def server():
    with running_gcs() as running:
        running.bucket(BUCKET)
        yield running


@pytest.fixture(params=["google", "folder"])
def store(request, server, tmp_path, monkeypatch):
    if request.param == "google":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        return GoogleStore()
    return FolderStore(str(tmp_path / "bucket"))


@pytest.fixture
def proxy(server, monkeypatch):
    with faulty(server.url) as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        yield running


def write(store, name, data):
    return store.write(BUCKET, name, io.BytesIO(data), len(data), content_type="text/plain")


def read(store, found, **options):
    return ObjectReader(store, found, cancel=NEVER, wait_s=0.001, **options).read()


@pytest.mark.parametrize("name", ["a.txt", "deep/er/b", "ümlaut und Leerzeichen", "a#b", "a%2Fb"])
def test_what_is_written_is_found_and_read_again(store, name):
    data = b"content of " + name.encode()
    written = write(store, name, data)
    assert written.md5 == base64.b64encode(hashlib.md5(data).digest()).decode()
    found = store.find(BUCKET, name)
    assert (found.generation, found.size_bytes) == (written.generation, len(data))
    assert found.generation > 0
    assert store.find(BUCKET, name, found.generation) == found
    assert read(store, found) == data


def test_an_object_without_content(store):
    assert read(store, write(store, "empty", b"")) == b""


def test_reading_begins_anywhere(store):
    found = write(store, "long", bytes(range(256)) * 4096)
    assert b"".join(store.read(found, 1_000_000, NEVER)) == (bytes(range(256)) * 4096)[1_000_000:]


def test_a_generation_that_is_gone_is_not_read_as_another(store):
    old = write(store, "changing", b"old")
    new = write(store, "changing", b"new!")
    assert new.generation != old.generation
    with pytest.raises(StorageError, match=f"no generation {old.generation}") as caught:
        store.find(BUCKET, "changing", old.generation)
    assert caught.value.missing
    with pytest.raises(StorageError) as caught:
        read(store, old)
    assert caught.value.missing


def test_a_server_that_answers_with_another_generation_is_not_believed(proxy):
    store = GoogleStore()
    requested = write(store, "pinned", b"data").generation
    other = (requested - 1, requested + 1)[requested % 10 == 0]
    proxy.faults.append(
        Fault(f"generation={requested}", swap=(str(requested).encode(), str(other).encode()))
    )
    with pytest.raises(StorageError, match=f"no generation {requested}") as caught:
        store.find(BUCKET, "pinned", requested)
    assert caught.value.missing
    assert store.find(BUCKET, "pinned", requested).generation == requested


def test_what_is_not_there(store):
    with pytest.raises(StorageError, match="there is no object") as caught:
        store.find(BUCKET, "nothing")
    assert caught.value.missing


def test_a_cancelled_read_ends_with_an_error(store):
    found = write(store, "cancelled", bytes(1024 * 1024))
    cancel = threading.Event()
    pieces = store.read(found, 0, cancel)
    next(pieces)
    cancel.set()
    with pytest.raises(StorageError, match="stopped"):
        list(pieces)


def test_a_bucket_that_is_not_there_is_named(server, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    google = GoogleStore()
    google.check_bucket(BUCKET)
    for ask in (google.check_bucket, lambda bucket: google.find(bucket, "a")):
        with pytest.raises(StorageError, match='bucket "gs://no-such-bucket" does not exist'):
            ask("no-such-bucket")


def test_a_connection_that_breaks_is_followed_by_one_from_there(server, proxy):
    data = hashlib.shake_128(b"seed").digest(3_000_000)
    server.put(BUCKET, "broken", data)
    google = GoogleStore()
    found = google.find(BUCKET, "broken")
    proxy.faults = [
        Fault("/download/", cut_after=1_000_000),
        Fault("/download/", status=503),
        Fault("/download/", cut_after=500_000),
        Fault("/download/", status=429),
    ]
    retried = []
    assert read(google, found, retried=retried.append) == data
    ranges = [range_ for _, path, range_ in proxy.seen if "/download/" in path]
    assert ranges == ["", *["bytes=1000000-"] * 2, *["bytes=1500000-"] * 2]
    assert all(f"generation={found.generation}" in p for _, p, _ in proxy.seen if "/download/" in p)
    assert len(retried) == 4


def test_a_server_that_never_sends_anything_more_is_given_up(server, proxy):
    server.put(BUCKET, "stuck", bytes(1000))
    google = GoogleStore()
    found = google.find(BUCKET, "stuck")
    proxy.faults = [Fault("/download/", times=100, cut_after=0)]
    with pytest.raises(StorageError) as caught:
        read(google, found)
    assert caught.value.transient
    assert "\n" not in str(caught.value)
    assert len([1 for _, path, _ in proxy.seen if "/download/" in path]) == 6


def test_bytes_that_changed_on_the_way_are_noticed(server, proxy):
    server.put(BUCKET, "flipped", b"the truth")
    google = GoogleStore()
    found = google.find(BUCKET, "flipped")
    assert found.crc32c
    proxy.faults = [Fault("/download/", swap=(b"truth", b"lie!!"))]
    with pytest.raises(StorageError, match="checksum") as caught:
        read(google, found)
    assert caught.value.corrupt


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_says_who_to_be(server, proxy, status):
    server.put(BUCKET, "secret", b"x")
    proxy.faults = [Fault("/o/secret", times=9, status=status)]
    with pytest.raises(StorageError, match="access denied") as caught:
        GoogleStore().find(BUCKET, "secret")
    assert caught.value.unauthorized
    assert "gcloud auth application-default login" in caught.value.hint
    assert ("give the account of your credentials a role" in caught.value.hint) is (status == 403)
    assert "\n" not in str(caught.value)
    if status == 401:
        assert str(caught.value) == (
            f"gs://{BUCKET}/secret: access denied to anyone without credentials"
        )


def private_key():
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.PrivateFormat.PKCS8
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain).decode()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (503, "the server that gives out Google's access tokens is busy or broken"),
        (400, "access denied: no Google credentials that work: invalid_grant: no such account"),
    ],
)
def test_a_broken_token_server_is_no_refusal(server, tmp_path, monkeypatch, status, said):
    class Tokens(BaseHTTPRequestHandler):
        def do_POST(self):
            body = b'{"error": "invalid_grant", "error_description": "no such account"}'
            body = body if status == 400 else b"<html>busy</html>"
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Tokens) as tokens:
        threading.Thread(target=tokens.serve_forever, args=(0.02,)).start()
        account = {
            "type": "service_account",
            "client_email": "builds@example.com",
            "private_key": private_key(),
            "token_uri": f"http://127.0.0.1:{tokens.server_port}/token",
        }
        (tmp_path / "account.json").write_text(json.dumps(account))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
        monkeypatch.delenv("STORAGE_EMULATOR_HOST")
        monkeypatch.setattr("google.auth._exponential_backoff.time.sleep", lambda _: None)
        try:
            with pytest.raises(StorageError) as caught:
                GoogleStore().find(BUCKET, "x")
        finally:
            tokens.shutdown()
    assert str(caught.value) == f"gs://{BUCKET}/x: {said}"
    assert (caught.value.transient, caught.value.unauthorized) == (status == 503, status == 400)


def test_an_answer_that_is_no_json_is_told_as_that(server, proxy):
    server.put(BUCKET, "odd", b"x")
    proxy.faults = [Fault("/o/odd", tell=lambda headers, _: (headers, b"<p>please log in</p>"))]
    with pytest.raises(StorageError, match=r"^gs://.*/odd: the answer of 127\..* is not JSON$"):
        GoogleStore().find(BUCKET, "odd")


@pytest.mark.parametrize(("body", "said"), [
    (b'{\n  "error": {\n    "code": 403,\n    "message": "the billing account is closed."\n  }\n}',
     "the billing account is closed"),
    (b"no access for you", "no access for you"),
    (b"<html><title>403</title></html>", "it gives no reason"),
    (b"", "it gives no reason"),
    (b"<?xml version='1.0'?><Error><Message>No &amp; no.</Message></Error>", "No & no"),
])  # fmt: skip
def test_a_refused_download_says_what_the_server_says(body, said):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    found = StoredObject(bucket=BUCKET, name="x", generation=1, url="gs://b/x", size_bytes=9)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as refusing:
        threading.Thread(target=refusing.serve_forever, args=(0.02,)).start()
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{refusing.server_port}")
                with pytest.raises(StorageError) as caught:
                    read(GoogleStore(), found)
        finally:
            refusing.shutdown()
    assert re.fullmatch(
        f"gs://b/x#1: access denied( to anyone without credentials)?: {said}", str(caught.value)
    )


ODD = [b"[]", b"7", b'{"size": "many"}', b'{"bucket": 1, "generation": []}']


@pytest.mark.parametrize("body", ODD)
def test_an_answer_of_another_form_is_one_sentence(server, proxy, body):
    server.put(BUCKET, "odd", b"x")
    proxy.faults = [Fault("/o/odd", tell=lambda headers, _: (headers, body))]
    with pytest.raises(StorageError, match=r"answer of 127\..* is not of Cloud Storage's"):
        GoogleStore().find(BUCKET, "odd")


def test_a_busy_server_is_given_the_time_it_asks_for(server, proxy, monkeypatch):
    requested = []
    monkeypatch.setattr(gcs_retry.time, "sleep", requested.append)
    server.put(BUCKET, "busy", b"x")
    busy = {"Retry-After": "7"}
    proxy.faults = [
        Fault("/o/busy", status=429, headers=busy),
        Fault("/o/busy", status=503, headers=busy),
        Fault("alt=media", status=429, headers=busy),
    ]
    found = GoogleStore().find(BUCKET, "busy")
    assert [one for one in requested if one == 7.0] == [7.0, 7.0]
    with pytest.raises(StorageError) as caught:
        list(GoogleStore().read(found, 0, NEVER))
    assert caught.value.transient
    assert not caught.value.unreachable
    assert caught.value.retry_after_s == 7.0
    proxy.faults = [Fault("/o/busy", status=429, headers={"Retry-After": "50"}, times=9)]
    requested.clear()
    with pytest.raises(StorageError, match="the server answers 429"):
        GoogleStore().find(BUCKET, "busy")
    assert [one for one in requested if one == 50.0] == [50.0]  # twice would be too long


class Moment(threading.Event):
    """Is never set, and remembers how long it was waited for."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        return False


def test_reading_goes_on_when_a_busy_server_wants_it(server, proxy):
    server.put(BUCKET, "busy", b"content")
    found = GoogleStore().find(BUCKET, "busy")
    proxy.faults = [Fault("alt=media", status=503, headers={"Retry-After": "7"})]
    cancel = Moment()
    assert ObjectReader(GoogleStore(), found, cancel=cancel).read() == b"content"
    assert cancel.waits == [7.0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"Retry-After": "12"}, 12),
        ({"retry-after": " 3600 "}, 60),
        ({"Retry-After": "-1"}, 0),
        ({"Retry-After": "soon"}, 0),
        ({"Retry-After": "Fri, 27 Nov 2026 20:00:30 GMT"}, 0),
        (
            {
                "Date": "Fri, 27 Nov 2026 20:00:00 GMT",
                "Retry-After": "Fri, 27 Nov 2026 20:00:30 GMT",
            },
            30,
        ),
        ({"Date": "Fri, 27 Nov 2026 20:00:00 GMT", "Retry-After": "Mon, 1 Jan 2024 1:00:00"}, 0),
    ],
)
def test_what_a_server_may_ask_for(headers, seconds):
    assert asked_wait_s(headers.items()) == seconds


def test_a_write_is_tried_again(proxy):
    proxy.faults = [Fault("/upload/", status=500), Fault("/upload/", status=429)]
    google = GoogleStore()
    written = write(google, "again", b"stays")
    assert read(google, written) == b"stays"


def test_a_small_write_that_was_damaged_on_the_way_is_sent_again(server, proxy):
    def spoilt(headers, body):
        body = body.replace(b"content", b"c0ntent")
        return headers, re.sub(rb'"crc32c": *"[^"]*"', b'"cacheControl": "none"', body)

    told = []
    proxy.faults = [Fault("uploadType=multipart", ask=spoilt)]
    GoogleStore().write(
        BUCKET, "small", io.BytesIO(b"content"), 7, content_type="a/b", retried=told.append
    )
    assert server.get(BUCKET, "small") == b"content"
    assert [str(one) for one in told] == [
        f"gs://{BUCKET}/small: its checksum is wrong after the transfer"
    ]
    proxy.faults = [Fault("uploadType=multipart", ask=spoilt, times=9)]
    with pytest.raises(StorageError, match="its checksum is wrong after the transfer") as caught:
        write(GoogleStore(), "small", b"content")
    assert caught.value.corrupt


@pytest.mark.parametrize("status", [404, 410])
def test_an_upload_that_the_server_has_forgotten_begins_again(server, proxy, status):
    data = hashlib.shake_128(b"lost").digest(20 * 1024 * 1024)
    # The first piece has arrived when the second finds nothing to be added to.
    proxy.faults = [
        Fault("upload_id=", tell=lambda *answer: answer),
        Fault("upload_id=", status=status),
    ]
    told = []
    written = GoogleStore().write(
        BUCKET, "lost", io.BytesIO(data), len(data), content_type="a/b", retried=told.append
    )
    assert written.size_bytes == len(data)
    assert server.get(BUCKET, "lost") == data
    assert [str(one) for one in told] == [f"gs://{BUCKET}/lost: the server has lost the upload"]
    proxy.faults = [Fault("upload_id=", status=status, times=9)]
    with pytest.raises(StorageError, match=r"/lost: the server has lost the upload$") as caught:
        write(GoogleStore(), "lost", data)
    assert not caught.value.missing


@pytest.mark.parametrize("drop", ["request", "answer"])
def test_a_large_write_goes_on_where_it_broke_off(server, proxy, drop):
    data = hashlib.shake_128(b"large").digest(20 * 1024 * 1024)
    proxy.faults = [Fault("upload_id=", drop=drop), Fault("upload_id=", status=503)]
    told = []
    written = GoogleStore().write(
        BUCKET, "large", io.BytesIO(data), len(data), content_type="a/b", retried=told.append
    )
    assert len(told) >= 2
    assert written.size_bytes == len(data)
    assert server.get(BUCKET, "large") == data
    begun = [path for method, path, _ in proxy.seen if method == "POST" and "/upload/" in path]
    # A piece whose answer was lost is kept twice by this server (not by Google's): the checksum
    # tells, and all is sent again.
    assert len(begun) == (1 if drop == "request" else 2)


def test_a_piece_that_is_not_taken_twice_is_followed_by_the_next(server, proxy):
    data = hashlib.shake_128(b"strict").digest(20 * 1024 * 1024)
    kept = {"Range": "bytes=0-8388607"}
    proxy.faults = [
        Fault("upload_id=", drop="answer"),
        Fault("upload_id=", status=400),
        Fault("upload_id=", status=308, headers=kept),
    ]
    told = []
    GoogleStore().write(
        BUCKET, "strict", io.BytesIO(data), len(data), content_type="a/b", retried=told.append
    )
    assert server.get(BUCKET, "strict") == data
    assert len(told) == 1
    assert str(told[0]).endswith("broke off")


def test_an_upload_that_can_not_go_on_begins_again_a_few_times(server, proxy):
    data = hashlib.shake_128(b"refused").digest(9 * 1024 * 1024)
    proxy.faults = [Fault("upload_id=", status=416, times=2)]
    written = write(GoogleStore(), "refused", data)
    assert server.get(BUCKET, "refused") == data
    assert written.size_bytes == len(data)
    proxy.faults = [Fault("upload_id=", status=416, times=9)]
    with pytest.raises(StorageError, match="the server answers 416: as the test wants it"):
        write(GoogleStore(), "refused", data)
    assert proxy.faults[0].times == 6


def test_a_server_that_has_kept_nothing_of_the_first_piece_gets_it_again(server, proxy):
    data = hashlib.shake_128(b"nothing").digest(9 * 1024 * 1024)
    proxy.faults = [Fault("upload_id=", status=308)]
    told = []
    GoogleStore().write(
        BUCKET, "nothing", io.BytesIO(data), len(data), content_type="a/b", retried=told.append
    )
    assert server.get(BUCKET, "nothing") == data
    assert [str(one) for one in told] == [
        f"gs://{BUCKET}/nothing: the server has kept nothing of what it was sent"
    ]


def test_an_object_that_is_shorter_than_what_was_sent_is_sent_again(server, proxy):
    def shortened(headers, body):
        return headers, re.sub(rb'"size": *"\d+"', b'"size": "8388608"', body)

    data = hashlib.shake_128(b"short").digest(9 * 1024 * 1024)
    proxy.faults = [
        Fault("upload_id=", tell=lambda *same: same),
        Fault("&upload_id=", tell=shortened),
    ]
    told = []
    GoogleStore().write(
        BUCKET, "short", io.BytesIO(data), len(data), content_type="a/b", retried=told.append
    )
    assert [fault.times for fault in proxy.faults] == [0, 0]
    assert len(told) == 1


def test_a_server_without_generations_serves_what_it_has(server, proxy):
    proxy.faults = [Fault(f"/b/{BUCKET}/o", tell=without_generation, times=2)]
    google = GoogleStore()
    written = write(google, "newest", b"content")
    assert written.pinned_url == f"gs://{BUCKET}/newest"
    assert read(google, google.find(BUCKET, "newest")) == b"content"
    assert "generation" not in proxy.seen[-1][1]


def test_the_address_of_a_server_needs_no_scheme(server, monkeypatch):
    server.put(BUCKET, "short", b"x")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url.removeprefix("http://"))
    google = GoogleStore()
    assert read(google, google.find(BUCKET, "short")) == b"x"


def test_a_key_that_is_none_is_one_sentence(monkeypatch, tmp_path):
    (tmp_path / "key.json").write_text("none")
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    with pytest.raises(StorageError, match=r"key\.json is not a valid json file$") as caught:
        GoogleStore().find(BUCKET, "any")
    assert caught.value.unauthorized


def test_the_folder_to_allow_is_not_that_of_one_build():
    with pytest.raises(StorageError) as caught:
        Stores({}).place("file:///srv/out/0d4b78c2-4eed-4774-b810-dfe845e90b72/bin")
    hint = caught.value.hint
    assert hint == '"file:///srv/out" = "file:///srv/out" under [storage.folders] lets them'


def without_range(headers, body):
    return {name: value for name, value in headers.items() if name != "Range"}, body


def first_half(headers, body):
    """Of a piece, as if the server had kept no more of it."""
    first, total = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers["content-range"]).groups()
    half = body[: len(body) // 2]
    return headers | {"content-range": f"bytes {first}-{int(first) + len(half) - 1}/{total}"}, half


def without_sums(headers, body):
    entry = json.loads(body)
    return headers, json.dumps(
        {k: entry[k] for k in entry if k not in ("crc32c", "md5Hash")}
    ).encode()


def without_generation(headers, body):
    entry = json.loads(body)
    del entry["generation"]
    return headers, json.dumps(entry).encode()


def without_host(headers, body):
    place = urlsplit(headers["Location"])
    return headers | {"Location": f"{place.path}?{place.query}"}, body


def test_a_server_that_sends_all_when_asked_for_the_end_is_understood(server, proxy):
    data = hashlib.shake_128(b"all").digest(1_000_000)
    server.put(BUCKET, "all", data)
    google = GoogleStore()
    proxy.faults = [
        Fault("/download/", cut_after=400_000),
        Fault("/download/", ask=without_range),
    ]
    assert read(google, google.find(BUCKET, "all")) == data


@pytest.mark.parametrize(
    ("part", "piece", "changes"),
    [
        ("upload_id=", 0, {"ask": first_half}),
        ("uploadType=resumable", 0, {"tell": without_host}),
        ("upload_id=", 2, {"tell": without_sums}),
    ],
    ids=["keeps half a piece", "address without host", "tells no sums"],
)
def test_answers_that_cloud_storage_seldom_gives_are_understood(
    server, proxy, part, piece, changes
):
    data = hashlib.shake_128(b"seldom").digest(20 * 1024 * 1024)
    proxy.faults = [Fault(part, times=piece), Fault(part, **changes)]
    told = []
    written = GoogleStore().write(
        BUCKET, "seldom", io.BytesIO(data), len(data), content_type="a/b", retried=told.append
    )
    assert [fault.times for fault in proxy.faults] == [0, 0]
    assert told == []
    assert server.get(BUCKET, "seldom") == data
    assert written.size_bytes == len(data)


def test_nobody_at_the_address_is_one_short_sentence_soon(monkeypatch):
    monkeypatch.setattr(gcs_retry, "_UNREACHABLE_S", 1.0)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:1")
    store = GoogleStore()
    told = []
    sentence = f"gs://{BUCKET}/a: no connection to 127.0.0.1:1: Connection refused"
    for calls in ("is tried for a second", "is tried once"):
        told.clear()
        with pytest.raises(StorageError) as caught:
            store.find(BUCKET, "a", retried=told.append)
        assert str(caught.value) == sentence
        assert caught.value.hint == "is the server reachable from here?"
        assert caught.value.transient
        assert caught.value.unreachable
        assert all(error.unreachable for error in told)
        assert {str(error) for error in told} == (
            {sentence} if calls == "is tried for a second" else set()
        )


def test_a_server_that_never_says_a_word_is_given_up_soon_too(proxy, monkeypatch):
    monkeypatch.setattr(gcs_retry, "_UNREACHABLE_S", 0.1)
    monkeypatch.setattr(gcs_client, "_QUESTION_TIMEOUT_S", (5.0, 0.2))
    hold = threading.Event()
    proxy.faults = [Fault(hold=hold, times=99)]
    store = GoogleStore()
    host = proxy.url.removeprefix("http://")
    try:
        with pytest.raises(StorageError, match=rf"gs://{BUCKET}: {host} does not answer in time"):
            store.check_bucket(BUCKET)
        with pytest.raises(StorageError, match="does not answer in time"):
            write(store, "held", b"x")
    finally:
        hold.set()


def test_a_certificate_that_is_not_trusted_is_final(tmp_path, monkeypatch):
    server = GoogleServer(tmp_path)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
    told = []
    try:
        with pytest.raises(StorageError, match=r"the TLS certificate of 127\S+ can't be") as caught:
            GoogleStore().find(BUCKET, "a", retried=told.append)
    finally:
        server.close()
    assert told == []
    assert not caught.value.transient
    assert "REQUESTS_CA_BUNDLE" in caught.value.hint


@pytest.mark.parametrize(
    ("requested", "location", "place"),
    [
        ("https://h:1/b/o", "http://h:1/up?x=a%2Fb", "https://h:1/up?x=a%2Fb"),
        ("https://h/b/o", "/up?id=1", "https://h/up?id=1"),
        ("http://h/b/o", "https://h/up", "https://h/up"),
        ("https://h/b/o", "http://other/up", "http://other/up"),
    ],
)
def test_an_upload_to_a_server_behind_a_proxy_stays_encrypted(requested, location, place):
    answer = requests.Response()
    answer.url, answer.headers["Location"] = requested, location
    answer.request = requests.Request("POST", requested).prepare()
    AnswerReader().look(answer)
    assert answer.headers["Location"] == place


def test_each_try_is_told_and_a_server_that_answered_is_waited_for(proxy, monkeypatch):
    monkeypatch.setattr(gcs_retry, "_UNREACHABLE_S", 0.0)
    proxy.faults = [Fault("/upload/", status=429), Fault("/upload/", status=503)]
    told = []
    store = GoogleStore()
    store.write(BUCKET, "w", io.BytesIO(b"w"), 1, content_type="text/plain", retried=told.append)
    url = f"gs://{BUCKET}/w"
    assert [str(error) for error in told] == [
        f"{url}: the server answers 429",
        f"{url}: the server answers 503",
    ]


def test_a_folder_keeps_names_inside(tmp_path):
    folder = FolderStore(str(tmp_path / "bucket"))
    for name in ("../out", "a/../../out", "/etc/x", "a//b", "", "a\0b"):
        with pytest.raises(StorageError, match="can't be the name"):
            write(folder, name, b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_leaves_nothing(tmp_path):
    (tmp_path / "bucket").write_text("a file")
    with pytest.raises(StorageError, match=r"exists|Not a directory"):
        write(FolderStore(str(tmp_path / "bucket")), "a/b", b"x")


def test_the_longest_prefix_says_which_folder(tmp_path, server, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    stores = Stores(
        {f"gs://{BUCKET}": f"file://{tmp_path}/all", f"gs://{BUCKET}/x/y": f"file://{tmp_path}/y"}
    )
    write(stores.store_of(BUCKET, "x/y/one"), "x/y/one", b"1")
    write(stores.store_of(BUCKET, "x/yy"), "x/yy", b"2")
    assert (tmp_path / "y" / "one").read_bytes() == b"1"
    assert (tmp_path / "all" / "x" / "yy").read_bytes() == b"2"
    assert isinstance(stores.store_of("other", "x"), GoogleStore)


@pytest.mark.parametrize(
    "entry", [{"b": "file:///x"}, {"gs://": "file:///x"}, {"gs://b": "/x"}, {"gs://b": "file://x"}]
)
def test_a_place_of_another_form_is_refused(entry):
    with pytest.raises(UsageError):
        Stores(entry)


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("file:///srv/out/a/", "/srv/out/a"),
        ("file:///srv/out", "/srv/out"),
        ("file:///srv/out/../out//b", "/srv/out/b"),
        ("file:///mapped/x/y/", "/elsewhere/y"),
    ],
)
def test_a_folder_may_be_named_where_the_user_lets_builds_write(url, folder):
    stores = Stores(
        {"file:///srv/out/": "file:///srv/out", "file:///mapped/x": "file:///elsewhere"}
    )
    store, place = stores.place(url)
    assert (store.url_of("", "a.txt"), place) == (f"file://{folder}/a.txt", ObjectUrl(""))
    assert Stores({"file:///": "file:///"}).place(url)[0].url_of("", "") == (
        f"file://{folder}/".replace("/elsewhere/", "/mapped/x/")
    )


@pytest.mark.parametrize(
    "url", ["file:///etc/", "file:///srv/out/../etc", "file:///srv/outer", "file://srv/out"]
)
def test_no_other_folder_may_be_written_to(url):
    with pytest.raises(StorageError, match="builds may not write to the folder") as caught:
        Stores({"file:///srv/out": "file:///srv/out"}).place(url)
    assert caught.value.unauthorized


def test_addresses():
    assert parse_object_url("gs://b/a/c.tgz#12") == ObjectUrl("b", "a/c.tgz", 12)
    assert parse_object_url("gs://b/a#b") == ObjectUrl("b", "a#b")
    assert parse_object_url("gs://b") == ObjectUrl("b")
    for wrong in ("b/a", "gs://", "gs:///a", "https://b/a"):
        with pytest.raises(StorageError):
            parse_object_url(wrong)


def test_parallel_results_come_in_order_and_the_first_error_too():
    done = list(in_parallel([lambda n=n: n * n for n in range(50)], cancel=NEVER))
    assert done == [n * n for n in range(50)]

    def broken():
        raise StorageError("third")

    results = in_parallel([lambda: 1, lambda: 2, broken, lambda: 4], cancel=NEVER)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(StorageError, match="third"):
        next(results)


def test_parallel_results_that_nobody_takes_are_handed_back():
    going, discarded, all_here = threading.Event(), [], threading.Event()

    def discard(value):
        discarded.append(value)
        if len(discarded) == 2:
            all_here.set()

    jobs = [lambda: 0, lambda: 1, lambda: going.wait() and 2]
    results = in_parallel(jobs, cancel=NEVER, workers=3, discard=discard)
    assert next(results) == 0
    results.close()  # one result may be there already, one job runs still
    going.set()
    assert all_here.wait(30)
    assert sorted(discarded) == [1, 2]


def test_parallel_work_stays_near_what_is_waited_for():
    begun = []
    results = in_parallel(
        [lambda n=n: begun.append(n) for n in range(100)], cancel=NEVER, workers=2
    )
    next(results)
    assert max(begun) <= 4
    results.close()


def test_parallel_work_that_hangs_is_left_alone_when_cancelled():
    hang, cancel = threading.Event(), threading.Event()
    results = in_parallel([hang.wait], cancel=cancel)
    threading.Timer(0.05, cancel.set).start()
    with pytest.raises(StorageError, match="stopped"):
        next(results)
    hang.set()
