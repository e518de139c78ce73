"""One suite for every way to fill ``/workspace``, on a real engine.

Whatever the way, the steps must see the same files, and the folder must stay as it was.
"""

import contextlib
import hashlib
import io
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import uuid
from pathlib import Path

import msgspec
import pytest

from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD, ContainerSpec, Mount
from buildrunner.errors import SourceError
from buildrunner.sources.local_folder import LocalFolder
from buildrunner.workspace.overlay import white_out
from buildrunner.workspace.protocol import Preparation
from buildrunner.workspace.volume import EmptyWorkspace, FolderWorkspace
from tests.conftest import needs_root
from tests.contract.test_container_engine import is_podman

pytestmark = pytest.mark.docker


class DistantEngine(DockerEngine):
    """The engine at hand, as it looks from another machine."""

    def info(self):
        return msgspec.structs.replace(super().info(), local=False)


@pytest.fixture(scope="module")
def engine():
    engine = DockerEngine()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def distant_engine():
    engine = DistantEngine()
    yield engine
    engine.close()


class Bench:
    """Makes workspaces on an engine, runs scripts in them, and removes everything."""

    def __init__(self, engine, image):
        self.engine = engine
        self.image = image
        self.made = []
        self.builds = []

    def prepare(self, workspace, *, engine=None, cancel=None):
        build = f"test-{uuid.uuid4().hex[:12]}"
        self.builds.append(build)
        self.made.append(workspace)
        return workspace.prepare(
            Preparation(
                engine or self.engine, build, {LABEL_BUILD: build}, cancel or threading.Event()
            )
        )

    def container(self, prepared, script):
        return self.engine.create_container(
            ContainerSpec(
                image=self.image,
                entrypoint=("sh", "-c", script),
                workdir="/workspace",
                mounts=(Mount(source=prepared.volume, target="/workspace"),),
                network="none",
                labels={LABEL_BUILD: self.builds[-1]},
            )
        )

    def run(self, prepared, script):
        """Output and exit code of a script in the workspace."""
        container = self.container(prepared, script)
        try:
            output = b"".join(self.engine.start_container(container, attach=True))
            return output, self.engine.wait_container(container).code
        finally:
            self.engine.remove_container(container)

    def tree(self, prepared):
        """What a step sees: every path with type, mode, owner, times, content."""
        container = self.container(prepared, "true")
        try:
            data = b"".join(self.engine.get_archive(container, "/workspace/."))
        finally:
            self.engine.remove_container(container)
        return tar_tree(data)

    def left_behind(self):
        return [self.engine.list_owned({LABEL_BUILD: build}) for build in self.builds]

    def close(self):
        for workspace in self.made:
            workspace.release()


@pytest.fixture
def bench(engine, busybox):
    bench = Bench(engine, busybox)
    yield bench
    bench.close()
    for owned in bench.left_behind():
        assert owned == type(owned)()


def tar_tree(data):
    tree = {}
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        for member in tar:
            name = os.path.normpath(member.name.removeprefix("workspace").lstrip("/"))
            content = tar.extractfile(member).read() if member.isreg() or member.islnk() else b""
            kind = "file" if member.isreg() or member.islnk() else member.type.decode()
            tree[name] = (
                kind,
                stat.S_IMODE(member.mode),
                member.uid,
                member.gid,
                hashlib.sha256(content).hexdigest() if kind == "file" else member.linkname,
            )
    return {name: value for name, value in tree.items() if name not in (".", "/")}


