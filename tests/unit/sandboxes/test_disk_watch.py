"""When the disk use of a sandbox is measured, and what is too much."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.errors import EngineError
from buildrunner.sandboxes.nested import disk as disk_watch
from buildrunner.sandboxes.nested.disk import LEAST_FILES, DiskWatch, pause_after

GIB = 1 << 30
MIB = 1 << 20


@pytest.mark.parametrize(
    ("took_s", "pause_s"), [(0.0, 5.0), (1.0, 20.0), (13.0, 30.0), (400.0, 30.0)]
)
def test_no_build_stretches_the_pauses_by_what_it_leaves_to_measure(
    took_s: float, pause_s: float
) -> None:
    assert pause_after(took_s) == pause_s


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (f"{GIB + 1}\n10\n0 0", "has written 1.0 GiB"),
        (f"{GIB}\n10\n1 1", "has written 1.0 GiB"),
        (f"0\n{LEAST_FILES + 1}\n0 0", "has 1,000,001 files and folders"),
        (f"0\n{LEAST_FILES}\n0 1", "has 1,000,001 files and folders"),
    ],
)
def test_a_sandbox_ends_that_uses_more_than_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, why: str
) -> None:
    monkeypatch.setattr(disk_watch, "_PAUSE_S", 0.0)
    outputs = iter([f"{GIB}\n{LEAST_FILES}\n0 0", output])
    watch = DiskWatch(lambda _: next(outputs).encode(), GIB, str(tmp_path))
    assert why in watch.until_over(threading.Event())


def test_a_sandbox_that_is_not_measured_in_time_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_watch, "_PAUSE_S", 0.0)
    monkeypatch.setattr(disk_watch, "_WAIT_LIMIT_S", 0.0)

    def hang(_: tuple[str, ...]) -> bytes:
        raise EngineError("timeout can't be run in the sandbox: exit code 137")

    why = DiskWatch(hang, GIB, str(tmp_path)).until_over(threading.Event())
    assert "could not be measured 1 times" in why


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with a file system of 64 MiB, of which sandboxes leave 3.2 MiB free."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(("written", "ends"), [(50 * MIB, True), (9 * MIB, False)])
def test_who_has_written_most_ends_before_the_machine_s_disk_is_full(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, written: int, ends: bool
) -> None:
    """A limit of 100 GiB is no limit on a disk with 50 GiB left."""
    monkeypatch.setattr(disk_watch, "_PAUSE_S", 600.0)
    monkeypatch.setattr(disk_watch, "_LOOK_S", 0.01)
    measured, closing = threading.Event(), threading.Event()
    reasons: list[str] = []

    def measure(_: tuple[str, ...]) -> bytes:
        measured.set()
        return f"{written} 1 0 0".encode()

    sandbox = small_disk / "volume"
    sandbox.mkdir()
    watch = DiskWatch(measure, 100 * GIB, str(sandbox))
    thread = threading.Thread(target=lambda: reasons.append(watch.until_over(closing)))
    thread.start()
    (sandbox / "file").write_bytes(bytes(62 * MIB))
    assert measured.wait(30)
    if not ends:
        closing.set()
    thread.join(30)
    assert ("the disk of the machine is full" in reasons[0]) == ends


def test_a_disk_that_fills_quickly_is_measured_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_watch, "_PAUSE_S", 600.0)
    monkeypatch.setattr(disk_watch, "_LOOK_S", 0.05)
    measured, closing = threading.Event(), threading.Event()

    def measure(_: tuple[str, ...]) -> bytes:
        measured.set()
        return b"0 0 0 0"

    watch = DiskWatch(measure, 256 * MIB, str(tmp_path))
    thread = threading.Thread(target=watch.until_over, args=(closing,))
    thread.start()
    try:
        for number in range(40):
            (tmp_path / str(number)).write_bytes(bytes(16 * MIB))
            if measured.wait(0.1):
                break
        assert measured.is_set()
    finally:
        closing.set()
        thread.join()
