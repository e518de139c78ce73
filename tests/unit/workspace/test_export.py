"""The workspace of a build, copied to a folder of this machine."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import threading

import pytest

from buildrunner.containers.protocol import ImageInfo
from buildrunner.errors import EngineError
from buildrunner.workspace.export import ExportedWorkspace
from buildrunner.workspace.protocol import Preparation, PreparedWorkspace


class Engine:
    """Gives one archive for whatever is asked."""

    def __init__(self, chunks):
        self.chunks = chunks
        self.containers = []

    def find_image(self, name):
        return ImageInfo(id=name)

    def create_container(self, spec):
        assert [mount.read_only for mount in spec.mounts] == [True]
        self.containers.append("container")
        return "container"

    def get_archive(self, container_id, path):
        assert (container_id, path) == ("container", "/workspace")
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    def remove_container(self, container_id):
        self.containers.remove(container_id)


class Workspace:
    """One that notes when it is removed."""

    released = 0

    def prepare(self, wanted):
        return PreparedWorkspace(volume="some-volume")

    def changed_on_host(self):
        return ("changed",)

    def release(self):
        self.released += 1


def member(name, kind=tarfile.REGTYPE, data=b"", **fields):
    info = tarfile.TarInfo(f"workspace/{name}" if name else "workspace")
    info.type, info.size, info.mode, info.uid, info.gid = kind, len(data), 0o644, 7, 8
    info.uname, info.gname = "somebody", "people"
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def folder(name, mode=0o755):
    return member(name, tarfile.DIRTYPE, mode=mode)


def symlink(name, target):
    return member(name, tarfile.SYMTYPE, linkname=target)


def hard_link(name, target, **fields):
    return member(name, tarfile.LNKTYPE, linkname=f"workspace/{target}", **fields)


def archive(*members):
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def exported(tmp_path, *members, data=None, stopped=lambda: False, prepared=True):
    """The export of an archive in small pieces, and the folder that it went to."""
    data = archive(folder(""), *members) if data is None else data
    pieces = (
        [data]
        if isinstance(data, Exception)
        else [data[n : n + 700] for n in range(0, len(data), 700)]
    )
    engine, inner = Engine(pieces), Workspace()
    target = tmp_path / "out"
    target.mkdir()
    export = ExportedWorkspace(inner, str(target), stopped)
    if prepared:
        export.prepare(Preparation(engine, "some-id", {}, threading.Event()))
    assert export.changed_on_host() == ("changed",)
    export.release()
    assert inner.released == 1
    assert engine.containers == []
    return export, target


def test_files_folders_and_links_are_copied_as_they_are(tmp_path):
    export, out = exported(
        tmp_path,
        folder("a"),
        member("a/file", data=b"content", mode=0o640, mtime=1_000_000_000),
        symlink("a/relative", "file"),
        symlink("absolute", "/etc/passwd"),
        symlink("nowhere", "../../x"),
        hard_link("second", "a/file", mode=0o640, mtime=1_000_000_000),
        member("büro \udcff", data=b"x"),
    )
    assert export.error == ""
    assert (export.files, export.size_bytes) == (6, 8)
    status = (out / "a" / "file").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o640, 1_000_000_000)
    assert (out / "second").stat().st_ino == status.st_ino
    links = {name: str((out / name).readlink()) for name in ("a/relative", "absolute", "nowhere")}
    assert links == {"a/relative": "file", "absolute": "/etc/passwd", "nowhere": "../../x"}
    assert (out / "büro \udcff").read_bytes() == b"x"


def test_everything_belongs_to_the_user_and_no_set_id_bit_is_kept(tmp_path):
    _, out = exported(tmp_path, member("file", data=b"x", mode=0o6777))
    status = (out / "file").stat()
    assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
    assert stat.S_IMODE(status.st_mode) == 0o777


def test_a_folder_without_leave_to_write_is_filled_before_it_is_closed(tmp_path):
    _, out = exported(tmp_path, folder("ro", 0o555), member("ro/file", data=b"x"))
    assert stat.S_IMODE((out / "ro").stat().st_mode) == 0o555
    assert (out / "ro" / "file").read_bytes() == b"x"


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_what_is_no_file_folder_or_link_is_left_out_and_named(tmp_path, kind):
    export, out = exported(tmp_path, member("odd", kind), member("file"))
    assert export.error == ""
    assert export.left_out == ["odd"]
    assert [path.name for path in out.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "members",
    [
        (member("../escaped", data=b"x"),),
        (symlink("link", ".."), member("link/escaped", data=b"x")),
        (symlink("link", "/"), folder("link/escaped")),
        (hard_link("link", "../escaped"),),
        (symlink("link", ".."), hard_link("second", "link/escaped")),
    ],
    ids=["dots", "through a link", "through a link to the root", "hard link", "link, hard link"],
)
def test_nothing_is_written_outside_whatever_the_engine_sends(tmp_path, members):
    (tmp_path / "escaped").write_text("before")
    export, out = exported(tmp_path, *members)
    assert export.error
    assert (tmp_path / "escaped").read_text() == "before"
    assert not (out / "link").exists() or (out / "link").is_symlink()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (EngineError("no such volume"), "the engine does not give the workspace: no such volume"),
        (
            archive(member("a", data=b"x" * 9000))[:3000],
            "the engine's copy of the workspace is damaged: it ends in the middle of a file",
        ),
    ],
)
def test_a_copy_that_breaks_off_says_why(tmp_path, data, error):
    export, _ = exported(tmp_path, data=data)
    assert export.error == error


def test_what_the_disk_refuses_is_named_with_the_file(tmp_path):
    name = "n" * 300
    export, out = exported(tmp_path, member(name, data=b"x"))
    assert export.error == f"{out}/{name}: File name too long"


def test_a_cancelled_build_is_not_copied(tmp_path):
    export, out = exported(tmp_path, member("a", data=b"x"), stopped=lambda: True)
    assert export.error == "the build was cancelled"
    assert list(out.iterdir()) == []


def test_a_build_that_never_had_a_workspace_says_so(tmp_path):
    export, _ = exported(tmp_path, prepared=False)
    assert export.error == "the build ended before it had one"


def test_no_folder_outside_is_changed_through_a_link_that_replaces_another(tmp_path):
    """CVE-2024-12718: modes and times of folders are set at the end, when links lead elsewhere."""
    victim = tmp_path / "outside" / "victim"
    victim.mkdir(parents=True, mode=0o700)
    before = victim.stat()
    export, _ = exported(
        tmp_path,
        folder("inside"),
        symlink("way", "inside"),
        member("way/victim", tarfile.DIRTYPE, mode=0o777, mtime=1),
        symlink("way", "../outside"),
    )
    after = victim.stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert export.error


def test_a_folder_that_a_link_replaces_keeps_nothing_of_the_folder(tmp_path):
    (tmp_path / "outside").mkdir(mode=0o700)
    export, out = exported(
        tmp_path,
        member("way", tarfile.DIRTYPE, mode=0o777, mtime=1),
        symlink("way", "../outside"),
    )
    assert export.error == ""
    assert (out / "way").is_symlink()
    assert stat.S_IMODE((tmp_path / "outside").stat().st_mode) == 0o700


def test_a_second_name_of_a_pipe_is_left_out_too(tmp_path):
    export, out = exported(tmp_path, member("pipe", tarfile.FIFOTYPE), hard_link("also", "pipe"))
    assert (export.error, export.left_out) == ("", ["pipe", "also"])
    assert list(out.iterdir()) == []


def test_nothing_is_written_through_links_that_are_too_long_to_be_resolved(tmp_path):
    """CVE-2025-4517: a step that replaces the engine of its sandbox sends any archive."""
    (tmp_path / "home").mkdir()
    members, above = [], ""
    for letter in "abcdefghijklmnop":
        long = above + "d" * 247
        members += [folder(long), symlink(above + letter, "d" * 247)]
        above = f"{long}/"
    short = "a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p"
    members.append(symlink(f"{short}/{'l' * 254}", "../" * 16))
    members.append(symlink("escape", f"{short}/{'l' * 254}/../home"))
    members.append(member("escape/authorized_keys", data=b"of an attacker"))
    export, _ = exported(tmp_path, *members)
    assert list((tmp_path / "home").iterdir()) == []
    assert export.error
