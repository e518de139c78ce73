"""Uploads of files from a real workspace to a real server, and to a folder."""

import base64
import hashlib
import io
import json
import subprocess
import tarfile
import tempfile
import threading
import uuid

import pytest

from buildrunner.artifacts.objects import GcsUploader
from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.errors import UploadError
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.storage.stores import Stores
from buildrunner.workspace.files import WorkspaceFiles
from buildrunner.workspace.protocol import PreparedWorkspace
from buildrunner.workspace.volume import fill_volume
from tests.conftest import needs_root
from tests.contract.test_container_engine import is_podman
from tests.fixtures_gcs import Fault, faulty, running_gcs

pytestmark = pytest.mark.docker

BUCKET = "artifact-bucket"


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


class Bench:
    """A workspace on the engine, with what a test puts into it."""

    def __init__(self, engine, labels):
        self.engine = engine
        self.labels = labels
        self.volume = f"{labels[LABEL_BUILD]}-workspace"
        self.build_id = f"build-{uuid.uuid4().hex[:8]}"
        self.folder = f"dir-{uuid.uuid4().hex[:8]}"
        self.report = Report()
        engine.create_volume(self.volume, labels)

    def fill(self, files, links=(), hard_links=(), specials=()):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(f"workspace/{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            for kind, name in specials:
                member = tarfile.TarInfo(f"workspace/{name}")
                member.type = kind
                tar.addfile(member)
            for kind, pairs in ((tarfile.SYMTYPE, links), (tarfile.LNKTYPE, hard_links)):
                for name, target in pairs:
                    member = tarfile.TarInfo(f"workspace/{name}")
                    member.type = kind
                    below = "workspace/" if kind == tarfile.LNKTYPE else ""
                    member.linkname = f"{below}{target}"
                    tar.addfile(member)
        fill_volume(self.engine, self.volume, self.labels, [buffer.getvalue()])

    def upload(self, *paths, stores=None, source_dir="", cancel=None, location=None):
        cancel = cancel or threading.Event()
        plan = BuildPlan(
            build_id=self.build_id,
            project_id="p",
            steps=(),
            object_location=location or f"gs://{BUCKET}/{self.folder}/",
            object_paths=paths,
            source_dir=source_dir,
        )
        workspace = PreparedWorkspace(volume=self.volume)
        return GcsUploader(stores or Stores({})).upload(
            plan,
            lambda: WorkspaceFiles(self.engine, workspace, self.labels, cancel),
            report=self.report,
            cancel=cancel,
        )

    def uploaded(self, server):
        """Name in the location -> content, without the manifest."""
        start = f"{self.folder}/"
        return {
            name.removeprefix(start): server.get(BUCKET, name)
            for name in server.names(BUCKET)
            if name.startswith(start) and "artifacts-" not in name
        }


@pytest.fixture
def bench(docker_engine, build_labels):
    made = Bench(docker_engine, build_labels)
    yield made
    assert docker_engine.list_owned(build_labels).containers == ()


def test_files_go_up_with_their_list_and_the_log_says_so(bench, server):
    bench.fill({"a.txt": b"A", "out/b.txt": b"B", "out/c.txt": b"C", "out/d.bin": b"D"})
    result = bench.upload("a.txt", "out/*.txt")
    assert bench.uploaded(server) == {"a.txt": b"A", "b.txt": b"B", "c.txt": b"C"}
    url = f"gs://{BUCKET}/{bench.folder}/"
    manifest = f"artifacts-{bench.build_id}.json"
    assert bench.report.lines == [
        f"Artifacts will be uploaded to gs://{BUCKET} using gsutil cp",
        "a.txt: Uploading path....",
        "a.txt: 1 matching files uploaded",
        "out/*.txt: Uploading path....",
        "out/*.txt: 2 matching files uploaded",
        f"3 total artifacts uploaded to {url}",
        f"Uploading manifest {manifest}",
        f"Artifact manifest located at {url}{manifest}",
    ]
    assert (result.manifest_url, result.count) == (f"{url}{manifest}", 3)
    assert result.timing.start < result.timing.end
    lines = server.get(BUCKET, f"{bench.folder}/{manifest}").decode().splitlines()
    entries = [json.loads(line) for line in lines]
    for entry, (name, content) in zip(
        entries, [("a.txt", b"A"), ("b.txt", b"B"), ("c.txt", b"C")], strict=True
    ):
        location, _, generation = entry["location"].partition("#")
        assert location == url + name
        assert generation.isdecimal()
        ((one,),) = [group["file_hash"] for group in entry["file_hash"]]
        assert one["type"] == 2
        md5 = base64.b64decode(base64.b64decode(one["value"]))
        assert md5 == hashlib.md5(content).digest()
    assert (f"{url}a.txt", 1, 1) in bench.report.moves


def test_globs_reach_as_far_as_they_say(bench, server):
    bench.fill({"r/a.xml": b"1", "r/x/b.xml": b"2", "r/x/.c.xml": b"3", "r/x/d.txt": b"4"})
    bench.upload("r/**/*.xml")
    assert bench.uploaded(server) == {"a.xml": b"1", "x/b.xml": b"2", "x/.c.xml": b"3"}


def test_paths_begin_in_the_folder_of_the_source(bench, server):
    bench.fill({"app/a.txt": b"in", "a.txt": b"out"})
    bench.upload("*.txt", source_dir="app")
    assert bench.uploaded(server) == {"a.txt": b"in"}


def test_later_files_of_the_same_name_win(bench, server):
    bench.fill({f"{n}/same": str(n).encode() for n in range(5)})
    result = bench.upload("*/same", "2/same")
    assert bench.uploaded(server) == {"same": b"2"}
    assert result.count == 6


def test_pipes_and_devices_of_the_workspace_are_no_files(bench, server):
    bench.fill(
        {"out/a": b"A"},
        links=[("out/nowhere", "nothing"), ("out/to-pipe", "pipe")],
        specials=[(tarfile.FIFOTYPE, "out/pipe"), (tarfile.CHRTYPE, "out/device")],
    )
    bench.upload("out/**")
    assert bench.uploaded(server) == {"a": b"A"}
    for path in ("out/pipe", "out/device", "out/to-pipe"):
        with pytest.raises(UploadError, match="err = it matches no file of the workspace"):
            bench.upload(path)


def test_links_in_a_circle_are_named_as_such(bench):
    bench.fill({}, links=[("one", "two"), ("two", "one")])
    with pytest.raises(UploadError, match=r"err = one is a link that leads around in a circle$"):
        bench.upload("one")


def test_links_within_the_workspace_are_files(bench, server):
    bench.fill(
        {"build-5/app": b"five", "twin": b"t"},
        links=[("latest", "build-5"), ("rel", "twin"), ("abs", "/workspace/twin")],
        hard_links=[("other", "twin")],
    )
    bench.upload("latest/app", "rel", "othe?", "t**")
    files = {"app": b"five", "rel": b"t", "other": b"t", "twin": b"t"}
    assert bench.uploaded(server) == files
    if not is_podman(bench.engine):  # which follows them into the volume, and finds nothing
        bench.upload("abs")
        assert bench.uploaded(server) == {**files, "abs": b"t"}


@pytest.mark.parametrize("path", ["secret", "sec*", "etc/passwd", "etc/*"])
def test_links_lead_nowhere_else(bench, server, path):
    bench.fill({"a": b"a"}, links=[("secret", "/etc/passwd"), ("etc", "/etc")])
    with pytest.raises(UploadError) as caught:
        bench.upload(path)
    assert str(caught.value).startswith(f"could not upload {path} to gs://{BUCKET}/{bench.folder}/")
    assert bench.uploaded(server) == {}


@pytest.mark.parametrize(
    "path",
    ["nothing", "nothing/*", "*.nothing", "out", "out/", "a/b", "loop", "../x", "/etc/hosts"],
)
def test_a_path_that_names_no_file_fails(bench, path):
    bench.fill({"out/x": b"", "a": b""}, links=[("loop", "loop")])
    with pytest.raises(UploadError) as caught:
        bench.upload(path)
    message = str(caught.value)
    assert message.startswith(f"could not upload {path} to gs://{BUCKET}/{bench.folder}/; err = ")
    assert "\n" not in message


def test_what_came_before_a_failing_path_stays(bench, server):
    bench.fill({"a": b"a"})
    with pytest.raises(UploadError):
        bench.upload("a", "nothing")
    assert bench.uploaded(server) == {"a": b"a"}


def test_a_bucket_that_is_not_there(bench):
    bench.fill({"a": b"a"})
    with pytest.raises(UploadError, match=r'^bucket "gs://no-such-bucket" does not exist$'):
        bench.upload("a", location="gs://no-such-bucket/")


def test_troubles_pass_and_refusals_don_t(bench, server, proxy):
    bench.fill({"a": b"a", "b": b"b"})
    proxy.faults = [Fault("/upload/", status=503), Fault("/upload/", status=429)]
    bench.upload("?")
    assert bench.uploaded(server) == {"a": b"a", "b": b"b"}
    told = [line for line in bench.report.lines if line.startswith("Trying again: ")]
    assert sorted(line.rpartition(" ")[2] for line in told) == ["429", "503"]
    proxy.faults = [Fault("/upload/", times=9, status=403)]
    with pytest.raises(UploadError, match=r"could not upload a to .*; err = .*access denied") as c:
        bench.upload("a")
    assert c.value.unauthorized


def test_who_may_only_write_needs_no_more(bench, server, proxy):
    bench.fill({"a": b"a"})
    proxy.faults = [Fault(f"/b/{BUCKET}?", times=9, status=403)]
    bench.upload("a")
    assert bench.uploaded(server) == {"a": b"a"}


def test_a_cancel_frees_an_upload_that_hangs(bench, proxy):
    bench.fill({"a": b"a"})
    hold, cancel = threading.Event(), threading.Event()
    proxy.faults = [Fault("/upload/", hold=hold)]
    threading.Timer(0.2, cancel.set).start()
    with pytest.raises(UploadError, match="stopped"):
        bench.upload("a", cancel=cancel)
    hold.set()


def test_many_and_large_files(bench, server):
    large = hashlib.shake_128(b"large").digest(12 * 1024 * 1024)
    many = {f"out/{n:03}": str(n).encode() for n in range(100)}
    bench.fill({**many, "out/large": large})
    assert bench.upload("out/**").count == 101
    found = bench.uploaded(server)
    assert found.pop("large") == large
    assert found == {name.removeprefix("out/"): content for name, content in many.items()}


def test_a_folder_can_stand_for_the_bucket(bench, tmp_path):
    bench.fill({"x/a.txt": b"A"})
    stores = Stores({f"gs://{BUCKET}": f"file://{tmp_path}/b"})
    result = bench.upload("x/a.txt", stores=stores)
    folder = tmp_path / "b" / bench.folder
    assert (folder / "a.txt").read_bytes() == b"A"
    (line,) = (folder / f"artifacts-{bench.build_id}.json").read_text().splitlines()
    assert json.loads(line)["location"].startswith(f"file://{folder}/a.txt#")
    assert result.manifest_url == f"file://{folder}/artifacts-{bench.build_id}.json"
    assert (
        bench.report.lines[0]
        == f"Artifacts will be uploaded to file://{tmp_path}/b using gsutil cp"
    )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    subprocess.run(argv, check=True, capture_output=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True, capture_output=True)


@needs_root
def test_a_disk_that_is_full_is_named_and_nothing_half_is_left(bench, small_disk, monkeypatch):
    bench.fill({"large": bytes(3 * 1024 * 1024)})
    stores = Stores({f"gs://{BUCKET}": f"file://{small_disk}/b"})
    with pytest.raises(UploadError, match=r"could not upload large to .*No space left on device"):
        bench.upload("large", stores=stores)
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    with pytest.raises(UploadError, match=r"large can't be copied .*No space left on dev") as full:
        bench.upload("large")
    assert "TMPDIR" in full.value.hint
    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("drop", ["request", "answer"])
def test_a_cut_in_the_middle_of_a_large_file_is_followed_by_the_rest(bench, server, proxy, drop):
    large = hashlib.shake_128(b"cut").digest(20 * 1024 * 1024)
    bench.fill({"large": large})
    proxy.faults = [Fault("upload_id=", drop=drop)]
    bench.upload("large")
    assert bench.uploaded(server) == {"large": large}
    assert any(line.startswith("Trying again: ") for line in bench.report.lines)
