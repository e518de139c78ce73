"""Folders that a step made, thousands of levels deep, are removed like any others."""

from __future__ import annotations

import os
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildrunner.errors import SourceError
from buildrunner.file_trees import remove_tree
from buildrunner.sandboxes.nested.folders import SandboxFolders
from buildrunner.sources.git.mirror import GitMirror
from buildrunner.sources.git.source import GitCheckout, GitRequest, fetch_git
from buildrunner.worker.data_folder import DataFolder
from tests.fixtures_git import Repository, git

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
    assert remove_tree(str(tmp_path / "left")) == ""
    assert not (tmp_path / "left").exists()


def test_what_can_not_be_removed_takes_little_memory(folder_of_another: Path) -> None:
    """Attack: `rm` names each file that it leaves, and a step makes the names as long as it likes.

    The folder is of root, and the server is not root.
    """
    tracemalloc.start()
    try:
        problem = remove_tree(str(folder_of_another))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "rm: cannot remove" in problem
    assert len(problem) < 1000
    assert peak < 1 << 20


@pytest.fixture
def folder_of_another() -> Iterator[Path]:
    """A folder with 300 files at a path of 20 KB, which this process may not remove."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    level = os.open(folder, os.O_RDONLY)
    for _ in range(100):
        os.mkdir("d" * 200, dir_fd=level)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=level)
        os.close(level)
        level = below
    for number in range(300):
        os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY, dir_fd=level))
    os.fchmod(level, 0o555)
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    yield folder
    os.seteuid(own)
    os.fchmod(level, 0o755)
    os.close(level)
    assert remove_tree(str(folder)) == ""


DEEP = f"{'d/' * 1500}file"
TOO_LONG = f"z/{'/'.join(['n' * 200] * 25)}"


def hostile(folder: Path, *paths: str) -> str:
    """The URL of a repository with files whose paths no tool would make."""
    folder.mkdir()
    repository = Repository(folder, "evil.git")
    blob = git(repository.work, "hash-object", "-w", "--stdin")
    for path in paths:
        git(repository.work, "update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
    tree = git(repository.work, "write-tree")
    commit = git(repository.work, "commit-tree", tree, "-m", "evil")
    repository.push(f"{commit}:refs/heads/main")
    return f"file://{folder}/evil.git"


def fetched(url: str, mirror: GitMirror) -> GitCheckout:
    request = GitRequest(url=url, revision="main")
    return fetch_git(request, mirror=mirror, cancel=threading.Event(), wait_s=0.01)


def test_a_repository_with_deep_folders_breaks_no_build_of_another(tmp_path: Path) -> None:
    """Issue: its remains could not be removed, and each later use of the cache failed on them."""
    mirror = GitMirror(str(tmp_path / "cache"))
    with pytest.raises(SourceError, match="cannot create directory"):
        fetched(hostile(tmp_path / "evil", DEEP, TOO_LONG), mirror)
    good = hostile(tmp_path / "good", "file")
    for _ in range(2):
        fetched(good, mirror).release()
    assert not list((tmp_path / "cache").glob("trash*"))


def test_a_checkout_with_deep_folders_leaves_the_cache_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    fetched(hostile(tmp_path / "evil", DEEP), GitMirror(str(folder))).release()
    assert GitMirror(str(folder), quota_bytes=0).trim() == 0
    (home,) = [path for path in folder.iterdir() if path.is_dir()]
    assert not [path for path in home.iterdir() if path.is_dir()]
