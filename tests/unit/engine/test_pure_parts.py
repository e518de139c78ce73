"""The small pure parts of the engine: retries, what runs, what builds an image, outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from buildrunner.containers.fake import FakeEngine
from buildrunner.containers.protocol import ImageInfo
from buildrunner.engine.image_pulls import backoff_delays, built_by_steps
from buildrunner.engine.step_container import OUTPUT_LIMIT, argv_of, read_output
from buildrunner.plan.build_plan import BuildPlan, StepPlan


def plan(*steps: StepPlan, images: tuple[str, ...] = ()) -> BuildPlan:
    return BuildPlan(build_id="b", project_id="p", steps=steps, images=images)


def test_delays_grow_by_three_tenths_up_to_ten_seconds() -> None:
    delays = list(backoff_delays(20, lambda: 0.0))
    assert len(delays) == 19
    assert delays[:3] == pytest.approx([0.65, 0.845, 1.0985])
    assert delays[-1] == 10.0


def test_chance_takes_up_to_four_tenths_away() -> None:
    assert list(backoff_delays(3, lambda: 1.0)) == pytest.approx([0.39, 0.507])


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "argv"),
    [
        (None, None, ("/entry", "-e", "cmd")),
        (None, ("arg",), ("/entry", "-e", "arg")),
        (None, (), ("/entry", "-e", "cmd")),  # as Docker does
        (("sh",), None, ("sh",)),
        (("sh",), ("-c", "true"), ("sh", "-c", "true")),
        (("",), ("true",), ("true",)),
        (("",), None, ()),
    ],
)
def test_the_image_and_the_step_say_what_runs(
    entrypoint: tuple[str, ...] | None, cmd: tuple[str, ...] | None, argv: tuple[str, ...]
) -> None:
    image = ImageInfo(id="x", entrypoint=("/entry", "-e"), cmd=("cmd",))
    assert argv_of(image, entrypoint, cmd) == argv


def test_an_image_that_names_no_program_runs_the_steps() -> None:
    assert argv_of(ImageInfo(id="x"), None, ("true",)) == ("true",)
    assert argv_of(ImageInfo(id="x"), None, None) == ()
    assert argv_of(ImageInfo(id="x", cmd=("true",)), None, None) == ("true",)


def using(image: str, *earlier: StepPlan, images: tuple[str, ...] = ()) -> dict[str, int]:
    return built_by_steps(plan(*earlier, StepPlan(index=len(earlier), image=image), images=images))


@pytest.mark.parametrize(
    ("image", "args"),
    [
        ("r/app:v1", ("build", "-t", "r/app:v1", ".")),
        ("r/app", ("build", "--tag=r/app:latest", ".")),
        ("app", ("build", "--tag=app", ".")),
        ("r/app:v1", ("-c", "docker build -t 'r/app:v1' . && echo done")),
    ],
)
def test_a_step_that_names_an_image_as_its_tag_builds_it(image: str, args: tuple[str, ...]) -> None:
    assert using(image, StepPlan(index=0, image="docker", args=args)) == {image: 0}


def test_a_word_that_happens_to_be_an_images_name_builds_nothing() -> None:
    step = StepPlan(index=0, image="busybox", args=("-c", "python -m pytest"))
    assert using("python", step) == {}


def test_images_to_push_are_built_here_whoever_does_it() -> None:
    make = StepPlan(index=0, image="busybox", script="#!/bin/sh\nmake image\n")
    assert using("r/app:v1", make, images=("r/app:v1",)) == {"r/app:v1": 0}


def read(folder: Path) -> bytes:
    return read_output(FakeEngine(), "none", folder=str(folder), volume="none", labels={})


def test_only_the_beginning_of_an_output_is_read(tmp_path: Path) -> None:
    (tmp_path / "output").write_bytes(b"x" * 60_000)
    assert read(tmp_path) == b"x" * OUTPUT_LIMIT


def test_no_output_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path) == b""


@pytest.mark.parametrize("make", ["folder", "link", "pipe"])
def test_nothing_but_a_file_is_read(tmp_path: Path, make: str) -> None:
    """What stands there is the step's: it must not lead out of its volume, nor hang us."""
    engine = FakeEngine(["busybox"])
    output = tmp_path / "output"
    if make == "folder":
        output.mkdir()
    elif make == "link":
        output.symlink_to("/etc/passwd")
    else:
        os.mkfifo(output)
    from buildrunner.containers.protocol import ContainerSpec

    container = engine.create_container(ContainerSpec(image="busybox"))
    found = read_output(engine, container, folder=str(tmp_path), volume="none", labels={})
    assert found == b""