def folder_tree(root, *, times=False):
    """The same of a folder of this machine, root taken for the owner of everything."""
    tree = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(folder, name)
            status = path.lstat()
            kind, content = "file", ""
            if path.is_symlink():
                kind, content = "2", str(path.readlink())
            elif path.is_dir():
                kind = "5"
            else:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            value = (kind, stat.S_IMODE(status.st_mode), 0, 0, content)
            if times:
                value += (status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
            tree[str(path.relative_to(root))] = value
    return tree


def has_layers(engine):
    """Whether sources are layers of workspaces: only root may write among the engine's files."""
    return engine.info().layered_volumes and os.geteuid() == 0


def needs_layers(bench):
    if not has_layers(bench.engine):
        pytest.skip("this engine gets a copy of every source")


@contextlib.contextmanager
def lingering_mounts():
    """A process that keeps a private copy of every mount there is by now."""
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; read _"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        process.stdout.readline()
        yield


RULES = "out/\n*.log\n!keep.log\nsrc/gen\n.gcloudignore\n"
IGNORED = {".gcloudignore", "out", "out/x", "a.log", "src/b.log", "src/gen", "src/gen/y", "broken"}


def make_source(root):
    for folder in ("src/deep/er", "out", "empty", "src/gen", "locked"):
        (root / folder).mkdir(parents=True)
    for name in ("a.log", "src/b.log", "keep.log", "out/x", "src/gen/y", "src/deep/er/file"):
        (root / name).write_text(name)
    (root / "run.sh").write_text("#!/bin/sh\necho hello\n")
    (root / "run.sh").chmod(0o755)
    (root / "secret").write_text("s")
    (root / "secret").chmod(0o600)
    (root / "empty").chmod(0o700)
    (root / "src").chmod(0o2775)
    (root / "link").symlink_to("run.sh")
    (root / "folder").symlink_to("src")
    (root / "outside").symlink_to("/etc")
    (root / "locked/up").symlink_to("../../..")
    (root / "broken").symlink_to("nowhere")
    for name in (b"caf\xe9", b"new\nline", b"-rf", b"back\\slash", b"a:b,c", b"x" * 250):
        (root / os.fsdecode(name)).write_bytes(name)
    deep = root
    for _ in range(12):
        deep /= "d" * 30
    deep.mkdir(parents=True)
    (deep / "bottom").write_text("bottom")
    (root / ".gcloudignore").write_text(RULES)


def visible(tree):
    return {name: value for name, value in tree.items() if name not in IGNORED}


OF_ANOTHER_USER = pytest.param("overlay-of-another-user", marks=needs_root)
WAYS = [
    "overlay",
    OF_ANOTHER_USER,
    "overlay-odd-name",
    "archive",
    "distant",
]


class Source:
    """A folder and how to make workspaces of it."""

    def __init__(self, root, way, engine):
        self.root = root
        self.way = way
        self.engine = engine

    def workspace(self):
        return FolderWorkspace(LocalFolder(str(self.root)), copy=self.way == "archive")

    @property
    def expected_way(self):
        layered = self.way.startswith("overlay") and has_layers(self.engine)
        return "overlay" if layered else "archive"


@pytest.fixture(params=WAYS)
def source(request, tmp_path, engine, distant_engine):
    root = tmp_path / ("a:b,c\\d é=" if request.param == "overlay-odd-name" else "source")
    root.mkdir()
    make_source(root)
    if request.param == "overlay-of-another-user":
        for path in [root, *root.rglob("*")]:
            os.chown(path, 1234, 4321, follow_symlinks=False)
        (root / "src").chmod(0o2775)  # chown took the bits away
        (root / "run.sh").chmod(0o755)
    return Source(root, request.param, distant_engine if request.param == "distant" else engine)


# --- the same files ------------------------------------------------------------------------------


def test_the_steps_see_exactly_the_source(bench, source):
    prepared = bench.prepare(source.workspace(), engine=source.engine)
    assert prepared.way == source.expected_way, prepared.log
    expected = visible(folder_tree(source.root))
    assert bench.tree(prepared) == expected
    assert prepared.files == sum(value[0] != "5" for value in expected.values())


def test_times_survive_to_the_nanosecond(bench, source):
    os.utime(source.root / "secret", ns=(0, 1_600_000_000_123_456_789))
    os.utime(source.root / "src/deep", ns=(0, 1_600_000_000_000_000_001))
    os.utime(source.root / "src", ns=(0, 1_500_000_000_000_000_000))
    prepared = bench.prepare(source.workspace(), engine=source.engine)
    output, _ = bench.run(prepared, "stat -c '%Y %y' secret src/deep src")
    is_rounded = is_podman(source.engine) and prepared.way == "archive"
    assert [line.split()[2] for line in output.decode().splitlines()] == [
        "12:26:40.123457000" if is_rounded else "12:26:40.123456789",
        "12:26:40.000001000" if is_rounded else "12:26:40.000000001",
        "02:40:00.000000000",
    ]


def test_hard_links_stay_together_when_one_name_is_written_to(bench, source):
    """Layers would tear them apart, so such a source is copied."""
    os.link(source.root / "run.sh", source.root / "src/same.sh")
    prepared = bench.prepare(source.workspace(), engine=source.engine)
    output, code = bench.run(prepared, "echo echo more >> run.sh; sh src/same.sh; sh link")
    assert (output, code) == (b"hello\nmore\nhello\nmore\n", 0)
    assert prepared.way == "archive"


def test_one_step_after_the_other_has_the_layers_while_a_mount_of_the_last_lingers(bench, source):
    """As in the mount namespace of a process that another container's start has just made."""
    prepared = bench.prepare(source.workspace(), engine=source.engine)
    container = bench.container(prepared, "echo 1 > one; echo written; sleep 600")
    output = iter(bench.engine.start_container(container, attach=True))
    assert next(output) == b"written\n"
    with lingering_mounts():
        bench.engine.remove_container(container)
        assert bench.run(prepared, "echo 2 > two; cat one two") == (b"1\n2\n", 0)


def test_the_root_belongs_to_root_and_others_can_not_write_to_it(bench, source):
    prepared = bench.prepare(source.workspace(), engine=source.engine)
    assert bench.run(prepared, "stat -c '%a %u %g' .")[0] == b"755 0 0\n"


# --- what steps do to it -------------------------------------------------------------------------

SCRIPTS = {
    "append": "echo more >> src/deep/er/file; echo new > src/new",
    "chmod": "chmod 4711 run.sh; chmod u=rwx,g-s,go= src; chmod -R go-rwx empty",
    "remove": "rm -rf src out; rm link secret",
    "remove all": "rm -rf ./* ./.[!.]*; ls -A",
    "remove and make again": "rm -rf src && mkdir src && echo x > src/only && ls src",
    "make what was ignored": "mkdir out && echo mine > out/x && echo log > a.log && mkdir src/gen",
    "rename a folder": "mv src moved && echo more >> moved/deep/er/file && mkdir src && ls src",
    "rename into itself anew": "mv src/deep deep && rm -rf src && mv deep src",
    "rename over": "mkdir fresh && echo 1 > fresh/f && rm -rf src && mv fresh src",
    "rename a file": "mv secret src/deep/secret && mv src/deep/er/file file",
    "swap file and folder": "rm -rf src && echo f > src && rm secret && mkdir -p secret/x",
    "links": "ln secret second && echo more >> second && ln -sf secret link && rm secret",
    "times": "touch -d '2001-02-03 04:05:06' src secret",
    "many": "for i in $(seq 200); do mkdir -p new/$i && echo $i > new/$i/f; done; rm -rf new/1*",
}


@pytest.mark.parametrize("source", ["overlay", OF_ANOTHER_USER, "archive"], indirect=True)
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_a_script_does_what_it_does_in_a_plain_copy(bench, source, tmp_path, script):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(source.root), str(copy)], check=True)
    for name in IGNORED:
        path = copy / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    before = folder_tree(source.root, times=True)
    plain = subprocess.run(["sh", "-c", script], cwd=copy, capture_output=True, check=False)

    prepared = bench.prepare(source.workspace(), engine=source.engine)
    output, code = bench.run(prepared, script)

    assert (output, code) == (plain.stdout + plain.stderr, plain.returncode)
    assert bench.tree(prepared) == folder_tree(copy)
    assert folder_tree(source.root, times=True) == before, "the build changed the user's folder"


