"""Archives and manifests in buckets as sources, fetched from a real server."""

import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import stat
import tarfile
import tempfile
import threading
import tracemalloc
import zipfile
from datetime import UTC, datetime

import pytest

from buildrunner.archives.members import ArchiveLimits
from buildrunner.archives.tar_writer import pack
from buildrunner.build_run.execution import source_workspace
from buildrunner.build_run.request import BuildRequest
from buildrunner.containers.fake import FakeEngine
from buildrunner.errors import EngineError, SourceError
from buildrunner.plan.resolve import PlanContext
from buildrunner.settings import Settings
from buildrunner.sources.bucket.archive import StorageArchive
from buildrunner.sources.bucket.manifest import StorageManifest
from buildrunner.sources.bucket.staging import Staging
from buildrunner.sources.local_folder import LocalArchive, LocalFolder
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.results import FileHashes, Hash, HashType
from buildrunner.spec.model.source import Source, StorageSource, StorageSourceManifest
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.storage.gcs import GoogleStore
from buildrunner.storage.object_store import ObjectReader, parse_object_url
from buildrunner.storage.stores import Stores
from buildrunner.workspace.fetched import FetchedWorkspace
from buildrunner.workspace.protocol import Preparation
from tests.conftest import files_of_at_most
from tests.fixtures_gcs import Fault, faulty, running_gcs

BUCKET = "source-bucket"
FILES = {"hello.txt": b"hello\n", "deep/er/data.bin": bytes(range(256)) * 300}


@pytest.fixture(scope="module")
def server():
    with running_gcs() as running:
        running.bucket(BUCKET)
        yield running


@pytest.fixture(autouse=True)
def emulator(server, monkeypatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)


@pytest.fixture
def proxy(server, monkeypatch):
    with faulty(server.url) as running:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", running.url)
        yield running


class Report:
    def __init__(self):
        self.lines = []
        self.moves = []

    def line(self, text):
        self.lines.append(text)

    def moved(self, name, current_bytes, total_bytes):
        self.moves.append((name, current_bytes, total_bytes))


class Unpacked:
    """Takes the members of a fetch as a tar stream; the last one counts, as in a workspace."""

    def __init__(self):
        self.times = 0
        self.tree = {}

    def __call__(self, members):
        self.times += 1
        self.tree = {}
        data = b"".join(pack(members))
        with tarfile.open(fileobj=io.BytesIO(data)) as opened:
            for member in opened:
                assert (member.uid, member.gid) == (0, 0)
                content = opened.extractfile(member).read() if member.isreg() else b""
                self.tree[member.name] = (content, stat.S_IMODE(member.mode))

    @property
    def files(self):
        return {name: content for name, (content, _) in self.tree.items()}


def tar(mode="w:gz", files=FILES):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o755 if name.endswith(".txt") else 0o644
            opened.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zipped(files=FILES):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in files.items():
            # The time of a ZipInfo is fixed, so that the same files are the same bytes at any time.
            opened.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def fetch(source, *, cancel=None, unpack=None, report=None):
    unpack = unpack or Unpacked()
    report = report or Report()
    fetched = source.fetch(unpack, cancel=cancel or threading.Event(), report=report)
    return fetched, unpack, report


def archive(name, generation=0, **options):
    source = StorageSource(bucket=BUCKET, object=name, generation=generation)
    return StorageArchive(source, GoogleStore(), wait_s=0.001, **options)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.tgz", tar()),
        ("a.tar.gz", tar()),
        ("a.tar", tar("w")),
        ("a.zip", zipped()),
        ("without-ending", tar()),
        ("unpacked.tgz", tar("w")),
    ],
)
def test_every_kind_of_archive_is_unpacked(server, name, data):
    generation = server.put(BUCKET, name, data)
    fetched, unpacked, _ = fetch(archive(name))
    assert unpacked.files == FILES
    assert (fetched.files, fetched.size_bytes) == (2, sum(map(len, FILES.values())))
    resolved = fetched.provenance.resolved_storage_source
    assert (resolved.bucket, resolved.object) == (BUCKET, name)
    assert resolved.generation == generation
    assert fetched.provenance.file_hashes == {}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("twice.tgz", gzip.compress(tar())),  # as `gsutil cp -Z` stores a .tgz
        ("once.tar", gzip.compress(tar("w"))),
        ("marked.tgz", tar()),
        ("zipped.zip", gzip.compress(zipped())),
        ("never.tar", tar("w")),
        ("never.zip", zipped()),
    ],
)
def test_a_content_encoding_is_undone_once_as_gsutil_does(server, proxy, name, data):
    server.put(BUCKET, name, data, encoding="gzip")
    proxy.faults = [Fault("/download/", cut_after=100)]
    fetched, unpacked, _ = fetch(archive(name, hashes=[HashType.SHA256]))
    assert unpacked.files == FILES
    (sums,) = fetched.provenance.file_hashes.values()
    assert sums.file_hash[0].value == hashlib.sha256(data).digest()


