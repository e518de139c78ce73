from __future__ import annotations

import pytest

from buildrunner.builders.config_images import dockerfile_images, from_lines, needed_images
from buildrunner.spec.model.build import Build, BuildStep


@pytest.mark.parametrize(
    ("dockerfile", "arguments", "images"),
    [
        ("FROM alpine\n", {}, ["alpine"]),
        ("# FROM commented\nfrom alpine:3 as base\n", {}, ["alpine:3"]),
        ("FROM --platform=linux/amd64 golang:1 AS build\nFROM scratch\n", {}, ["golang:1"]),
        ("FROM node AS Build\nFROM build\nFROM node\n", {}, ["node"]),
        ("ARG V=3.11\nFROM python:${V}-slim\n", {}, ["python:3.11-slim"]),
        ("ARG V=3.11\nFROM python:$V\n", {"V": "3.12"}, ["python:3.12"]),
        ("FROM ${BASE:-debian}\n", {}, ["debian"]),
        ("ARG BASE\nFROM $BASE\n", {}, []),
        ('ARG V="1"\nFROM a:$V\nARG V=2\nFROM b:$V\n', {}, ["a:1", "b:1"]),
        ("", {}, []),
    ],
)
def test_the_images_that_a_dockerfile_starts_from(dockerfile, arguments, images) -> None:
    assert from_lines(dockerfile, arguments) == images


def build(*steps: BuildStep) -> Build:
    return Build(steps=steps)


def test_the_images_of_the_steps_are_named_once(tmp_path) -> None:
    steps = [BuildStep(name="a"), BuildStep(name="b"), BuildStep(name="a")]
    assert needed_images(build(*steps), [str(tmp_path)]) == (["a", "b"], [])


@pytest.mark.parametrize(
    "step",
    [
        BuildStep(name="docker", args=("build", "-t", "app:1", ".")),
        BuildStep(name="docker", args=("build", "--tag=app:1", ".")),
        BuildStep(name="docker", args=("tag", "other", "app:1")),
        BuildStep(name="kaniko", args=("--destination=app:1",)),
        BuildStep(name="docker", script="docker buildx build --load -t 'app:1' .\n"),
    ],
)
def test_what_steps_build_is_not_needed(step, tmp_path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "Dockerfile").write_text("FROM app:1\nFROM alpine\n")
    user = BuildStep(name="app:1", args=("sub",))
    assert needed_images(build(step, user), [str(tmp_path)]) == ([step.name], ["alpine"])


@pytest.mark.parametrize(
    ("step", "images"),
    [
        (BuildStep(name="docker", args=("build", "-t", "app", ".")), ["at-root"]),
        # The context's own Dockerfile counts too: one too many is no harm.
        (BuildStep(name="docker", args=("build", "-f", "api.Dockerfile", ".")), ["api", "at-root"]),
        (BuildStep(name="docker", args=("build", "."), dir="sub"), ["in-sub"]),
        (BuildStep(name="docker", args=("build", "--file=sub/Dockerfile.t", "x")), ["for-tests"]),
        (BuildStep(name="docker", script="cd /tmp && docker build /workspace/sub\n"), ["in-sub"]),
        (BuildStep(name="kaniko", args=("--dockerfile=sub/Dockerfile",)), ["in-sub"]),
        (BuildStep(name="docker", args=("build", "--build-arg", "V=2", "with-arg")), ["arg:2"]),
        (BuildStep(name="docker", args=("push", "app")), []),
    ],
)
def test_the_dockerfiles_are_those_that_steps_name(step, images, tmp_path) -> None:
    for name, image in {
        "Dockerfile": "at-root",
        "api.Dockerfile": "api",
        "sub/Dockerfile.t": "for-tests",
        "sub/Dockerfile": "in-sub",
        "with-arg/Dockerfile": "arg:$V",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        argument = "ARG V=1\n" if "$" in image else ""
        (tmp_path / name).write_text(f"{argument}FROM {image}\n")
    assert dockerfile_images(build(step), str(tmp_path)) == images