def test_a_folder_is_renamed_and_not_copied(bench, source):
    prepared = bench.prepare(source.workspace(), engine=source.engine)
    output, _ = bench.run(prepared, "stat -c %i src; mv src moved; stat -c %i moved")
    before, after = output.split()
    assert before == after


def test_the_next_step_finds_what_the_last_one_left(bench, source):
    prepared = bench.prepare(source.workspace(), engine=source.engine)
    bench.run(prepared, "mv src one; rm -rf one/deep; echo 1 > state")
    bench.run(prepared, "mv one two; echo 2 >> state; mkdir -p two/deep")
    assert bench.run(prepared, "cat state; ls two two/deep; ls src 2>&1")[0] == (
        b"1\n2\ntwo:\ndeep\n\ntwo/deep:\nls: src: No such file or directory\n"
    )


def test_steps_at_the_same_time_share_one_workspace(bench, source):
    prepared = bench.prepare(source.workspace(), engine=source.engine)
    waiting = bench.container(prepared, "until [ -e go ]; do sleep 0.05; done; cat go")
    try:
        stream = bench.engine.start_container(waiting, attach=True)
        bench.run(prepared, "echo went > go.new && mv go.new go")
        assert b"".join(stream) == b"went\n"
    finally:
        bench.engine.remove_container(waiting)