@pytest.mark.parametrize("name", ["damaged.tgz", "damaged.zip"])
def test_a_damaged_content_encoding_is_told_from_a_damaged_transfer(server, proxy, name):
    content = zipped() if name.endswith(".zip") else tar()
    server.put(BUCKET, name, gzip.compress(content)[:-9], encoding="gzip")
    with pytest.raises(SourceError, match="damaged: it breaks off"):
        fetch(archive(name))
    server.put(BUCKET, name, gzip.compress(content), encoding="gzip")
    proxy.faults = [Fault("/download/", swap=(b"\x1f\x8b\x08", b"\x1f\x8b\x09"))]
    report = Report()
    assert fetch(archive(name), report=report)[1].files == FILES
    assert [line for line in report.lines if "its checksum is not" in line]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("within.tgz", gzip.compress(tar(files={"f": bytes(10_000_000)}))),
        ("between.tgz", gzip.compress(tar() + bytes(10_000_000))),
        ("bomb.zip", gzip.compress(bytes(10_000_000))),
    ],
)
def test_a_content_encoding_hides_no_bomb(server, name, data):
    server.put(BUCKET, name, data, encoding="gzip")
    with pytest.raises(SourceError, match="200 times"):
        fetch(archive(name, limits=ArchiveLimits(ratio_from_bytes=1_000_000)))


def test_the_log_reads_as_on_the_hosted_service(server):
    data = tar()
    generation = server.put(BUCKET, "log.tgz", data)
    _, _, report = fetch(archive("log.tgz"))
    size = f"{len(data) / 1024:.1f} KiB" if len(data) >= 1024 else f"{len(data):.1f} B"
    url = f"gs://{BUCKET}/log.tgz"
    assert report.lines == [
        f"Fetching storage object: {url}",
        f"Copying {url}#{generation}...",
        f"/ [1 files][{size:>9}/{size:>9}]",
        f"Operation completed over 1 objects/{size}.",
    ]
    assert report.moves[-1] == (url, len(data), len(data))


def test_the_log_names_the_bucket_and_not_the_folder_that_stands_for_it(tmp_path):
    folder = tmp_path / "buckets"
    folder.mkdir()
    (folder / "s.tgz").write_bytes(tar())
    stores = Stores({f"gs://{BUCKET}": f"file://{folder}"})
    source = StorageArchive(
        StorageSource(bucket=BUCKET, object="s.tgz"),
        stores.store_of(BUCKET, "s.tgz"),
        hashes=(HashType.SHA256,),
    )
    fetched, _, report = fetch(source)
    assert report.lines[1].startswith(f"Copying gs://{BUCKET}/s.tgz#")
    assert str(tmp_path) not in "".join(report.lines)
    assert next(iter(fetched.provenance.file_hashes)).startswith(f"gs://{BUCKET}/s.tgz#")


def test_a_named_generation_is_the_one_that_is_built_or_nothing(server):
    old = server.put(BUCKET, "pinned.tgz", tar())
    assert fetch(archive("pinned.tgz", old))[1].files == FILES
    server.put(BUCKET, "pinned.tgz", tar(files={"other": b""}))
    with pytest.raises(SourceError, match=f"there is no generation {old} of gs://"):
        fetch(archive("pinned.tgz", old))


