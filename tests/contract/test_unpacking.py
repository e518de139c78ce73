"""One suite for both ways in which an archive gets into ``/workspace``, on a real engine.

Written from here into the volume's folder, or sent to the engine, which unpacks it: the outcome is
the same, to the mode and nanosecond.
"""

import gzip
import hashlib
import io
import os
import random
import stat
import subprocess
import sys
import tarfile
import threading
import time
import uuid
import zipfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from buildrunner.archives.reader import safe_members
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.errors import EngineError, SourceError
from buildrunner.sources.local_folder import LocalArchive
from buildrunner.workspace.fetched import FetchedWorkspace
from buildrunner.workspace.protocol import Preparation

pytestmark = pytest.mark.docker
WAYS = ["direct", "archive"]


@pytest.fixture(scope="module")
def engine():
    engine = DockerEngine()
    yield engine
    engine.close()


class Bench:
    """Makes workspaces of archives and looks at them where the engine keeps them."""

    def __init__(self, engine, folder):
        self.engine = engine
        self.folder = folder
        self.builds = []
        self.made = []

    def archive(self, data, name="source.tar"):
        path = self.folder / name
        path.write_bytes(data)
        return LocalArchive(str(path))

    def prepare(self, source, way, *, engine=None, cancel=None):
        build = f"test-{uuid.uuid4().hex[:12]}"
        self.builds.append(build)
        workspace = FetchedWorkspace(source, send=way == "archive")
        self.made.append(workspace)
        return workspace.prepare(
            Preparation(
                engine or self.engine, build, {LABEL_BUILD: build}, cancel or threading.Event()
            )
        )

    def place(self, prepared):
        return Path(self.engine.info().data_root, "volumes", prepared.volume, "_data")

    def unpacked(self, data, way, name="source.tar"):
        """Everything about everything that was unpacked; times of just now are ``new``."""
        start_ns = time.time_ns() - 2_000_000_000
        prepared = self.prepare(self.archive(data, name), way)
        assert prepared.way == way
        try:
            return state(self.place(prepared), start_ns)
        finally:
            self.made.pop().release()

    def left_behind(self):
        return [self.engine.list_owned({LABEL_BUILD: build}) for build in self.builds]


@pytest.fixture
def bench(engine, tmp_path):
    bench = Bench(engine, tmp_path)
    yield bench
    for workspace in bench.made:
        workspace.release()
    for owned in bench.left_behind():
        assert owned == type(owned)()


def state(root, start_ns):
    """Path -> kind, mode, owner, time, content and which names are one file."""
    found, names = {}, {}
    for folder, folders, files in os.walk(root):
        for name in ["", *folders, *files] if folder == str(root) else [*folders, *files]:
            path = Path(folder, name)
            status = path.lstat()
            content = ""
            if stat.S_ISLNK(status.st_mode):
                content = str(path.readlink())
            elif stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            mtime = "new" if status.st_mtime_ns > start_ns else status.st_mtime_ns
            key = str(path.relative_to(root))
            found[key] = [oct(status.st_mode), status.st_uid, status.st_gid, mtime, content]
            if not stat.S_ISDIR(status.st_mode):
                names.setdefault(status.st_ino, []).append(key)
    for same in names.values():
        for key in same:
            found[key].append(sorted(same))
    return found


def entry(name, kind=tarfile.REGTYPE, content=b"", target="", mode=0o644, mtime=1_600_000_000.5):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode, info.size = kind, target, mode, len(content)
    info.mtime, info.uid, info.gid = mtime, 1234, 4321
    return info, content


def folder(name, mode=0o755, **fields):
    return entry(name, tarfile.DIRTYPE, mode=mode, **fields)


def link(name, target, **fields):
    return entry(name, tarfile.SYMTYPE, target=target, mode=0o777, **fields)


def hard_link(name, target, **fields):
    return entry(name, tarfile.LNKTYPE, target=target, **fields)


def tar_of(*entries, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, errors="surrogateescape") as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(*entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name, (2020, 5, 17, 12, 30, 2))
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return buffer.getvalue()


