"""The list of uploaded files, byte for byte, and which logs belong into buckets."""

import pytest

from buildrunner.artifacts.objects import manifest_of
from buildrunner.build_run.log_upload import store_log, wants_stored_log
from buildrunner.errors import StorageError
from buildrunner.spec.model.build import Build, BuildOptions, LoggingMode
from buildrunner.storage.object_store import StoredObject
from buildrunner.storage.stores import Stores

EMPTY_MD5 = "1B2M2Y8AsgTpgAmY7PhCfg=="


def stored(name, md5=EMPTY_MD5):
    return StoredObject(
        bucket="b", name=name, generation=1700000001, url=f"gs://b/{name}", size_bytes=0, md5=md5
    )


def test_the_manifest_is_that_of_the_hosted_service():
    assert manifest_of([stored("d/a.txt")]) == (
        b'{"location":"gs://b/d/a.txt#1700000001","file_hash":[{"file_hash":[{"type":2,'
        b'"value":"MUIyTTJZOEFzZ1RwZ0FtWTdQaENmZz09"}]}]}\n'
    )


def test_it_is_a_line_a_file_in_order_and_empty_without_any():
    lines = manifest_of([stored("b"), stored("a")]).splitlines()
    assert [b"/b#" in lines[0], b"/a#" in lines[1]] == [True, True]
    assert manifest_of([]) == b""


def test_names_are_escaped_as_a_go_program_does():
    (line,) = manifest_of([stored('ü<&>"\u2028')]).splitlines()
    assert 'gs://b/ü\\u003c\\u0026\\u003e\\"\\u2028#1700000001'.encode() in line


@pytest.mark.parametrize(
    ("logging", "wanted"),
    [
        (LoggingMode.LOGGING_UNSPECIFIED, True),
        (LoggingMode.LEGACY, True),
        (LoggingMode.GCS_ONLY, True),
        (LoggingMode.NONE, False),
        (LoggingMode.CLOUD_LOGGING_ONLY, False),
        (LoggingMode.STACKDRIVER_ONLY, False),
    ],
)
def test_the_mode_of_logging_says_whether_the_log_goes_to_a_bucket(logging, wanted):
    assert (
        wants_stored_log(Build(logs_bucket="bkt", options=BuildOptions(logging=logging))) is wanted
    )
    assert not wants_stored_log(Build(options=BuildOptions(logging=logging)))


@pytest.mark.parametrize(
    ("bucket", "name"),
    [
        ("gs://bkt", "log-id.txt"),
        ("bkt", "log-id.txt"),
        ("gs://bkt/", "log-id.txt"),
        ("gs://bkt/some/folder/", "some/folder/log-id.txt"),
        ("bkt/folder", "folder/log-id.txt"),
    ],
)
def test_the_log_has_the_place_that_the_service_gives_it(tmp_path, bucket, name):
    (tmp_path / "log.txt").write_text("hello\n")
    stores = Stores({"gs://bkt": f"file://{tmp_path}/bkt"})
    build = Build(id="id", logs_bucket=bucket)
    url = store_log(stores, build, str(tmp_path / "log.txt"))
    assert url == f"file://{tmp_path}/bkt/{name}"
    assert (tmp_path / "bkt" / name).read_text() == "hello\n"


def test_a_log_that_is_not_there(tmp_path):
    stores = Stores({"gs://bkt": f"file://{tmp_path}/bkt"})
    with pytest.raises(StorageError, match="can't be read"):
        store_log(stores, Build(id="id", logs_bucket="bkt"), str(tmp_path / "none"))
