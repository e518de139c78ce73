"""Uploads by content: what is checked, what is shared, what is kept."""

import hashlib
import io
import os
import tarfile
import threading
import time

import pytest

from buildrunner.errors import StorageError, UsageError
from buildrunner.sources import uploads as module
from buildrunner.sources.uploads import (
    MissingBlobs,
    SourceFile,
    SourceUploads,
    UploadedSource,
    UploadQuotaExceeded,
    is_upload_of,
)
from buildrunner.spec.model.source import StorageSource
from buildrunner.storage.stores import UPLOADS_BUCKET
from tests.conftest import files_of_at_most


@pytest.fixture
def uploads(tmp_path):
    return SourceUploads(str(tmp_path))


def put(uploads, data, project="p"):
    digest = hashlib.sha256(data).hexdigest()
    receiver = uploads.receive(project, digest)
    try:
        receiver.write(data[:3])
        receiver.write(data[3:])
        receiver.finish()
    finally:
        receiver.abandon()
    return digest


def a_file(path, data, **more):
    digest = hashlib.sha256(data).hexdigest()
    return SourceFile(path=path, sha256=digest, size=len(data), **more)


def test_only_what_is_lacking_is_missing(uploads):
    digest = put(uploads, b"hello")
    other = hashlib.sha256(b"other").hexdigest()
    assert uploads.missing("p", [digest, other, other]) == [other]


def test_projects_do_not_share_blobs(uploads):
    digest = put(uploads, b"hello")
    assert uploads.missing("q", [digest]) == [digest]
    with pytest.raises(MissingBlobs):
        uploads.pack("q", [a_file("f", b"hello")])


def test_content_with_another_sum_is_refused_and_leaves_nothing(uploads, tmp_path):
    receiver = uploads.receive("p", "0" * 64)
    receiver.write(b"hello")
    with pytest.raises(UsageError, match="sum"):
        receiver.finish()
    receiver.abandon()
    assert [files for _, _, files in os.walk(tmp_path) if files] == []


def in_pieces(receiver, data, size):
    for at in range(0, len(data), size):
        receiver.write(data[at : at + size])


@pytest.mark.parametrize("piece", [100, 5000, 100_000])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(uploads, tmp_path, piece):
    data = bytes(300_000)
    receiver = uploads.receive("p", hashlib.sha256(data).hexdigest())
    said = "^the server can't keep the source: File too large$"
    with files_of_at_most(70_001), pytest.raises(StorageError, match=said):
        in_pieces(receiver, data, piece)
    with files_of_at_most(70_001):
        receiver.abandon()
    assert [files for _, _, files in os.walk(tmp_path) if files] == []


def test_files_links_and_folders_are_packed_as_they_were(uploads, tmp_path):
    put(uploads, b"hello")
    files = [
        SourceFile(path="d", directory=True, mode=0o700),
        a_file("d/run.sh", b"hello", mode=0o755, mtime_ns=1_500_000_000_000_000_000),
        SourceFile(path="link", link="d/run.sh"),
    ]
    name = uploads.pack("p", files)
    assert uploads.pack("p", files) == name
    with tarfile.open(tmp_path / name) as tar:
        folder, run, link = tar.getmembers()
        assert (folder.name, folder.isdir(), folder.mode) == ("d", True, 0o700)
        assert (run.name, run.mode, run.mtime) == ("d/run.sh", 0o755, 1_500_000_000)
        assert tar.extractfile(run).read() == b"hello"
        assert (link.issym(), link.linkname) == (True, "d/run.sh")


def test_names_of_any_bytes_are_packed(uploads, tmp_path):
    put(uploads, b"hello")
    files = [
        a_file("?", b"hello", path_bytes=b"\xff\n"),
        a_file("?.", b"hello", path_bytes=b"\xfe"),
        SourceFile(path="link", link="?", link_bytes=b"\xff\n"),
    ]
    with tarfile.open(tmp_path / uploads.pack("p", files), errors="surrogateescape") as tar:
        names = [os.fsencode(member.name) for member in tar]
        assert names == [b"\xff\n", b"\xfe", b"link"]
        assert os.fsencode(tar.getmembers()[2].linkname) == b"\xff\n"


def test_missing_files_are_named(uploads):
    put(uploads, b"hello")
    lacking = a_file("b", b"lacking")
    with pytest.raises(MissingBlobs) as caught:
        uploads.pack("p", [a_file("a", b"hello"), lacking])
    assert caught.value.sums == [lacking.sha256]