ODD_NAMES = [b"caf\xe9", b"new\nline", b"-rf", b"back\\slash", b"a:b,c", b"x" * 255, b" ", b"\xff"]

ARCHIVES = {
    "modes": tar_of(
        folder("./", 0o700),
        *(entry(f"f{mode:o}", mode=mode) for mode in (0, 0o444, 0o640, 0o777, 0o4755, 0o2755)),
        *(folder(f"d{mode:o}", mode) for mode in (0, 0o500, 0o777, 0o1777, 0o2775)),
        entry("d0/inside", content=b"inside"),
    ),
    "times": tar_of(
        *(
            one(f"{one.__name__}{number}", *arguments, mtime=mtime)
            for number, mtime in enumerate([0, 1.25, -5, -5.5, 2**33, 2**34, 2**40])
            for one, arguments in [(entry, ()), (folder, ()), (link, ("x",))]
            if one is not link or mtime <= 2**33  # the engine makes nonsense of later ones
        ),
        folder("kept", mtime=1_500_000_000.75),
        entry("kept/f"),
    ),
    "implied folders": tar_of(entry("a/b/c/f", content=b"f"), link("l/m/n", "x"), folder("e/f/g")),
    "hard links": tar_of(
        entry("a", content=b"a", mode=0o600),
        hard_link("b", "a", mode=0o755, mtime=1_400_000_000),
        hard_link("d/c", "b", mode=0o644),
        entry("a", content=b"another", mode=0o600),
        hard_link("e", "./a", mode=0o600),
        entry("empty"),
        hard_link("empty too", "empty"),
    ),
    "links": tar_of(
        *(
            link(f"l{number}", to)
            for number, to in enumerate(["a", "/etc", ".", "/workspace/x", "..", "../../elsewhere"])
        ),
        link("sub/link", "../../elsewhere"),
        link("sub/deep/link", f"{'../' * 20}etc/passwd"),
        link(os.fsdecode(b"d/\xe9"), os.fsdecode(b"\xff")),
    ),
    "names": tar_of(
        *(entry(os.fsdecode(name), content=name) for name in ODD_NAMES),
        *(folder(os.fsdecode(b"d/" + name)) for name in ODD_NAMES),
        entry("/".join(["n" * 200] * 15), content=b"deep"),
    ),
    "again": tar_of(
        *(entry("f", content=b"%d" % number, mode=0o600 + number) for number in range(8)),
        *(entry("was/folder/f"), folder("was/folder", 0o700), entry("was/folder", content=b"f")),
        *(entry("was/file"), folder("was/file", 0o750), entry("was/file/f")),
        *(link("was/link", "."), folder("was/link"), entry("was/link/f", content=b"not through")),
        *(folder("merged", 0o700, mtime=1), entry("merged/f"), folder("merged", 0o755, mtime=2)),
    ),
    "large": tar_of(
        entry("large", content=random.Random(1).randbytes(3_000_001), mode=0o640, mtime=1.5),
        *(entry(f"many/{number}", content=b"%d" % number) for number in range(300)),
        hard_link("same", "large", mode=0o640, mtime=1.5),
    ),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_both_ways_come_to_the_same(bench, name):
    data = ARCHIVES[name]
    direct = bench.unpacked(gzip.compress(data, mtime=0), "direct", "source.tgz")
    assert direct == bench.unpacked(data, "archive")
    assert len(direct) > 4
    assert all(one[1:3] == [0, 0] for one in direct.values())


def test_both_ways_make_the_same_of_a_zip(bench):
    data = zip_of(
        ("a", b"a" * 9000, stat.S_IFREG | 0o4755),
        ("d/", b"", stat.S_IFDIR | 0o750),
        ("d/plain", b"plain", 0),
        ("d/link", b"../a", stat.S_IFLNK | 0o777),
        ("e/f/g", b"", stat.S_IFREG | 0o600),
    )
    direct = bench.unpacked(data, "direct", "source.zip")
    assert direct == bench.unpacked(data, "archive", "source.zip")
    assert set(direct) == {".", "a", "d", "d/plain", "d/link", "e", "e/f", "e/f/g"}
    assert direct["a"][0] == "0o100755"


# Names are few, so that they meet; a folder of its own for each case keeps one from the other.
NAMES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
MODES = st.integers(0, 0o7777)
TIMES = st.integers(0, 2**33)
MEMBERS = st.one_of(
    st.builds(entry, NAMES, content=st.binary(max_size=5), mode=MODES, mtime=TIMES),
    st.builds(folder, NAMES, MODES, mtime=TIMES),
    st.builds(link, NAMES, NAMES, mtime=TIMES),
    st.builds(hard_link, NAMES, NAMES, mode=MODES, mtime=TIMES),
)


def possible(entries):
    """The entries without those that both ways refuse.

    Nothing takes the place of a folder that has a time: the engine sets that in the end on whatever
    is there by then, or fails.
    """
    taken, others, folders = [], set(), set()
    for info, content in entries:
        parents = {info.name[:at] for at, letter in enumerate(info.name) if letter == "/"}
        if parents & others or (info.name in folders and not info.isdir()):
            continue
        below = "" if info.isdir() else f"{info.name}/"
        gone = {name for name in others if name == info.name or (below and name.startswith(below))}
        if info.islnk() and info.linkname not in others - gone:
            continue
        try:
            list(safe_members(io.BytesIO(tar_of(*taken, (info, content))), "x.tar"))
        except SourceError:
            continue
        taken.append((info, content))
        others -= gone
        if info.isdir():
            folders |= {info.name, *parents}
        else:
            others.add(info.name)
    return taken


@settings(
    max_examples=3, deadline=None, suppress_health_check=[*HealthCheck], phases=[Phase.generate]
)
@given(cases=st.lists(st.lists(MEMBERS, min_size=4, max_size=9), min_size=30, max_size=30))
def test_both_ways_come_to_the_same_whatever_is_packed(bench, cases):
    entries = []
    for number, case in enumerate(cases):
        for info, content in possible(case):
            info.name = f"{number}/{info.name}"
            if info.islnk():
                info.linkname = f"{number}/{info.linkname}"
            entries.append((info, content))
    data = tar_of(*entries)
    assert bench.unpacked(data, "direct") == bench.unpacked(data, "archive")


# --- which way -----------------------------------------------------------------------------------


class DistantEngine(DockerEngine):
    """The engine at hand, as it looks from another machine."""

    def info(self):
        return msgspec.structs.replace(super().info(), local=False)


class MovedEngine(DockerEngine):
    """An engine that keeps its volumes elsewhere."""

    def info(self):
        return msgspec.structs.replace(super().info(), data_root="/nowhere")


@pytest.mark.parametrize("kind", [DistantEngine, MovedEngine])
def test_an_engine_whose_files_are_not_ours_unpacks_by_itself(bench, kind):
    engine = kind()
    try:
        prepared = bench.prepare(bench.archive(tar_of(entry("f"))), "direct", engine=engine)
        assert prepared.way == "archive"
        assert (bench.place(prepared) / "f").exists()
        bench.made.pop().release()
    finally:
        engine.close()


@pytest.mark.parametrize("way", ["direct", "archive"])
def test_the_volume_is_laid_apart_where_the_file_system_can(bench, way):
    prepared = bench.prepare(bench.archive(tar_of(entry("d/f"))), way)
    argv = ["lsattr", "-d", str(bench.place(prepared).parent)]
    told = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert told.returncode != 0 or "T" in told.stdout.split()[0]


# --- what is refused, or ends before its end -----------------------------------------------------

FILES = [entry(f"d/{number}", content=b"x" * 4000) for number in range(320)]
WHOLE = tar_of(*FILES)
BAD_SUM = bytearray(WHOLE)
BAD_SUM[BAD_SUM.index(b"d/300\0") + 150] ^= 1
BAD_END = bytearray(gzip.compress(WHOLE, compresslevel=0))
BAD_END[-6] ^= 1
BOMB = gzip.compress(tar_of(entry("f", content=bytes(90_000_000))), compresslevel=1)

HOSTILE = {
    "redirected": (tar_of(*FILES, link("l", "."), entry("l/f")), "through the link"),
    "redirected out": (tar_of(*FILES, link("l", "/tmp"), entry("l/f")), "through the link"),
    "linked out": (tar_of(*FILES, link("l", "../x"), entry("l/f")), "through the link"),
    "above": (tar_of(*FILES, entry("../x")), "outside the workspace"),
    "absolute": (tar_of(*FILES, entry("/tmp/x")), "outside the workspace"),
    "hard link out": (tar_of(*FILES, hard_link("h", "/etc/passwd")), "hard link to no file"),
    "hard link to a link": (
        tar_of(*FILES, link("l", "/tmp"), hard_link("h", "l"), entry("h/x")),
        "through the link 'h'",
    ),
    "below a file": (tar_of(*FILES, entry("d/1/x")), "below the file 'd/1'"),
    "device": (tar_of(*FILES, entry("d", tarfile.CHRTYPE)), "holds a device"),
    "bomb": (BOMB, "200 times"),
    "cut": (WHOLE[: len(WHOLE) // 2], "damaged: it"),
    "cut gzip": (gzip.compress(WHOLE)[:-9], "damaged: it breaks off"),
    "wrong sum": (bytes(BAD_SUM), "a header's checksum is wrong"),
    "wrong sum at the end": (bytes(BAD_END), "damaged: .*incorrect data check"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_refused_leaves_nothing(bench, name, way):
    data, message = HOSTILE[name]
    with pytest.raises(SourceError, match=message) as caught:
        bench.prepare(bench.archive(data), way)
    assert "\n" not in str(caught.value)
    bench.made.pop().release()
    assert all(owned.volumes == () for owned in bench.left_behind())


class Watched:
    """An archive at one member of which something happens."""

    def __init__(self, archive, at, act):
        self.archive, self.at, self.act = archive, at, act

    def fetch(self, unpack, *, cancel, report):
        def watched(members):
            for number, one in enumerate(members):
                if number == self.at:
                    self.act()
                yield one

        return self.archive.fetch(
            lambda members: unpack(watched(members)), cancel=cancel, report=report
        )


@pytest.mark.parametrize("way", WAYS)
def test_a_cancel_in_the_middle_ends_it_and_leaves_nothing(bench, way):
    cancel = threading.Event()
    source = Watched(bench.archive(WHOLE), 200, cancel.set)
    with pytest.raises(SourceError, match="stopped"):
        bench.prepare(source, way, cancel=cancel)
    bench.made.pop().release()
    assert all(owned.volumes == () for owned in bench.left_behind())


def test_a_volume_that_is_pruned_meanwhile_is_noticed(bench, engine):
    def prune():
        ((volume,),) = [owned.volumes for owned in bench.left_behind()]
        engine.remove_volume(volume)

    with pytest.raises((EngineError, SourceError), match=r"removed|No such file"):
        bench.prepare(Watched(bench.archive(WHOLE), 200, prune), "direct")


KILLED = """
import os, signal, sys, threading
from buildrunner.containers.docker.engine import DockerEngine
from buildrunner.workspace.fetched import FetchedWorkspace
from buildrunner.workspace.protocol import Preparation
from tests.contract.test_unpacking import Watched
from buildrunner.sources.local_folder import LocalArchive
path, build, label = sys.argv[1:]
source = Watched(LocalArchive(path), 200, lambda: os.kill(os.getpid(), signal.SIGKILL))
FetchedWorkspace(source).prepare(
    Preparation(DockerEngine(), build, {label: build}, threading.Event())
)
"""


def test_a_killed_process_leaves_only_what_its_label_finds(bench, tmp_path):
    bench.archive(WHOLE)
    build = f"test-{uuid.uuid4().hex[:12]}"
    bench.builds.append(build)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "source.tar"), build, LABEL_BUILD],
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -9
    (owned,) = bench.left_behind()
    (volume,) = owned.volumes
    place = Path(bench.engine.info().data_root, "volumes", volume)
    assert (place / "_data").is_dir()
    bench.engine.remove_volume(volume)
    assert not place.exists()