def test_an_object_that_changes_while_it_is_fetched_is_never_mixed(server, proxy):
    first = tar("w", {"f": hashlib.shake_128(b"1").digest(2_000_000)})
    server.put(BUCKET, "moving.tar", first)
    source = archive("moving.tar")
    proxy.faults = [Fault("/download/", cut_after=1_000_000)]
    report = Report()
    report.line = lambda text: (
        server.put(BUCKET, "moving.tar", tar("w", {"f": bytes(2_000_000)}))
        if text.startswith("Trying again")
        else None
    )
    with pytest.raises(SourceError, match="not found"):
        fetch(source, report=report)


def test_hashes_of_the_archive_are_in_the_provenance(server):
    data = tar()
    generation = server.put(BUCKET, "hashed.tgz", data)
    kinds = (HashType.SHA256, HashType.MD5, HashType.SHA512, HashType.NONE)
    fetched, _, _ = fetch(archive("hashed.tgz", hashes=kinds))
    (entry,) = fetched.provenance.file_hashes.items()
    assert entry[0] == f"gs://{BUCKET}/hashed.tgz#{generation}"
    assert {one.type: one.value for one in entry[1].file_hash} == {
        HashType.SHA256: hashlib.sha256(data).digest(),
        HashType.MD5: hashlib.md5(data).digest(),
        HashType.SHA512: hashlib.sha512(data).digest(),
    }


def test_a_cut_and_refusals_in_the_middle_change_nothing(server, proxy):
    files = {"f": hashlib.shake_128(b"x").digest(3_000_000)}
    server.put(BUCKET, "cut.tgz", tar(files=files))
    proxy.faults = [
        Fault("/o/cut.tgz", status=500),
        Fault("/download/", cut_after=1_500_000),
        Fault("/download/", status=429),
        Fault("/download/", cut_after=700_000),
    ]
    _, unpacked, report = fetch(archive("cut.tgz"))
    assert unpacked.files == files
    assert unpacked.times == 1
    assert len([line for line in report.lines if line.startswith("Trying again: ")]) == 4


def test_bytes_changed_on_the_way_are_fetched_once_more(server, proxy):
    server.put(BUCKET, "flip.tar", tar("w", {"f": b"the truth, all of it"}))
    proxy.faults = [Fault("/download/", swap=(b"truth", b"lie!!"))]
    _, unpacked, _ = fetch(archive("flip.tar"))
    assert unpacked.files == {"f": b"the truth, all of it"}
    assert unpacked.times == 2
    packed = tar(files={"f": hashlib.shake_128(b"x").digest(100_000)})
    server.put(BUCKET, "flip.tgz", packed)
    proxy.faults = [Fault("/download/", swap=(packed[1000:1010], bytes(10)))]
    _, unpacked, _ = fetch(archive("flip.tgz"))
    assert list(unpacked.files) == ["f"]
    proxy.faults = [Fault("/download/", times=9, swap=(b"truth", b"lie!!"))]
    with pytest.raises(SourceError, match="its checksum is not that of the object"):
        fetch(archive("flip.tar"))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("no-archive.tgz", b"just text, and not even much of it", "damaged"),
        ("no-zip.zip", tar(), "damaged"),
        ("zip-by-content.tgz", zipped(), "damaged"),
        ("half.tgz", tar()[:-20], "damaged"),
        ("empty.tgz", b"", "empty"),
        ("escape.tgz", tar(files={"../../etc/passwd": b"x"}), "outside the workspace"),
        ("escape.zip", zipped({"/etc/passwd": b"x"}), "outside the workspace"),
    ],
)
def test_what_is_no_archive_or_not_safe_is_refused(server, name, data, message):
    server.put(BUCKET, name, data)
    with pytest.raises(SourceError, match=message) as caught:
        fetch(archive(name))
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused(server):
    server.put(BUCKET, "bomb.tgz", tar(files={"f": bytes(10_000_000)}))
    with pytest.raises(SourceError, match="200 times"):
        fetch(archive("bomb.tgz", limits=ArchiveLimits(ratio_from_bytes=1_000_000)))


def test_what_is_missing_or_forbidden_is_one_sentence(server, proxy):
    with pytest.raises(SourceError, match=r"^the source can't be fetched: there is no object gs:"):
        fetch(archive("nothing.tgz"))
    nowhere = StorageSource(bucket="no-such-bucket", object="a.tgz")
    with pytest.raises(SourceError, match='bucket "gs://no-such-bucket" does not exist'):
        fetch(StorageArchive(nowhere, GoogleStore()))
    proxy.faults = [Fault("/o/a.tgz", times=9, status=403)]
    with pytest.raises(SourceError, match="access denied") as caught:
        fetch(archive("a.tgz"))
    assert "gcloud auth" in caught.value.hint


