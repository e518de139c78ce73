from __future__ import annotations

import io
import tarfile

import pytest

from buildrunner.builders import image_contents as step_files
from buildrunner.builders.image_contents import build_context, content_hash, read_step_files
from buildrunner.errors import BuildrunnerError

FILES = {"Dockerfile": b"FROM scratch\n", "run": b"#!/bin/sh\n"}


@pytest.fixture
def steps(tmp_path, monkeypatch):
    folder = tmp_path / "demo"
    (folder / "sub").mkdir(parents=True)
    (folder / "Dockerfile").write_text("FROM scratch\n")
    (folder / "README.md").write_text("read me\n")
    (folder / "cloudbuild.yaml").write_text("steps: []\n")
    (folder / "sub" / "tool").write_text("#!/bin/sh\n")
    (folder / "test").mkdir()
    (folder / "test" / "test.sh").write_text("exit 0\n")
    monkeypatch.setattr(step_files, "STEPS_FOLDER", str(tmp_path))
    return folder


def test_only_what_the_image_is_made_from_is_read(steps) -> None:
    assert read_step_files("demo") == {
        "Dockerfile": b"FROM scratch\n",
        "sub/tool": b"#!/bin/sh\n",
    }


def test_the_mode_of_a_file_does_not_matter(steps) -> None:
    before = content_hash(read_step_files("demo"), {})
    (steps / "sub" / "tool").chmod(0o755)
    assert content_hash(read_step_files("demo"), {}) == before


def test_a_readme_inside_the_context_belongs_to_the_image(steps) -> None:
    (steps / "sub" / "README.md").write_text("inside\n")
    assert "sub/README.md" in read_step_files("demo")


def test_a_missing_folder_is_a_broken_installation(steps) -> None:
    with pytest.raises(BuildrunnerError, match="not installed"):
        read_step_files("nothing")


@pytest.mark.parametrize(
    ("files", "inputs"),
    [
        ({**FILES, "Dockerfile": b"FROM other\n"}, {"target": "a"}),
        ({**FILES, "more": b""}, {"target": "a"}),
        (FILES, {"target": "b"}),
        (FILES, {"target": "a", "BASE": "sha256:1"}),
    ],
    ids=["content", "another file", "input", "another input"],
)
def test_whatever_changes_the_image_changes_the_hash(files, inputs) -> None:
    assert content_hash(files, inputs) != content_hash(FILES, {"target": "a"})


def test_equal_inputs_give_an_equal_hash_in_any_order() -> None:
    turned = dict(reversed(FILES.items()))
    assert content_hash(turned, {"b": "2", "a": "1"}) == content_hash(FILES, {"a": "1", "b": "2"})


def test_a_build_context_is_the_same_tar_every_time() -> None:
    context = build_context(FILES)
    assert context == build_context(dict(reversed(FILES.items())))
    with tarfile.open(fileobj=io.BytesIO(context)) as archive:
        members = {member.name: member for member in archive.getmembers()}
        assert set(members) == set(FILES)
        # An installed package has no executable files: an image must not depend on their modes.
        made = {(member.mode, member.uid, member.mtime) for member in members.values()}
        assert made == {(0o644, 0, 0)}
