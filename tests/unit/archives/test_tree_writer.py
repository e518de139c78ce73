"""Members of archives on their way to a folder, also those that are refused before."""

import contextlib
import os
import resource
import stat
import subprocess
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildrunner.archives.members import DIRECTORY, HARD_LINK, REGULAR, SYMBOLIC_LINK, Member
from buildrunner.errors import SourceError
from buildrunner.workspace.tree_writer import write_tree


def file(path, *content, **fields):
    return Member(path, REGULAR, size=sum(map(len, content)), **fields), content


def folder(path, mode=0o755, **fields):
    return Member(path, DIRECTORY, mode=mode, **fields), ()


def link(path, target):
    return Member(path, SYMBOLIC_LINK, link_target=target), ()


def hard_link(path, target, **fields):
    return Member(path, HARD_LINK, link_target=target, **fields), ()


@pytest.fixture
def room(tmp_path):
    """A folder to write to, and beside it something that must stay as it is."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/canary").write_text("canary")
    (tmp_path / "room").mkdir()
    return tmp_path / "room"


def canary(room):
    """All about it that whoever reads it leaves as it is."""
    status = (room.parent / "outside/canary").stat()
    return status.st_mode, status.st_uid, status.st_nlink, status.st_mtime_ns, status.st_ctime_ns


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def write(room, members):
    """Write, and see that nothing stays open and nothing is changed outside."""
    descriptors = open_descriptors()
    root = os.open(room, os.O_RDONLY)
    try:
        write_tree(root, members)
    finally:
        os.close(root)
        # There may be fewer: what other tests of this process began ends meanwhile.
        assert open_descriptors() <= descriptors
        beside = {path.name: path.read_text() for path in (room.parent / "outside").iterdir()}
        assert beside == {"canary": "canary"}
        assert sorted(path.name for path in room.parent.iterdir()) == ["outside", "room"]


def tree(room):
    """Every path with its content, or what it links to, or None for a folder."""
    found = {}
    for path in room.rglob("*"):
        if path.is_symlink():
            content = str(path.readlink())
        else:
            content = None if path.is_dir() else path.read_bytes()
        found[str(path.relative_to(room))] = content
    return found


# --- what is written -----------------------------------------------------------------------------


def test_files_folders_and_links_are_written_with_their_modes_and_times(room):
    write(
        room,
        [
            folder("d", 0o500, mtime_ns=1_500_000_000_000_000_001),
            file("d/f", b"one", b"two", mode=0o640, mtime_ns=1_600_000_000_123_456_789),
            link("d/l", "f"),
            hard_link("h", "d/f", mode=0o640, mtime_ns=1_600_000_000_123_456_789),
            file("implied/x", mode=0o777),
        ],
    )
    assert tree(room) == {
        "d": None,
        "d/f": b"onetwo",
        "d/l": "f",
        "h": b"onetwo",
        "implied": None,
        "implied/x": b"",
    }
    status = (room / "d/f").stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert status.st_mtime_ns == 1_600_000_000_123_456_789
    assert status.st_ino == (room / "h").stat().st_ino
    assert stat.S_IMODE((room / "d").stat().st_mode) == 0o500
    assert (room / "d").stat().st_mtime_ns == 1_500_000_000_000_000_001
    assert (room / "d/l").lstat().st_mtime_ns == 0
    assert stat.S_IMODE((room / "implied/x").stat().st_mode) == 0o777


def test_the_last_of_several_members_of_a_name_counts(room):
    write(
        room,
        [
            *(file("f", b"%d" % number) for number in range(200)),
            file("h", b"first"),
            hard_link("of-first", "h"),
            file("h", b"second"),
            file("was-folder/a/b", b"b"),
            folder("was-folder/a", 0o700),
            file("was-folder", b"now a file"),
            link("was-link", "outside"),
            folder("was-link"),
            file("was-link/in", b"in"),
            file("twice/x", b"1"),
            file("twice", b"2"),
            folder("twice"),
            file("twice/x/y", b"3"),
        ],
    )
    assert tree(room) == {
        "f": b"199",
        "h": b"second",
        "of-first": b"first",
        "was-folder": b"now a file",
        "was-link": None,
        "was-link/in": b"in",
        "twice": None,
        "twice/x": None,
        "twice/x/y": b"3",
    }


def test_large_files_are_written_in_pieces_with_little_memory(room):
    piece = os.urandom(256 * 1024)

    def large(path, pieces):
        return Member(path, REGULAR, size=pieces * len(piece)), (
            bytes(bytearray(piece)) for _ in range(pieces)
        )

    small = (file(f"small/{number}", bytes(bytearray(20_000))) for number in range(2_000))
    tracemalloc.start()
    try:
        write(room, [large("a", 200), *(large(f"b{number}", 5) for number in range(20))])
        write(room, small)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20_000_000
    assert (room / "a").read_bytes() == piece * 200
    assert {(room / f"b{number}").read_bytes() for number in range(20)} == {piece * 5}
    assert len(list((room / "small").iterdir())) == 2_000


def test_any_number_and_depth_of_folders_need_few_descriptors(room):
    deep = "/".join(["d"] * 400)
    members = [file(f"{number}/{number % 7}/f", b"x") for number in range(400)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 160, hard))
    try:
        write(room, [*members, file(f"{deep}/bottom", b"bottom"), *reversed(members)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (room / deep / "bottom").read_bytes() == b"bottom"
    assert {(room / member.path).read_bytes() for member, _ in members} == {b"x"}


# --- what goes wrong -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "members",
    [
        [link("l", "../outside"), file("l/new", b"x")],
        [link("l", "../outside/canary"), file("l", b"x"), file("l/x", b"x")],
        [link("l", "../outside"), folder("l/new")],
        [link("l", "../outside"), link("l/new", "x")],
        [link("l", "../outside"), file("f"), hard_link("l/new", "f")],
        [link("l", "../outside"), hard_link("h", "l/canary")],
        [link("l", "../outside/canary"), hard_link("h", "l", mode=0o777), file("h/x")],
        [file("f"), file("f/x")],
        [file("f"), folder("f/x")],
        [file("f"), hard_link("h", "f"), file("h/x")],
        [hard_link("h", "nowhere")],
        [file("n" * 256, b"x")],
        [folder("n" * 256)],
        [link("l", "t" * 5000)],
        [file("/".join(["n" * 200] * 21), b"x")],
        [folder("/".join(["n" * 200] * 21))],
    ],
)
def test_what_can_not_be_written_is_one_sentence(room, members):
    before = canary(room)
    with pytest.raises(SourceError, match=r"^the source can't be unpacked: '") as caught:
        write(room, [*(file(f"{number}", b"x") for number in range(50)), *members])
    assert "\n" not in str(caught.value)
    assert canary(room) == before


def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(room):
    write(room, [link("l", "../outside/canary"), file("l", b"x")])
    assert tree(room) == {"l": b"x"}


def test_what_the_members_raise_comes_out(room):
    def broken():
        for number in range(500):
            yield file(f"d/{number}", b"x" * 10_000)
        yield Member("large", REGULAR, size=9_000_000), content()

    def content():
        for _ in range(20):
            yield bytes(256 * 1024)
        raise SourceError("it breaks off")

    with pytest.raises(SourceError, match="it breaks off"):
        write(room, broken())


@pytest.mark.parametrize("size", [10_000, 3_000_000])
def test_a_full_disk_is_one_sentence(room, size):
    """A file system of one MiB. Only root can mount one, as only root can start an engine."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(room)], check=True)
    try:
        with pytest.raises(SourceError, match="the engine's disk is full") as caught:
            write(room, (file(f"{number}", bytes(size)) for number in range(1_000)))
        assert "doctor" in caught.value.hint
    finally:
        subprocess.run(["umount", str(room)], check=True)


# --- whatever is tried ---------------------------------------------------------------------------

NAMES = st.lists(st.sampled_from(["a", "b", "l"]), min_size=1, max_size=3).map("/".join)
TARGETS = st.sampled_from(["../outside", "../outside/canary", ".", "a", "/etc", "..", "b/../.."])
MEMBERS = st.one_of(
    st.builds(file, NAMES, st.binary(max_size=3), mode=st.integers(0, 0o777)),
    st.builds(folder, NAMES, st.integers(0, 0o777)),
    st.builds(link, NAMES, TARGETS),
    st.builds(hard_link, NAMES, NAMES, mode=st.integers(0, 0o777)),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(members=st.lists(MEMBERS, max_size=12))
def test_nothing_outside_is_ever_touched(room, members):
    subprocess.run(["rm", "-rf", str(room)], check=True)
    room.mkdir()
    before = canary(room)
    with contextlib.suppress(SourceError):  # nothing else may come out
        write(room, members)
    assert canary(room) == before