@pytest.mark.parametrize("where", ["/o/held.tgz", "/download/"])
def test_a_cancel_frees_a_fetch_that_hangs(server, proxy, where):
    server.put(BUCKET, "held.tgz", tar())
    hold, cancel = threading.Event(), threading.Event()
    proxy.faults = [Fault(where, hold=hold)]
    threading.Timer(0.1, cancel.set).start()
    with pytest.raises(SourceError, match="stopped"):
        fetch(archive("held.tgz"), cancel=cancel)
    assert not hold.is_set()
    hold.set()


def test_memory_does_not_grow_with_the_archive(server):
    server.put(BUCKET, "large.tar", tar("w", {"f": bytes(64 * 1024 * 1024)}))
    store = GoogleStore()
    found = store.find(BUCKET, "large.tar")
    reader = ObjectReader(store, found, cancel=threading.Event())
    tracemalloc.start()
    try:
        while reader.read(256 * 1024):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * 1024 * 1024


class FullEngine(FakeEngine):
    """An engine whose disk is full."""

    def fill_mount(self, container_id, target, tar):
        for _ in tar:
            pass
        raise EngineError("files can't be copied: write /workspace/f: no space left on device")


def test_a_full_disk_is_a_source_that_cannot_be_unpacked(server):
    server.put(BUCKET, "full.tgz", tar())
    workspace = FetchedWorkspace(archive("full.tgz"))
    engine = FullEngine()
    with pytest.raises(SourceError, match="disk is full"):
        workspace.prepare(Preparation(engine, "b1", {"l": "v"}, threading.Event()))
    workspace.release()
    owned = engine.list_owned({"l": "v"})
    assert (owned.containers, owned.volumes) == ((), ())


# --- manifests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beyond", [3000, 300_000])
def test_a_full_disk_is_said_of_a_zip_that_can_not_be_kept(server, beyond):
    data = zipped({"f": hashlib.shake_128(b"f").digest(70_000 + beyond)})
    server.put(BUCKET, "large.zip", data)
    with files_of_at_most(70_000), pytest.raises(SourceError) as caught:
        fetch(archive("large.zip"))
    assert str(caught.value) == (
        "the source archive can't be kept while it is unpacked: File too large"
    )
    assert "TMPDIR" in caught.value.hint


def test_a_folder_for_temporary_files_that_is_not_there_is_one_sentence(server, monkeypatch):
    server.put(BUCKET, "small.zip", zipped())
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    with pytest.raises(SourceError, match="a temporary file can't be made: No such file"):
        fetch(archive("small.zip"))


def put_manifest(server, name, entries):
    return server.put(BUCKET, name, json.dumps(entries).encode())


def manifest(name, **options):
    source = StorageSourceManifest(bucket=BUCKET, object=name)
    return StorageManifest(source, Stores({}), wait_s=0.001, **options)


def entry(server, name, content, url="gs://{bucket}/{name}", **fields):
    generation = server.put(BUCKET, name, content)
    return {
        "sourceUrl": url.format(bucket=BUCKET, name=name, generation=generation),
        "sha1sum": hashlib.sha1(content).hexdigest(),
        **fields,
    }


def test_the_files_of_a_manifest_are_fetched_read_only(server):
    many = {f"dir/{n:03}": f"content {n}".encode() for n in range(60)}
    entries = {path: entry(server, f"blobs/{n}", many[path]) for n, path in enumerate(many)}
    entries["pinned"] = entry(server, "p", b"p", url="gs://{bucket}/{name}#{generation}")
    web = "https://storage.googleapis.com/{bucket}/{name}"
    entries["web"] = entry(server, "w ü", b"w", url=web, mode=0o777)
    entries["shout"] = {**entries["web"], "sha1sum": entries["web"]["sha1sum"].upper()}
    generation = put_manifest(server, "m.json", entries)
    fetched, unpacked, _ = fetch(manifest("m.json", hashes=[HashType.SHA256]))
    assert unpacked.files == {**many, "pinned": b"p", "web": b"w", "shout": b"w"}
    assert {mode for _, mode in unpacked.tree.values()} == {0o555}
    assert fetched.files == 63
    resolved = fetched.provenance.resolved_storage_source_manifest
    assert (resolved.object, resolved.generation) == ("m.json", generation)
    (sum_,) = fetched.provenance.file_hashes["dir/007"].file_hash
    assert sum_.value == hashlib.sha256(b"content 7").digest()


