"""Whose a place is: one rename, whoever else is in the folder at the time."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from buildrunner.sandboxes.nested.folders import SandboxFolders
from buildrunner.worker.data_folder import DataFolder


@pytest.fixture
def folders(tmp_path: Path) -> SandboxFolders:
    return SandboxFolders(str(tmp_path))


def test_one_that_stands_ahead_becomes_a_builds(folders: SandboxFolders) -> None:
    place = folders.new_spare()
    assert folders.spares() == (place,)
    assert folders.place(place) == place
    assert folders.take(place, "one")
    assert folders.spares() == ()
    assert folders.owners() == {place: "one"}
    assert folders.place("one") == place
    assert folders.is_taken(place)
    folders.drop("one")
    assert folders.owners() == {}
    assert not folders.is_taken(place)


def test_who_is_about_to_remove_one_has_not_taken_it(folders: SandboxFolders) -> None:
    place = folders.new_spare()
    assert folders.take(place, place)
    assert not folders.is_taken(place)
    assert folders.owners() == {place: place}


def test_one_that_is_gone_can_not_be_taken_and_a_builds_folder_stays(
    folders: SandboxFolders,
) -> None:
    run = Path(folders.root) / "run" / "two"
    run.mkdir(parents=True)
    place = folders.new_spare()
    assert folders.take(place, "one")
    assert not folders.take(place, "two")
    assert run.is_dir()
    assert folders.owners() == {place: "one"}


def test_of_many_exactly_one_gets_it(folders: SandboxFolders) -> None:
    place = folders.new_spare()
    everybody = threading.Barrier(8)

    def take(number: int) -> bool:
        everybody.wait()
        return folders.take(place, f"build-{number}")

    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(take, range(8)))
    assert got.count(True) == 1
    assert folders.owners() == {place: f"build-{got.index(True)}"}
    assert DataFolder(folders.root).run_ids() == (f"build-{got.index(True)}",)


def test_a_server_that_clears_run_folders_away_does_not_keep_it_standing(
    folders: SandboxFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a server that starts does with those that no build is known of."""
    place = folders.new_spare()
    cleared = []
    rename = os.rename

    def rename_late(source: str, target: str) -> None:
        if not cleared:
            cleared.extend(DataFolder(folders.root).run_ids())
            shutil.rmtree(Path(target).parent)
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_late)
    assert folders.take(place, place)
    assert cleared == [place]
    assert folders.spares() == ()


def test_who_can_not_move_it_leaves_all_as_it_is(
    folders: SandboxFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = folders.new_spare()

    def refuse(*_: str) -> None:
        raise PermissionError(1, "not allowed")

    monkeypatch.setattr(os, "rename", refuse)
    assert not folders.take(place, "one")
    assert folders.spares() == (place,)
    assert DataFolder(folders.root).run_ids() == ()
