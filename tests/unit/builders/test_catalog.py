from __future__ import annotations

from pathlib import Path

import pytest

from buildrunner.builders.catalog import BUILDERS, DEFAULT_ALIASES, builder_named, installed_aliases
from buildrunner.builders.installer import with_parents
from buildrunner.builders.step_files import STEPS_FOLDER, read_step_files
from buildrunner.errors import UsageError

FOLDERS = sorted(path.name for path in Path(STEPS_FOLDER).iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_of_steps_is_in_the_catalog_and_explains_itself(folder: str) -> None:
    assert folder in {builder.folder for builder in BUILDERS}
    for name in ("Dockerfile", "README.md", "cloudbuild.yaml"):
        assert (Path(STEPS_FOLDER) / folder / name).stat().st_size > 0


@pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.name)
def test_a_builder_declares_what_its_dockerfile_takes(builder) -> None:
    dockerfile = read_step_files(builder.folder)["Dockerfile"][1].decode()
    for argument in (*builder.parents, *builder.settings):
        assert f"ARG {argument}" in dockerfile
    if builder.target:
        assert f"AS {builder.target}\n" in dockerfile
    for parent in builder.parents.values():
        assert builder_named(parent) is not None


def test_parents_come_before_what_stands_on_them_and_only_what_is_needed_is_made() -> None:
    assert [builder.name for builder in with_parents(["npm"])] == ["base", "python", "npm"]
    assert [builder.name for builder in with_parents(["git", "base"])] == ["base", "git"]
    assert len(with_parents([])) == len(BUILDERS)


def test_a_builder_may_be_named_as_its_image() -> None:
    assert with_parents(["buildrunner/docker:latest"]) == with_parents(["docker"])


def test_an_unknown_builder_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="'dokcer'") as refused:
        with_parents(["dokcer"])
    assert "docker" in refused.value.hint


def test_only_googles_builders_have_a_default_alias() -> None:
    assert DEFAULT_ALIASES["gcr.io/cloud-builders/docker"] == "buildrunner/docker:latest"
    assert all(name.startswith("gcr.io/cloud-builders/") for name in DEFAULT_ALIASES)


@pytest.mark.parametrize(
    ("asked", "present", "served"),
    [
        ("gcr.io/cloud-builders/docker", {"buildrunner/docker:latest"}, True),
        ("gcr.io/cloud-builders/docker:20.10.24", {"buildrunner/docker:latest"}, True),
        ("gcr.io/cloud-builders/docker", set(), False),
        (
            "gcr.io/cloud-builders/docker",
            {"gcr.io/cloud-builders/docker", "buildrunner/docker:latest"},
            False,
        ),
        ("gcr.io/cloud-builders/unheard-of", {"buildrunner/docker:latest"}, False),
        ("python:3.11-slim", {"buildrunner/python:latest"}, False),
        ("127.0.0.1:5000/docker", {"buildrunner/docker:latest"}, False),
    ],
)
def test_a_builder_serves_only_where_it_is_installed_and_the_real_one_is_not(
    asked: str, present: set[str], served: bool
) -> None:
    expected = {asked: "buildrunner/docker:latest"} if served else {}
    assert installed_aliases([asked, asked], present.__contains__) == expected