def test_builds_of_one_folder_do_not_meet(bench, source):
    one = bench.prepare(source.workspace(), engine=source.engine)
    two = bench.prepare(source.workspace(), engine=source.engine)
    bench.run(one, "echo one > mark; rm -rf src")
    assert bench.run(two, "ls mark 2>&1; ls src/deep")[0] == (
        b"ls: mark: No such file or directory\ner\n"
    )


# --- nothing is left -----------------------------------------------------------------------------


def test_release_leaves_nothing_and_may_be_repeated(bench, source):
    workspace = source.workspace()
    prepared = bench.prepare(workspace, engine=source.engine)
    bench.run(prepared, "mkdir -p a/b && echo x > a/b/c && mv src moved")
    place = Path(bench.engine.info().data_root, "volumes", prepared.volume)
    assert place.exists()
    workspace.release()
    workspace.release()
    assert not place.exists()
    assert prepared.volume not in Path("/proc/self/mountinfo").read_text()


def test_a_cancelled_build_leaves_nothing(bench, source):
    cancel = threading.Event()
    cancel.set()
    workspace = source.workspace()
    bench.prepare(workspace, engine=source.engine, cancel=cancel)
    workspace.release()
    assert all(owned.volumes == () for owned in bench.left_behind())


def test_a_source_that_can_not_be_read_leaves_nothing(bench, source):
    workspace = source.workspace()
    shutil.move(source.root, source.root.with_name("elsewhere"))
    with pytest.raises((SourceError, FileNotFoundError)):
        bench.prepare(workspace, engine=source.engine)
    workspace.release()
    assert all(owned.volumes == () for owned in bench.left_behind())


