"""The kept workspace of a failed build, when its engine sends no archive that ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.containers.fake import FakeEngine
from buildrunner.workspace import kept
from buildrunner.workspace.kept import Keeping, KeptWorkspace
from buildrunner.workspace.protocol import Preparation
from buildrunner.workspace.volume import EmptyWorkspace


class Endless(FakeEngine):
    """An engine whose archive gives nothing to write: it stalls, or repeats an empty label."""

    def __init__(self, *, stalls: bool) -> None:
        super().__init__()
        self.stalls = stalls
        self.ended = threading.Event()

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        try:
            label = bytearray(b"label".ljust(156, b"\0") + b"V").ljust(512, b"\0")
            label[148:156] = b" " * 8
            label[148:156] = b"%06o\0 " % sum(label)
            while not self.ended.is_set():
                if self.stalls:
                    self.ended.wait(60)
                yield bytes(label)
        finally:
            self.ended.set()


@pytest.mark.parametrize("stalls", [True, False])
def test_a_build_s_end_does_not_wait_for_an_archive_that_gives_nothing_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stalls: bool
) -> None:
    monkeypatch.setattr(kept, "_WAIT_LIMIT_S", 0.2)
    monkeypatch.setattr(kept, "_GRACE_S", 0.2 if stalls else 30.0)
    engine = Endless(stalls=stalls)
    workspace = KeptWorkspace(
        EmptyWorkspace(),
        Keeping(folder=str(tmp_path), limit_bytes=1 << 20),
        "build",
        wanted=lambda: True,
        volumes=lambda: (),
    )
    workspace.prepare(Preparation(engine, "build", {}, threading.Event()))
    started = time.monotonic()
    workspace.release()
    assert time.monotonic() - started < 20
    if stalls:
        engine.ended.set()
    else:
        assert engine.ended.is_set()
        assert list(tmp_path.iterdir()) == []
