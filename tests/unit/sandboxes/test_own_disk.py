"""File systems of sandboxes on loop devices."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildrunner.errors import EngineError
from buildrunner.sandboxes.nested import disk as module
from buildrunner.sandboxes.nested.disk import own_disk, why_no_own_disk


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A folder where a file system can be made."""
    if why := why_no_own_disk([str(tmp_path)]):
        pytest.skip(why)
    return str(tmp_path)


def is_used(device: str) -> bool:
    """Whether a loop device has a file."""
    return Path("/sys/block", Path(device).name, "loop/backing_file").exists()


def test_a_file_system_goes_with_the_last_that_holds_its_device_and_has_no_name(
    folder: str,
) -> None:
    with own_disk([folder], 1 << 20, 100) as device:
        held = os.open(device, os.O_RDONLY)
        assert list(Path(folder).iterdir()) == []
    assert is_used(device)
    os.close(held)
    assert not is_used(device)


def test_no_file_system_gets_the_device_of_an_earlier_one(folder: str) -> None:
    """The engine knows the volumes of sandboxes that have ended by their devices."""
    devices = []
    for _ in range(5):
        with own_disk([folder], 1 << 20, 100) as device:
            devices.append(device)
    assert len({*devices}) == 5
    with own_disk([folder], 1 << 20, 100):
        left = [one for one in devices if Path(one).exists()]
    assert left == []


def test_the_first_folder_that_can_be_written_to_has_the_file(folder: str) -> None:
    with own_disk(["/proc/no-such-folder", folder], 1 << 20, 100) as device:
        backing = Path("/sys/block", Path(device).name, "loop/backing_file").read_text()
    assert backing.startswith(folder)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("_CONTROL", "/dev/no-such-device", "No such file or directory: '/dev/no-such-device'"),
        ("_PROGRAMS", "/nowhere", r"mkfs\.ext4 \(e2fsprogs\) is not installed"),
        ("_MKFS", ("--no-such-flag",), "mkfs"),
    ],
)
def test_why_there_is_none_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object, why: str
) -> None:
    monkeypatch.setattr(module, name, value)
    with (
        pytest.raises(EngineError, match=rf"^no file system of its own can be made: .*{why}"),
        own_disk([str(tmp_path)], 1 << 20, 100),
    ):
        pass


def test_a_folder_that_can_not_be_written_to_is_named() -> None:
    assert "no file can be made in /proc/none" in why_no_own_disk(["/proc/none"])
