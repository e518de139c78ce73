"""Where volumes lie. How fast that makes it is for benchmarks/unpack.py."""

import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from buildrunner.containers.protocol import EngineInfo
from buildrunner.workspace.shared_files import (
    FilesNotShared,
    check_engine,
    folder_apart,
    lay_apart,
)


@pytest.fixture
def mount_point(tmp_path: Path) -> Path:
    found = tmp_path / "volume/_data"
    found.mkdir(parents=True)
    found.chmod(0o2751)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="others than root never share files")
def test_an_engine_whose_process_cannot_be_looked_at_shares_no_files(tmp_path: Path) -> None:
    """The process that listens is gone, so that /proc has no entry under the peer's id."""
    path = str(tmp_path / "engine.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        listen = f"import socket; socket.socket(fileno={server.fileno()}).listen()"
        subprocess.run([sys.executable, "-c", listen], pass_fds=[server.fileno()], check=True)
        info = EngineInfo(name="x", version="1", api_version="1.41", local=True, socket_path=path)
        with pytest.raises(FilesNotShared, match="can't be read"):
            check_engine(info)


def is_ext4(path: Path) -> bool:
    argv = ["stat", "--file-system", "--format=%T", str(path)]
    return subprocess.check_output(argv, text=True).strip() == "ext2/ext3"  # one number for all


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_new_volume_is_laid_apart_once(mount_point: Path) -> None:
    before = mount_point.stat()
    lay_apart(str(mount_point))
    after = mount_point.stat()
    assert (after.st_ino != before.st_ino) is is_ext4(mount_point)
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    lay_apart(str(mount_point))
    assert mount_point.stat().st_ino == after.st_ino
    assert names(mount_point.parent) == ["_data"]


def test_a_volume_with_something_in_it_stays_where_it_is(mount_point: Path) -> None:
    (mount_point / "file").write_text("kept")
    before = mount_point.stat().st_ino
    lay_apart(str(mount_point))
    assert mount_point.stat().st_ino == before
    assert (mount_point / "file").read_text() == "kept"
    assert names(mount_point.parent) == ["_data"]


def test_a_volume_of_another_machine_is_let_be(tmp_path: Path) -> None:
    lay_apart(str(tmp_path / "there/volume/_data"))
    (tmp_path / "volume").mkdir()
    lay_apart(str(tmp_path / "volume/_data"))
    assert names(tmp_path / "volume") == []


def test_a_folder_that_is_made_apart_is_for_its_owner_only(tmp_path: Path) -> None:
    folder_apart(str(tmp_path), "layers")
    assert names(tmp_path) == ["layers"]
    assert stat.S_IMODE((tmp_path / "layers").stat().st_mode) == 0o700
    (tmp_path / "layers/one").mkdir()
    with pytest.raises(OSError, match="Directory not empty"):
        folder_apart(str(tmp_path), "layers")
    assert names(tmp_path) == ["layers"]
