"""Images of the host engine that a build mentions."""

import subprocess
from pathlib import Path

import pytest

from buildrunner.plan.build_plan import BuildPlan, StepPlan
from buildrunner.sandboxes.nested.mentioned_images import (
    made_by,
    mentioned_in_plan,
    mentioned_in_text,
    search_command,
)

NAMES = (
    "base:1",
    "base:1.2",
    "node:latest",
    "python:3.12-slim",
    "team/tool:latest",
    "localhost:5000/app:v1",
    f"pinned@sha256:{'1' * 64}",
)


@pytest.mark.parametrize(
    ("text", "mentioned"),
    [
        ("FROM base:1", {"base:1"}),
        ("FROM base:1 AS build", {"base:1"}),
        ("FROM base:1.2", {"base:1.2"}),
        ("It stands on base:1.", {"base:1"}),
        ("base:1,base:1.2", {"base:1", "base:1.2"}),
        ("base:12 database:1 base:1-slim my/base:1 base:1/x", set()),
        ("FROM docker.io/library/python:3.12-slim", {"python:3.12-slim"}),
        ("FROM docker.io/team/tool", {"team/tool:latest"}),
        ("docker run team/tool --help", {"team/tool:latest"}),
        ("team/tool:latest", {"team/tool:latest"}),
        ("team/tool:2 team/tools", set()),
        ("COPY --from=localhost:5000/app:v1 /a /b", {"localhost:5000/app:v1"}),
        (f"image: 'pinned@sha256:{'1' * 64}'", {f"pinned@sha256:{'1' * 64}"}),
        ("FROM node", {"node:latest"}),
    ],
)
def test_a_name_counts_as_a_whole(text, mentioned):
    assert mentioned_in_text(NAMES, text) == mentioned


def test_nothing_is_mentioned_when_nothing_is_missing():
    assert mentioned_in_text((), "FROM base:1") == set()


def plan(*steps: StepPlan, images: tuple[str, ...] = ()) -> BuildPlan:
    return BuildPlan(build_id="b", project_id="p", steps=steps, images=images)


def step(**fields: object) -> StepPlan:
    return StepPlan(index=0, **{"id": "", "image": "docker", **fields})


@pytest.mark.parametrize(
    ("fields", "mentioned"),
    [
        ({"image": "base:1"}, {"base:1"}),
        ({"args": ("build", "--build-arg", "BASE=node", ".")}, {"node:latest"}),
        ({"args": ("run", "--rm", "node", "x")}, {"node:latest"}),
        ({"script": "node server.js"}, set()),
        ({"script": "docker run\nteam/tool"}, {"team/tool:latest"}),
        ({"env": ("BASE=base:1.2",)}, {"base:1.2"}),
    ],
)
def test_a_short_name_counts_where_it_is_all_there_is(fields, mentioned):
    assert mentioned_in_plan(NAMES, plan(step(**fields))) == mentioned


def test_what_a_build_makes_is_known_by_every_form_of_its_name():
    made = plan(images=("base:1", "team/tool", "other:1"))
    assert made_by(NAMES, made) == {"base:1", "team/tool:latest"}


def searched(folder: Path) -> set[str]:
    lines = subprocess.run(
        search_command(NAMES, str(folder)), check=True, capture_output=True, text=True
    ).stdout
    return mentioned_in_text(NAMES, lines)


def test_files_of_the_source_are_searched(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "Dockerfile").write_text("FROM base:1\nRUN x\nFROM node\n")
    (tmp_path / "run.sh").write_text("node x.js\ndocker run python:3.12-slim\n")
    assert searched(tmp_path) == {"base:1", "node:latest", "python:3.12-slim"}


def test_a_short_name_is_any_word_outside_of_dockerfiles(tmp_path):
    (tmp_path / "README.md").write_text("FROM node on, this is about node\n")
    assert searched(tmp_path) == set()


def test_what_is_not_text_of_the_source_is_not_searched(tmp_path):
    for folder in (".git", "node_modules"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "Dockerfile").write_text("FROM base:1\n")
    (tmp_path / "program").write_bytes(b"\0\1base:1\n")
    assert searched(tmp_path) == set()


def test_an_empty_folder_mentions_nothing(tmp_path):
    assert searched(tmp_path) == set()