def test_a_killed_process_leaves_only_what_its_label_finds(bench, source):
    build = f"test-{uuid.uuid4().hex[:12]}"
    bench.builds.append(build)
    program = (
        "import os, signal, sys, threading\n"
        "from buildrunner.containers.docker.engine import DockerEngine\n"
        "from buildrunner.workspace.protocol import Preparation\n"
        "from buildrunner.workspace.volume import FolderWorkspace\n"
        "from buildrunner.sources.local_folder import LocalFolder\n"
        "root, build, label, copy = sys.argv[1:]\n"
        "workspace = FolderWorkspace(LocalFolder(root), copy=copy == 'archive')\n"
        "workspace.prepare(Preparation(DockerEngine(), build, {label: build}, threading.Event()))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    arguments = [str(source.root), build, LABEL_BUILD, source.expected_way]
    subprocess.run([sys.executable, "-c", program, *arguments], check=False)
    before = folder_tree(source.root, times=True)
    (owned,) = bench.left_behind()
    assert len(owned.volumes) == 1
    bench.engine.remove_volume(owned.volumes[0])
    assert not Path(bench.engine.info().data_root, "volumes", owned.volumes[0]).exists()
    assert folder_tree(source.root, times=True) == before


# --- choice of the way ---------------------------------------------------------------------------


@pytest.fixture
def plain_source(tmp_path):
    root = tmp_path / "source"
    (root / "sub").mkdir(parents=True)
    (root / "sub/file").write_text("file")
    return root


@needs_root
def test_a_mount_inside_the_folder_is_copied_with_what_it_shows(bench, plain_source):
    other = plain_source.with_name("other")
    other.mkdir()
    (other / "mounted").write_text("mounted")
    with contextlib.ExitStack() as stack:
        subprocess.run(["mount", "--bind", str(other), str(plain_source / "sub")], check=True)
        stack.callback(subprocess.run, ["umount", str(plain_source / "sub")], check=True)
        prepared = bench.prepare(FolderWorkspace(LocalFolder(str(plain_source))))
        assert prepared.way == "archive"
        assert set(bench.tree(prepared)) == {"sub", "sub/mounted"}
    if bench.engine.info().layered_volumes:
        assert prepared.log[-1].endswith("/sub is a mount of its own.")


@needs_root
def test_files_of_several_owners_are_copied_so_that_all_belong_to_root(bench, plain_source):
    os.chown(plain_source / "sub/file", 1234, 1234)
    prepared = bench.prepare(FolderWorkspace(LocalFolder(str(plain_source))))
    assert prepared.way == "archive"
    assert bench.tree(prepared)["sub/file"][2:4] == (0, 0)


def test_a_folder_in_memory_can_be_a_layer_too(bench):
    root = Path("/dev/shm", f"buildrunner-{uuid.uuid4().hex}")
    root.mkdir()
    try:
        (root / "file").write_text("file")
        prepared = bench.prepare(FolderWorkspace(LocalFolder(str(root))))
        assert bench.run(prepared, "cat file; echo x >> file; cat file")[0] == b"filefilex\n"
    finally:
        shutil.rmtree(root)


def test_a_folder_that_is_no_layer_is_copied(bench, engine):
    """A volume's own folder lies in the engine's data: layers may not lie in one another."""
    name = f"buildrunner-test-{uuid.uuid4().hex[:12]}"
    place = engine.create_volume(name, {})
    try:
        Path(place, "file").write_text("file")
        prepared = bench.prepare(FolderWorkspace(LocalFolder(place)))
        assert prepared.way == "archive"
        assert bench.run(prepared, "cat file")[0] == b"file"
    finally:
        engine.remove_volume(name)


def test_no_source_is_an_empty_workspace(bench):
    prepared = bench.prepare(EmptyWorkspace())
    assert (prepared.way, prepared.files, prepared.log) == ("empty", 0, ())
    assert bench.run(prepared, "stat -c '%a %u' .; ls -A")[0] == b"755 0\n"


# --- a folder that changes during the build ------------------------------------------------------


def test_changes_from_outside_during_the_build_are_named(bench, plain_source):
    needs_layers(bench)
    workspace = FolderWorkspace(LocalFolder(str(plain_source)))
    prepared = bench.prepare(workspace)
    bench.run(prepared, "echo more >> sub/file; echo new > sub/new; rm -rf sub")
    assert workspace.changed_on_host() == ()
    (plain_source / "sub/file").write_text("changed")
    (plain_source / "sub/new").write_text("new")
    assert workspace.changed_on_host() == ("sub/file", "sub/new")


def test_a_removal_from_outside_during_the_build_is_named(bench, plain_source):
    needs_layers(bench)
    workspace = FolderWorkspace(LocalFolder(str(plain_source)))
    bench.prepare(workspace)
    (plain_source / "sub/file").unlink()
    assert workspace.changed_on_host() == ("sub/",)


def test_a_copy_does_not_care_about_later_changes(bench, plain_source):
    workspace = FolderWorkspace(LocalFolder(str(plain_source)), copy=True)
    bench.prepare(workspace)
    (plain_source / "sub/file").write_text("changed")
    assert workspace.changed_on_host() == ()


def test_a_second_whiteout_is_made_when_the_first_can_have_no_more_names(tmp_path):
    """ext4 allows an inode 65,000 names."""
    first = white_out(f"{tmp_path}/first", "")
    names = 1
    with contextlib.suppress(OSError):
        for names in range(2, 66_000):
            os.link(first, f"{tmp_path}/{names}")
    second = white_out(f"{tmp_path}/one-more", first)
    assert second == (first if names == 65_999 else f"{tmp_path}/one-more")
    assert stat.S_ISCHR((tmp_path / "one-more").stat().st_mode)
