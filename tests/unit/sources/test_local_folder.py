"""A local folder: what is found in it, and the tar stream that it becomes."""

import io
import os
import socket
import stat
import tarfile
import threading
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from buildrunner.archives import tar_writer as tar_stream
from buildrunner.archives.members import REGULAR
from buildrunner.errors import SourceError, UsageError
from buildrunner.sources.local_folder import LocalFolder, format_size


def unpack(chunks):
    """Members of a tar stream by name, with their content."""
    members = {}
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks)), errors="surrogateescape") as tar:
        for member in tar:
            content = tar.extractfile(member).read() if member.isreg() else b""
            members[member.name] = (member, content)
    return members


def test_a_missing_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="could not find source"):
        LocalFolder(str(tmp_path / "nope"))


def test_files_of_every_sort_are_packed_as_gcloud_packs_them(tmp_path):
    (tmp_path / "empty").mkdir(mode=0o750)
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "link").symlink_to("run.sh")
    (tmp_path / "folder-link").symlink_to("empty")
    (tmp_path / "broken").symlink_to("nowhere")
    os.link(tmp_path / "run.sh", tmp_path / "same.sh")
    os.utime(tmp_path / "run.sh", ns=(0, 1_700_000_000_123_456_789))
    members = unpack(LocalFolder(str(tmp_path)).pack())
    assert set(members) == {"empty", "run.sh", "link", "folder-link", "same.sh"}
    assert members["empty"][0].mode == 0o750
    run, content = members["run.sh"]
    assert (run.mode, run.uid, run.gid, run.uname, run.gname) == (0o755, 0, 0, "root", "root")
    assert content == b"#!/bin/sh\n"
    assert run.pax_headers["mtime"] == "1700000000.123456789"
    assert members["link"][0].linkname == "run.sh"
    assert members["folder-link"][0].issym()
    assert members["same.sh"][0].islnk()
    assert members["same.sh"][0].linkname == "run.sh"


def test_what_can_not_be_sent_is_named_with_its_reason(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to("broken")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    folder = LocalFolder(str(tmp_path))
    assert {(entry.path, entry.reason) for entry in folder.scan().left_out} == {
        ("pipe", "is a named pipe"),
        ("broken", "is a broken symbolic link"),
        ("socket", "is a socket"),
    }
    assert unpack(folder.pack()) == {}


def test_names_that_can_not_be_shown_are_escaped_in_messages(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9\nx")).symlink_to("nowhere")
    (tmp_path / "né").write_bytes(b"x" * 2_000_000)
    folder = LocalFolder(str(tmp_path))
    assert folder.describe(folder.scan())[1:] == (
        "Largest: né (1.9 MiB)",
        "WARNING: caf\\udce9\\nx is a broken symbolic link: left out",
    )


def test_a_rule_for_folders_also_holds_for_a_link_to_a_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "node_modules").symlink_to("real")
    (tmp_path / ".gcloudignore").write_text("node_modules/\n.gcloudignore\n")
    assert set(unpack(LocalFolder(str(tmp_path)).pack())) == {"real"}


def test_ignored_folders_are_not_looked_into(tmp_path):
    (tmp_path / "secret" / "deep").mkdir(parents=True)
    (tmp_path / ".gcloudignore").write_text("secret\n")
    summary = LocalFolder(str(tmp_path)).scan()
    assert [entry.path for entry in summary.left_out] == ["secret"]
    assert (summary.files, summary.directories) == (1, 0)


def test_the_message_says_how_much_is_sent_and_what_is_largest(tmp_path):
    for number in range(12):
        (tmp_path / f"f{number}").write_bytes(b"x" * (number * 100_000))
    (tmp_path / "out").mkdir()
    (tmp_path / ".gcloudignore").write_text("out\n.gcloudignore\n")
    folder = LocalFolder(str(tmp_path))
    first, largest = folder.describe(folder.scan())
    assert first == "Source: 12 files totalling 6.3 MiB; 2 paths left out by .gcloudignore"
    assert largest.startswith("Largest: f11 (1.0 MiB), f10 (976.6 KiB), f9")
    assert largest.count("(") == 10


def test_many_warnings_are_cut_short(tmp_path):
    for number in range(14):
        (tmp_path / f"b{number:02}").symlink_to("nowhere")
    folder = LocalFolder(str(tmp_path))
    lines = folder.describe(folder.scan())
    assert lines[1] == "WARNING: b00 is a broken symbolic link: left out"
    assert lines[-1] == "WARNING: 4 more paths were left out"
    assert len(lines) == 12


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (5 * 1024**4, "5.0 TiB")],
)
def test_sizes_read_as_gcloud_writes_them(size, text):
    assert format_size(size) == text


# --- a folder that changes while it is read ------------------------------------------------------


