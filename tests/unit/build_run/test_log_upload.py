"""The log of a build on its way to its bucket, and how long a build waits for that."""

import threading

import pytest

from buildrunner.build_run import log_upload
from buildrunner.build_run.log_upload import LogUpload
from buildrunner.errors import StorageError
from buildrunner.spec.model.build import Build, BuildOptions, LoggingMode

BUILD = Build(id="some-id", logs_bucket="gs://logs/folder")
LOST = StorageError("gs://logs: no connection", transient=True, unreachable=True)
BUSY = StorageError("gs://logs: the server answers 503", transient=True)
MISSING = StorageError('bucket "gs://logs" does not exist', missing=True)
DENIED = StorageError("gs://logs/o: access denied", unauthorized=True, hint="log in")


class Store:
    """A bucket, as far as logs need one.

    Attributes:
        written: what is stored, by name.

    Args:
        retries: errors after which the bucket is asked for again.
        failure: how asking for the bucket ends; None: it is there.
        silent: no answer comes to the question that follows the retries.
        refusal: why nothing can be written.
    """

    def __init__(self, *retries, failure=None, silent=False, refusal=None):
        self._retries = retries
        self._failure = failure
        self._refusal = refusal
        self.written = {}
        self.release = threading.Event()
        if not silent:
            self.release.set()

    def store_of(self, bucket, name):
        assert bucket == "logs"
        return self

    def check_bucket(self, bucket, *, retried=None):
        for error in self._retries:
            retried(error)
        self.release.wait()
        if self._failure is not None:
            raise self._failure

    def write(self, bucket, name, content, size_bytes, *, content_type, retried=None):
        if self._refusal is not None:
            raise self._refusal
        self.written[name] = content.read()
        return type("Stored", (), {"url": f"gs://{bucket}/{name}"})


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "log.txt"
    path.write_text("all of it\n")
    return str(path)


def stored(store, log, *, build=BUILD, begin=True, hurry=False):
    """Texts of the warnings that the build has in the end."""
    upload = LogUpload(store)
    if begin:
        upload.begin(build)
    try:
        ended = upload.stored(build, log, lambda: hurry)
    finally:
        store.release.set()
    return [warning.text for warning in ended.warnings]


@pytest.mark.parametrize("begin", [True, False], ids=["with a step", "without any step"])
@pytest.mark.parametrize("retries", [(), (BUSY,), (BUSY, BUSY)], ids=len)
def test_a_log_is_stored_in_a_bucket_whose_server_answers(log, begin, retries):
    store = Store(*retries)
    assert stored(store, log, begin=begin) == []
    assert store.written == {"folder/log-some-id.txt": b"all of it\n"}


def test_nobody_waits_for_a_server_that_has_not_answered_while_the_build_ran(log):
    store = Store(LOST, LOST, silent=True)
    assert stored(store, log) == ["the log is not stored in its bucket: gs://logs: no connection"]
    assert store.written == {}


def test_a_busy_server_is_still_asked_to_store_the_log(log):
    store = Store(BUSY, silent=True)
    assert stored(store, log) == []
    assert list(store.written) == ["folder/log-some-id.txt"]


def test_a_server_that_came_back_gets_the_log(log):
    store = Store(LOST)
    upload = LogUpload(store)
    upload.begin(BUILD)
    for thread in threading.enumerate():
        if thread.name == "log-bucket":
            thread.join()
    assert upload.stored(BUILD, log, lambda: False).warnings == ()
    assert store.written


def test_a_bucket_that_does_not_exist_is_not_written_to(log):
    store = Store(failure=MISSING)
    upload = LogUpload(store)
    assert [one.text for one in upload.stored(BUILD, log, lambda: False).warnings] == [
        'the log is not stored in its bucket: bucket "gs://logs" does not exist'
    ]
    assert store.written == {}


def test_a_refused_log_says_why_and_what_to_do(log):
    assert stored(Store(refusal=DENIED), log) == [
        "the log is not stored in its bucket: gs://logs/o: access denied; log in"
    ]


def test_a_server_that_says_nothing_holds_up_nobody_in_a_hurry(log, monkeypatch):
    monkeypatch.setattr(log_upload, "_HURRY_S", 0.2)
    assert stored(Store(silent=True), log, hurry=True) == [
        "the log is not stored in its bucket: it takes too long to store it"
    ]


def test_a_log_that_belongs_into_no_bucket_is_not_stored(log):
    store = Store()
    build = Build(logs_bucket="gs://logs", options=BuildOptions(logging=LoggingMode.NONE))
    assert stored(store, log, build=build) == []
    assert store.written == {}
