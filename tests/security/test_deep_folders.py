"""Folders that a step made, thousands of levels deep, are removed like any others."""

from __future__ import annotations

import os
from pathlib import Path

from buildrunner.containers import cleanup
from buildrunner.sandboxes.nested.folders import SandboxFolders
from buildrunner.worker.data_folder import DataFolder

LEVELS = 3000


def make_deep(folder: Path) -> None:
    """Make levels below a folder, whose path is longer than any call takes."""
    folder.mkdir(parents=True, exist_ok=True)
    level = os.open(folder, os.O_RDONLY)
    for _ in range(LEVELS):
        os.mkdir("d", dir_fd=level)
        below = os.open("d", os.O_RDONLY, dir_fd=level)
        os.close(level)
        level = below
    os.close(level)


def test_a_sandbox_s_folder_that_is_deep_goes_with_its_build(tmp_path: Path) -> None:
    folders = SandboxFolders(str(tmp_path))
    notes = Path(folders.notes("b1"))
    make_deep(notes / "left")
    folders.drop("b1")
    assert not notes.exists()


def test_a_run_folder_that_is_deep_goes_with_its_build(tmp_path: Path) -> None:
    folder = DataFolder(str(tmp_path))
    run = Path(folder.make_run_folder("b1"))
    make_deep(run / "left")
    folder.drop_run_folder("b1")
    assert not run.exists()


def test_what_a_dead_build_left_is_removed_however_deep_it_is(tmp_path: Path) -> None:
    make_deep(tmp_path / "left")
    assert cleanup.remove_tree(str(tmp_path / "left")) == ""
    assert not (tmp_path / "left").exists()