def test_a_file_that_vanishes_is_left_out_with_a_warning(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 600_000)
    (tmp_path / "b").write_bytes(b"y")
    folder = LocalFolder(str(tmp_path))
    stream = folder.pack()
    chunks = [next(stream)]
    (tmp_path / "b").unlink()
    chunks += stream
    assert set(unpack(chunks)) == {"a"}
    assert folder.warnings == ["b vanished while the source was read: left out"]


def test_a_folder_that_vanishes_is_left_out_with_a_warning(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 600_000)
    (tmp_path / "b").mkdir()
    folder = LocalFolder(str(tmp_path))
    stream = folder.pack()
    chunks = [next(stream)]
    (tmp_path / "b").rmdir()
    unpack([*chunks, *stream])
    assert folder.warnings == ["b vanished while the source was read: left out"]


def test_a_file_replaced_by_a_pipe_does_not_hang_the_build(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 600_000)
    (tmp_path / "b").write_bytes(b"y")
    folder = LocalFolder(str(tmp_path))
    stream = folder.pack()
    chunks = [next(stream)]
    (tmp_path / "b").unlink()
    os.mkfifo(tmp_path / "b")
    assert set(unpack([*chunks, *stream])) == {"a"}


@pytest.mark.parametrize("new_size", [300_000, 900_000])
def test_a_file_that_changes_size_keeps_the_stream_whole(tmp_path, new_size):
    (tmp_path / "a").write_bytes(b"x" * 600_000)
    (tmp_path / "b").write_bytes(b"y")
    folder = LocalFolder(str(tmp_path))
    stream = folder.pack()
    chunks = [next(stream)]
    os.truncate(tmp_path / "a", new_size)
    members = unpack([*chunks, *stream])
    assert len(members["a"][1]) == 600_000
    assert members["b"][1] == b"y"
    assert folder.warnings == ["a changed while it was read"]


def test_a_cancelled_stream_has_no_end_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"x")
    cancel = threading.Event()
    cancel.set()
    assert list(LocalFolder(str(tmp_path)).pack(cancel)) == []


def test_an_unreadable_folder_is_one_clear_sentence(tmp_path, monkeypatch):
    folder = LocalFolder(str(tmp_path))
    tmp_path.rmdir()
    with pytest.raises(SourceError, match="can't read the source folder: No such file"):
        list(folder.pack())


# --- tar -----------------------------------------------------------------------------------------

NAMES = st.binary(min_size=1, max_size=120).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(NAMES, min_size=1, max_size=6),
    content=st.binary(max_size=2000),
    mode=st.integers(0, 0o777),
)
def test_names_of_any_bytes_and_any_length_survive(tmp_path_factory, parts, content, mode):
    root = tmp_path_factory.mktemp("tar")
    path = root / os.fsdecode(b"/".join(parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode | 0o400)
    members = unpack(LocalFolder(str(root), ignore_enabled=False).pack())
    name = str(path.relative_to(root))
    assert members[name][1] == content
    assert members[name][0].mode == mode | 0o400


@pytest.mark.parametrize(
    ("name", "size", "mtime_ns"),
    [
        ("a" * 100, 0, 0),
        ("a" * 101, 1, 1),
        (f"{'d' * 155}/{'n' * 100}", 8**11 - 1, -1_500_000_000),
        (f"{'d' * 156}/{'n' * 100}", 8**11, 10**19),
        ("é" * 200, 2**62, 1_700_000_000_000_000_000),
    ],
)
def test_numbers_and_names_beyond_the_old_format_survive(name, size, mtime_ns):
    header = tar_stream.header(name, REGULAR, size=size, mtime_ns=mtime_ns)
    with tarfile.open(fileobj=io.BytesIO(header + tar_stream.END_OF_ARCHIVE)) as tar:
        member = tarfile.TarInfo.fromtarfile(tar) if not tar.members else tar.members[0]
    assert member.name == name
    assert member.size == size
    assert member.mtime == pytest.approx(mtime_ns / 1e9)


def test_a_large_file_takes_no_memory(tmp_path):
    with open(tmp_path / "large", "wb") as file:
        file.truncate(200 * 1024 * 1024)
    tracemalloc.start()
    try:
        total = sum(map(len, LocalFolder(str(tmp_path)).pack()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total > 200 * 1024 * 1024
    assert peak < 3 * 1024 * 1024


def test_five_thousand_files_are_scanned(tmp_path):
    for number in range(100):
        folder = tmp_path / f"d{number}"
        folder.mkdir()
        for name in range(50):
            os.close(os.open(folder / f"f{name}", os.O_CREAT | os.O_WRONLY))
    (tmp_path / ".gcloudignore").write_text("*.log\n/build\n**/x/*.o\nf49\n" * 10)
    folder = LocalFolder(str(tmp_path))
    assert folder.scan().files == 4901
    assert stat.S_ISDIR(dict(folder.entries())["d0"].st_mode)