def test_a_content_encoding_of_a_manifest_and_its_files_is_undone(server):
    name = "m.json.gz"
    sums = {
        path: {
            "sourceUrl": f"gs://{BUCKET}/encoded/{path}",
            "sha1sum": hashlib.sha1(content).hexdigest(),
        }
        for path, content in {**FILES, "empty": b""}.items()
    }
    for path, content in FILES.items():
        server.put(BUCKET, f"encoded/{path}", gzip.compress(content), encoding="gzip")
    server.put(BUCKET, "encoded/empty", b"", encoding="gzip")
    server.put(BUCKET, name, gzip.compress(json.dumps(sums).encode()), encoding="gzip")
    fetched, unpacked, _ = fetch(manifest(name, hashes=[HashType.SHA256]))
    assert unpacked.files == {**FILES, "empty": b""}
    assert fetched.size_bytes == sum(map(len, FILES.values()))
    (sum_,) = fetched.provenance.file_hashes["hello.txt"].file_hash
    assert sum_.value == hashlib.sha256(FILES["hello.txt"]).digest()
    server.put(BUCKET, "encoded/hello.txt", gzip.compress(b"hello\n")[:-1], encoding="gzip")
    with pytest.raises(SourceError, match=r"hello.txt#\d+ has the Content-Encoding gzip, but"):
        fetch(manifest(name))


def test_a_file_with_another_sum_is_tried_three_times_and_refused(server, proxy):
    put_manifest(server, "bad.json", {"f": entry(server, "b", b"b", sha1sum="0" * 40)})
    with pytest.raises(SourceError, match=f"but the manifest says {'0' * 40}"):
        fetch(manifest("bad.json"))
    assert len([1 for _, path, _ in proxy.seen if "/download/" in path and "/o/b?" in path]) == 3


def test_a_full_disk_is_said_of_a_manifest_s_file(server):
    large = hashlib.shake_128(b"f").digest(2_000_000)
    put_manifest(server, "large.json", {"big/file": entry(server, "large", large)})
    with files_of_at_most(1_200_000), pytest.raises(SourceError) as caught:
        fetch(manifest("large.json"))
    assert str(caught.value) == "big/file can't be kept while it is unpacked: File too large"


def test_files_of_a_manifest_survive_troubles(server, proxy):
    put_manifest(server, "hard.json", {"f": entry(server, "hard", b"x" * 400_000)})
    proxy.faults = [
        Fault("/o/hard?", cut_after=300_000),
        Fault("/o/hard?", status=503),
        Fault("/o/hard?", status=429),
    ]
    assert fetch(manifest("hard.json"))[1].files == {"f": b"x" * 400_000}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b'{"a": 1}', "has no sourceUrl"),
        (b'{"a": {"sourceUrl": "gs://b/o", "sha1sum": 1}}', "sha1sum that is text"),
        (b'{"a": {"sourceUrl": "https://example.com/b/o"}}', "is not an object"),
        (b'{"../a": {"sourceUrl": "gs://b/o"}}', "outside the workspace"),
        (b'{"/a": {"sourceUrl": "gs://b/o"}}', "outside the workspace"),
        (b'{".": {"sourceUrl": "gs://b/o"}}', "the workspace itself"),
        (b'{"a": {"sourceUrl": "gs://source-bucket/not-there"}}', "there is no object"),
    ],
)
def test_a_manifest_that_is_none_is_refused(server, text, message):
    server.put(BUCKET, "odd.json", text)
    with pytest.raises(SourceError, match=message) as caught:
        fetch(manifest("odd.json"))
    assert "\n" not in str(caught.value)


# --- the limit of a server -----------------------------------------------------------------------

LIMIT = 1_000_000