def test_a_blob_that_the_disk_spoiled_is_missing(uploads, tmp_path):
    digest = put(uploads, b"hello")
    (tmp_path / "p" / "blobs" / digest[:2] / digest).write_bytes(b"")
    with pytest.raises(MissingBlobs):
        uploads.pack("p", [a_file("f", b"hello")])
    assert uploads.missing("p", [digest]) == [digest]
    assert list((tmp_path / "p").glob("archives/*")) == []


@pytest.mark.parametrize("path", [b"/etc/passwd", b"../x", b"a/../../x", b"a\0b"])
def test_paths_in_bytes_stay_inside_the_source(uploads, path):
    with pytest.raises(UsageError, match="'inside' is no path inside"):
        uploads.pack("p", [SourceFile(path="inside", path_bytes=path, directory=True)])


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x", "a/../../x", "a\0b"])
def test_paths_stay_inside_the_source(uploads, path):
    with pytest.raises(UsageError, match="no path inside"):
        uploads.pack("p", [SourceFile(path=path, directory=True)])


def test_a_path_comes_once(uploads):
    with pytest.raises(UsageError, match="twice"):
        uploads.pack("p", [SourceFile(path="a", directory=True)] * 2)
    same = SourceFile(path="b", path_bytes=b"a", directory=True)
    with pytest.raises(UsageError, match="twice"):
        uploads.pack("p", [SourceFile(path="a", directory=True), same])


def test_a_size_that_is_not_the_contents_is_refused(uploads):
    put(uploads, b"hello")
    wrong = SourceFile(path="f", sha256=hashlib.sha256(b"hello").hexdigest(), size=4)
    with pytest.raises(UsageError, match="has 5 bytes, not 4"):
        uploads.pack("p", [wrong])


