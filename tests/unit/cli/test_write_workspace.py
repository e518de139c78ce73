"""Where `--write-workspace` may write, and where not."""

import os
import stat
import subprocess
import sys

import pytest

from buildrunner.cli.submit.run import prepare_folder
from buildrunner.errors import UsageError


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("before", [False, True], ids=["new", "empty"])
def test_a_new_or_empty_folder_is_taken(tmp_path, source, before):
    wanted = tmp_path / "a" / "b"
    if before:
        wanted.mkdir(parents=True)
    assert prepare_folder(str(wanted), str(source), "") == str(wanted)
    assert wanted.is_dir()


def test_a_folder_with_something_in_it_is_refused_and_left_as_it_is(tmp_path, source):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        prepare_folder(str(tmp_path / "full"), str(source), "")
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_a_file_in_the_way_is_refused(tmp_path, source):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be made"):
        prepare_folder(str(tmp_path / "file"), str(source), "")


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, source):
    (tmp_path / "closed").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    call = f"prepare_folder({str(tmp_path / 'closed')!r}, {str(source)!r}, '')"
    # Root may write anywhere, by a capability that the child gives up.
    without = ["setpriv", "--inh-caps=-all", "--bounding-set=-all"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*without, sys.executable, "-c", f"from {prepare_folder.__module__} import *; {call}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "UsageError" in done.stderr
    assert "closed can't be written to: Permission denied" in done.stderr


def test_the_source_itself_is_refused_also_by_another_name(tmp_path, source):
    (tmp_path / "link").symlink_to(source)
    for name in ("source", "link"):
        with pytest.raises(UsageError, match="is the source itself"):
            prepare_folder(str(tmp_path / name), str(source), "")


@pytest.mark.parametrize(
    ("rules", "wanted", "refused"),
    [
        ("", "out", True),
        ("out\n", "out", False),
        ("/out/\n", "out/deep", False),
        ("out/\n", "other", True),
        ("*\n!other\n", "other", True),
    ],
)
def test_a_folder_in_the_source_must_be_left_out_of_it(source, rules, wanted, refused):
    (source / ".gcloudignore").write_text(rules)
    path = source / wanted
    if not refused:
        assert prepare_folder(str(path), str(source), "") == str(path)
        return
    with pytest.raises(UsageError, match="lies in the source") as caught:
        prepare_folder(str(path), str(source), "")
    assert f"/{wanted}/ in .gcloudignore" in caught.value.hint
    assert not path.exists()


def test_a_source_that_is_no_folder_is_in_nobodys_way(tmp_path):
    assert prepare_folder(str(tmp_path / "out"), None, "") == str(tmp_path / "out")