def prepared(**source):
    """Fetch a source as a build of a server does, whose builds may write LIMIT bytes."""
    build = Build(id="b1", source=Source(**source))
    request = BuildRequest(build=build, context=PlanContext(built_ins=BuiltIns(project_id="p")))
    policy = SourcePolicy(largest_bytes=LIMIT)
    workspace = source_workspace(request, build, Settings(), policy=policy)
    report = Report()
    try:
        preparation = Preparation(FakeEngine(), "b1", {}, threading.Event(), report=report)
        return workspace.prepare(preparation)
    finally:
        workspace.release()
        assert not any(line.startswith("Operation completed") for line in report.lines)


@pytest.mark.parametrize("name", ["stored.zip", "stored.tar"])
def test_an_archive_beyond_the_limit_is_refused_by_its_size(server, proxy, name):
    server.put(BUCKET, name, os.urandom(LIMIT + 1))
    with pytest.raises(SourceError, match=r"has 976\.6 KiB, and a source may have"):
        prepared(storage_source=StorageSource(bucket=BUCKET, object=name))
    assert not [path for _, path, _ in proxy.seen if "/download/" in path]


@pytest.mark.parametrize(
    ("name", "data", "encoding"),
    [
        ("large.tgz", tar(files={"zeros": bytes(5 * LIMIT)}), ""),
        ("large.zip", zipped({"zeros": bytes(5 * LIMIT)}), ""),
        ("encoded.zip", gzip.compress(zipped({"zeros": bytes(5 * LIMIT)})), "gzip"),
        ("encoded2.zip", gzip.compress(bytes(5 * LIMIT)), "gzip"),
    ],
)
def test_an_archive_is_refused_once_its_content_is_beyond_the_limit(server, name, data, encoding):
    server.put(BUCKET, name, data, encoding=encoding)
    with files_of_at_most(2 * LIMIT), pytest.raises(SourceError, match="unpacks to more than"):
        prepared(storage_source=StorageSource(bucket=BUCKET, object=name))


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_the_files_of_a_manifest_are_counted_while_they_arrive(server, encoding):
    content = bytes(LIMIT * 2 // 5)
    stored = gzip.compress(content) if encoding else content
    server.put(BUCKET, "part", stored, encoding=encoding)
    entries = {f"f{n}": {"sourceUrl": f"gs://{BUCKET}/part"} for n in range(3)}
    put_manifest(server, "parts.json", entries)
    manifest = StorageSourceManifest(bucket=BUCKET, object="parts.json")
    with pytest.raises(SourceError, match=r"manifest have more than the 976\.6 KiB"):
        prepared(storage_source_manifest=manifest)
    entries.popitem()
    put_manifest(server, "parts.json", entries)
    assert prepared(storage_source_manifest=manifest).size_bytes == 2 * len(content)


def test_a_file_of_a_manifest_beyond_the_limit_is_refused_by_its_size(server, proxy):
    put_manifest(server, "one.json", {"f": entry(server, "large-one", bytes(LIMIT + 1))})
    with pytest.raises(SourceError, match=r"a source may have 976\.6 KiB"):
        prepared(storage_source_manifest=StorageSourceManifest(bucket=BUCKET, object="one.json"))
    paths = [path for _, path, _ in proxy.seen if "/o/large-one?" in path]
    assert paths
    assert not [path for path in paths if "/download/" in path]


def test_a_file_that_is_tried_again_counts_once(server, proxy):
    content = b"truth" + os.urandom(LIMIT * 4 // 5)
    put_manifest(server, "again.json", {"f": entry(server, "again", content)})
    proxy.faults = [Fault("/o/again?", times=2, swap=(b"truth", b"lie!!"))]
    manifest = StorageSourceManifest(bucket=BUCKET, object="again.json")
    assert prepared(storage_source_manifest=manifest).size_bytes == len(content)
    assert (
        len([1 for _, path, _ in proxy.seen if "/download/" in path and "/o/again?" in path]) == 2
    )


# --- from this machine ---------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "data"), [("s.tgz", tar()), ("s.zip", zipped())])
def test_an_archive_of_this_machine_is_unpacked(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    fetched, unpacked, report = fetch(LocalArchive(str(tmp_path / name)))
    assert unpacked.files == FILES
    assert fetched.provenance is None
    assert report.lines == [f"Source: {tmp_path / name} ({len(data)} bytes)"]


def test_an_archive_of_this_machine_has_the_hashes_that_are_asked_for(tmp_path):
    path = tmp_path / "s.tgz"
    path.write_bytes(tar())
    wanted = (HashType.SHA256, HashType.MD5, HashType.NONE)
    fetched, _, _ = fetch(LocalArchive(str(path), wanted))
    assert fetched.provenance.file_hashes == {
        str(path): FileHashes(
            file_hash=(
                Hash(type=HashType.SHA256, value=hashlib.sha256(tar()).digest()),
                Hash(type=HashType.MD5, value=hashlib.md5(tar()).digest()),
            )
        )
    }


def test_an_archive_of_this_machine_that_is_gone(tmp_path):
    with pytest.raises(SourceError, match="No such file"):
        fetch(LocalArchive(str(tmp_path / "s.tgz")))


def staging(said, place=f"gs://{BUCKET}/stage/", moved=lambda _: None):
    return Staging(
        Stores({}),
        parse_object_url(place),
        now=datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
        token="0f" * 16,
        say=said.append,
        bar=lambda _: contextlib.nullcontext(moved),
    )


def test_a_folder_is_staged_as_gcloud_does(server, tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / "a.txt").write_bytes(b"a" * 1500)
    (tmp_path / "link").symlink_to("a.txt")
    said = []
    source = staging(said).stage_folder(LocalFolder(str(tmp_path)), ".")
    assert source.object == f"stage/1704164645.678901-{'0f' * 16}.tgz"
    assert source.generation > 0
    assert said == [
        "Creating temporary archive of 2 file(s) totalling 1.5 KiB before compression.",
        "Some files were not included in the source upload.",
        f"Uploading tarball of [.] to [gs://{BUCKET}/{source.object}]",
    ]
    fetched, unpacked, _ = fetch(StorageArchive(source, GoogleStore()))
    assert unpacked.files == {"a.txt": b"a" * 1500, "link": b""}
    assert fetched.provenance.resolved_storage_source == source


def test_a_busy_server_is_told_of_while_a_source_is_staged(proxy, tmp_path):
    proxy.faults = [Fault("/upload/", status=503)]
    said = []
    source = staging(said).stage_folder(LocalFolder(str(tmp_path)), ".")
    assert said[2:] == [f"Trying again: gs://{BUCKET}/{source.object}: the server answers 503"]


@pytest.mark.parametrize("size", [1000, 20 << 20])
def test_how_far_staging_is_ends_at_its_size_after_further_tries_too(proxy, tmp_path, size):
    (tmp_path / "s.tgz").write_bytes(bytes(size))
    proxy.faults = [Fault("/upload/", status=503), Fault("upload_id=", status=404)]
    moved = []
    staging([], moved=moved.append).stage_file(str(tmp_path / "s.tgz"))
    assert sum(moved) == size


def test_an_archive_is_staged_as_it_is(server, tmp_path):
    (tmp_path / "s.zip").write_bytes(zipped())
    said = []
    source = staging(said, f"gs://{BUCKET}").stage_file(str(tmp_path / "s.zip"))
    assert re.fullmatch(r"1704164645\.678901-(0f){16}\.zip", source.object)
    assert server.get(BUCKET, source.object) == zipped()
    assert said == [
        f"Uploading local file [{tmp_path / 's.zip'}] to [gs://{BUCKET}/{source.object}]."
    ]


@pytest.mark.parametrize("beyond", [1000, 300_000])
def test_a_full_disk_is_said_of_a_folder_that_can_not_be_packed(tmp_path, beyond):
    (tmp_path / "f").write_bytes(hashlib.shake_128(b"f").digest(70_000 + beyond))
    with files_of_at_most(70_000), pytest.raises(SourceError) as caught:
        staging([]).stage_folder(LocalFolder(str(tmp_path)), ".")
    assert str(caught.value) == "the source can't be packed: File too large"


def test_a_place_for_staging_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match='bucket "gs://no-such-bucket" does not exist'):
        staging([], "gs://no-such-bucket/x").stage_folder(LocalFolder(str(tmp_path)), ".")