def test_an_uploaded_archive_is_an_object(uploads, tmp_path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    digest = put(uploads, packed.getvalue())
    name = uploads.adopt("p", digest, "Source.TGZ")
    assert name == f"p/archives/{digest}.tgz"
    assert (tmp_path / name).read_bytes() == packed.getvalue()
    assert uploads.adopt("p", digest, "again.tgz") == name
    with pytest.raises(UsageError, match="no archive"):
        uploads.adopt("p", digest, "a.exe")
    with pytest.raises(MissingBlobs):
        uploads.adopt("q", digest, "a.tgz")


def test_old_uploads_go_and_asked_for_ones_stay(uploads, tmp_path):
    old, used = put(uploads, b"old"), put(uploads, b"used")
    for digest in (old, used):
        os.utime(tmp_path / "p" / "blobs" / digest[:2] / digest, (1000, 1000))
    uploads.missing("p", [used])
    assert uploads.prune(2000) == 1
    assert uploads.missing("p", [old, used]) == [old]


def test_an_archive_that_a_build_reads_is_not_changed_by_who_asks_for_it_again(uploads, tmp_path):
    put(uploads, b"hello")
    files = [a_file("f", b"hello")]
    name = uploads.pack("p", files)
    store = UploadedSource(str(tmp_path), "p", StorageSource(object=name))
    found = store.find(UPLOADS_BUCKET, name)
    whole = (tmp_path / name).read_bytes()
    assert uploads.pack("p", files) == name
    assert b"".join(store.read(found, 0, threading.Event())) == whole


def test_of_two_who_pack_the_same_at_once_the_first_one_s_archive_stays(uploads, tmp_path):
    put(uploads, b"hello")
    files = [a_file("f", b"hello")]
    pieces = uploads._archive_pieces
    first = []

    def slowly(project, of):  # the other one is through before
        uploads._archive_pieces = pieces
        first.append((tmp_path / uploads.pack(project, of)).stat().st_ino)
        yield from pieces(project, of)

    uploads._archive_pieces = slowly
    name = uploads.pack("p", files)
    assert (tmp_path / name).stat().st_ino == first[0]
    assert [path.name for path in (tmp_path / "p" / "archives").iterdir()] == [
        name.rpartition("/")[2]
    ]


@pytest.mark.parametrize(
    ("name", "is_upload"),
    [
        (f"p/archives/{'a' * 64}.tar", True),
        (f"p/archives/{'a' * 64}.tar.gz", True),
        (f"q/archives/{'a' * 64}.tar", False),
        (f"p/blobs/aa/{'a' * 64}", False),
        (f"p/archives/../../q/archives/{'a' * 64}.tar", False),
        (f"p/archives/{'A' * 64}.tar", False),
        (f"p/archives/{'a' * 64}.json", False),
        (f"p/archives/{'a' * 64}.tar\n", False),
        ("", False),
    ],
)
def test_only_uploaded_archives_of_a_project_are_its_uploads(name, is_upload):
    assert is_upload_of("p", name) == is_upload


def read(tmp_path, name, project="p", bucket=UPLOADS_BUCKET, requested=None):
    store = UploadedSource(str(tmp_path), project, StorageSource(object=name))
    found = store.find(bucket, requested or name)
    return b"".join(store.read(found, 0, threading.Event()))


def test_a_build_reads_the_archive_that_is_its_source_and_nothing_else(uploads, tmp_path):
    put(uploads, b"hello")
    put(uploads, b"other")
    own = uploads.pack("p", [a_file("f", b"hello")])
    other = uploads.pack("p", [a_file("f", b"other")])
    assert read(tmp_path, own) == (tmp_path / own).read_bytes()
    for refused in (
        {"requested": other},
        {"project": "q"},
        {"bucket": "elsewhere"},
    ):
        with pytest.raises(StorageError, match="was not uploaded for this build's project"):
            read(tmp_path, own, **refused)


def test_an_archive_that_is_gone_is_named_by_its_bucket_and_not_by_the_servers_folder(
    uploads, tmp_path
):
    put(uploads, b"hello")
    name = uploads.pack("p", [a_file("f", b"hello")])
    (tmp_path / name).unlink()
    with pytest.raises(StorageError) as error:
        read(tmp_path, name)
    assert str(error.value) == f"there is no object gs://{UPLOADS_BUCKET}/{name}"


def test_a_build_changes_no_uploads(uploads, tmp_path):
    put(uploads, b"hello")
    name = uploads.pack("p", [a_file("f", b"hello")])
    store = UploadedSource(str(tmp_path), "p", StorageSource(object=name))
    whole = (tmp_path / name).read_bytes()
    with pytest.raises(StorageError, match="can't be written"):
        store.write(UPLOADS_BUCKET, name, io.BytesIO(b"x"), 1, content_type="text/plain")
    assert (tmp_path / name).read_bytes() == whole


@pytest.mark.parametrize("content", [b"something else", b""])
@pytest.mark.parametrize("kind", ["packed", "adopted"])
def test_an_archive_that_was_changed_on_disk_is_refused_and_made_again(
    uploads, tmp_path, content, kind
):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    digest = put(uploads, packed.getvalue())
    put(uploads, b"hello")

    def make():
        if kind == "packed":
            return uploads.pack("p", [a_file("f", b"hello")])
        return uploads.adopt("p", digest, "a.tgz")

    name = make()
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(StorageError, match="is not what was uploaded"):
        read(tmp_path, name)
    if kind == "adopted":
        assert uploads.missing("p", [digest]) == [digest]
        put(uploads, packed.getvalue())
    assert make() == name
    assert read(tmp_path, name) == whole


class TestQuota:
    def test_a_blob_beyond_the_quota_is_refused_and_leaves_nothing(self, tmp_path):
        uploads = SourceUploads(str(tmp_path), quota_bytes=100_000)
        with pytest.raises(UploadQuotaExceeded, match="project p would take more than"):
            put(uploads, b"x" * 200_000)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []

    def test_many_small_files_count_as_blocks_of_the_disk(self, tmp_path):
        uploads = SourceUploads(str(tmp_path), quota_bytes=10 * 4096)
        for number in range(9):
            put(uploads, b"%d" % number)
        with pytest.raises(UploadQuotaExceeded):
            put(uploads, b"one more")

    def test_other_projects_have_their_own(self, tmp_path):
        uploads = SourceUploads(str(tmp_path), quota_bytes=100_000)
        put(uploads, b"x" * 90_000)
        put(uploads, b"x" * 90_000, project="q")

    def test_what_is_there_already_counts_and_what_expired_does_not(self, tmp_path, monkeypatch):
        put(SourceUploads(str(tmp_path)), b"x" * 90_000)
        uploads = SourceUploads(str(tmp_path), quota_bytes=100_000)
        with pytest.raises(UploadQuotaExceeded):
            put(uploads, b"y" * 90_000)
        assert uploads.prune(time.time() + 1) == 1
        monkeypatch.setattr(module, "_RECOUNT_S", 0.0)
        put(uploads, b"y" * 90_000)

    def test_an_archive_of_many_copies_of_a_file_is_refused(self, tmp_path):
        uploads = SourceUploads(str(tmp_path), quota_bytes=100_000)
        sum_ = put(uploads, b"x" * 50_000)
        files = [SourceFile(path=f"f{n}", sha256=sum_, size=50_000) for n in range(1000)]
        with pytest.raises(UploadQuotaExceeded):
            uploads.pack("p", files)
