from __future__ import annotations

import re
from pathlib import Path

import pytest

from buildrunner.builders.catalog import (
    BUILDERS,
    DEFAULT_ALIASES,
    advice,
    builder_named,
    drop_in,
    installed_aliases,
    stand_in,
)
from buildrunner.builders.image_contents import STEPS_FOLDER, read_step_files
from buildrunner.builders.installer import with_parents
from buildrunner.errors import UsageError

FOLDERS = sorted(path.name for path in Path(STEPS_FOLDER).iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_of_steps_is_in_the_catalog_and_explains_itself(folder: str) -> None:
    assert folder in {builder.folder for builder in BUILDERS}
    for name in ("Dockerfile", "README.md", "cloudbuild.yaml"):
        assert (Path(STEPS_FOLDER) / folder / name).stat().st_size > 0


@pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.name)
def test_a_builder_declares_what_its_dockerfile_takes(builder) -> None:
    dockerfile = read_step_files(builder.folder)["Dockerfile"].decode()
    for argument in (*builder.parents, *builder.settings, *builder.arguments):
        assert f"ARG {argument}" in dockerfile
    if builder.target:
        assert f"AS {builder.target}\n" in dockerfile
    for parent in builder.parents.values():
        assert builder_named(parent) is not None


def test_parents_come_before_what_stands_on_them_and_only_what_is_needed_is_made() -> None:
    names = [builder.name for builder in with_parents(["npm"])]
    assert names == ["base", "git", "gcc", "python", "npm"]
    names = [builder.name for builder in with_parents(["npm"])]
    assert names == ["base", "git", "gcc", "python", "npm"]


def test_no_name_means_the_common_images_and_what_they_stand_on() -> None:
    made = {builder.name for builder in with_parents([])}
    assert {builder.name for builder in BUILDERS if builder.common} == made
    assert {"docker", "gcloud", "git", "npm", "go", "python", "curl", "gsutil", "mvn"} <= made
    assert not {"bazel", "kaniko", "terraform"} & made


@pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.name)
def test_every_program_that_a_dockerfile_copies_gets_its_mode_there(builder) -> None:
    files = read_step_files(builder.folder)
    dockerfile = files["Dockerfile"].decode()
    for copied in re.findall(r"^COPY (?!--from)(.*) (\S+)$", dockerfile, re.MULTILINE):
        sources, target = copied
        for source in sources.split():
            if files.get(source, b"").startswith(b"#!"):
                assert re.search(rf"chmod (-R )?755 .*{re.escape(target.rstrip('/'))}", dockerfile)


def test_a_builder_may_be_named_as_its_image() -> None:
    assert with_parents(["buildrunner/docker:latest"]) == with_parents(["docker"])


def test_an_unknown_builder_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError, match="'dokcer'") as refused:
        with_parents(["dokcer"])
    assert "docker" in refused.value.hint


def test_no_image_of_docker_hub_has_a_default_alias() -> None:
    assert DEFAULT_ALIASES["gcr.io/cloud-builders/docker"] == "buildrunner/docker:latest"
    assert all(name.startswith("gcr.io/") for name in DEFAULT_ALIASES)


def test_no_public_image_is_served_twice() -> None:
    served = [name for builder in BUILDERS for name in (*builder.serves, *builder.stands_in_for)]
    assert len(served) == len(set(served))


@pytest.mark.parametrize(
    ("image", "served_by"),
    [
        ("python:3.12-slim", "python"),
        ("docker.io/library/python", "python"),
        ("mirror.gcr.io/library/golang:1.22", "golang"),
        ("alpine@sha256:0123", "alpine"),
        ("hashicorp/terraform:1.5", "terraform"),
        ("gcr.io/some-project/terraform", "terraform-gcloud"),
        ("us-central1-docker.pkg.dev/some-project/tools/helm:3", "helm-gcloud"),
        ("gcr.io/some-project/app", None),
        ("terraform", None),
        ("example.com/library/python", None),
        ("gcr.io/cloud-builders/docker", None),
    ],
)
def test_a_stand_in_is_known_by_what_it_may_replace(image: str, served_by: str | None) -> None:
    found = stand_in(image)
    assert (found.name if found else None) == served_by


def test_a_drop_in_serves_every_tag() -> None:
    found = drop_in("gcr.io/cloud-builders/npm:node-12.18.3")
    assert found is not None
    assert found.name == "npm"
    assert drop_in("python:3.12") is None


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (
            "gcr.io/cloud-builders/go:alpine",
            "`buildrunner builders install go` makes a drop-in for it",
        ),
        (
            "node:20",
            "`buildrunner builders install node` makes a stand-in for it, and "
            "`--image-alias node:20=buildrunner/node` uses that",
        ),
        ("registry.test/app", ""),
    ],
)
def test_the_advice_for_an_image_names_the_command(image: str, said: str) -> None:
    assert advice(image) == said


OURS = "buildrunner/docker:latest"
DOCKER = "gcr.io/cloud-builders/docker"


@pytest.mark.parametrize(
    ("requested", "present", "served"),
    [
        (DOCKER, {OURS: "1"}, True),
        (f"{DOCKER}:20.10.24", {OURS: "1"}, True),
        (DOCKER, {}, False),
        (DOCKER, {DOCKER: "public", OURS: "1"}, False),
        (DOCKER, {DOCKER: "1", OURS: "1"}, True),
        ("gcr.io/cloud-builders/unheard-of", {OURS: "1"}, False),
        ("python:3.11-slim", {"buildrunner/python:latest": "2"}, False),
        ("127.0.0.1:5000/docker", {OURS: "1"}, False),
    ],
)
def test_a_builder_serves_only_where_it_is_installed_and_the_real_one_is_not(
    requested: str, present: dict[str, str], served: bool
) -> None:
    expected = {requested: OURS} if served else {}
    assert installed_aliases([requested, requested], present.get) == expected
