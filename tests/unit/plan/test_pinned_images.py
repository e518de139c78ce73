"""Images by digest in a step that is rolled back to."""

from __future__ import annotations

import pytest

from buildrunner.plan.build_plan import BuildPlan, StepPlan
from buildrunner.plan.pinned_images import is_other, is_pinned, with_pinned_images
from buildrunner.plan.selection import only_step

APP = "registry.example.com:5000/team/app"
PINNED = f"{APP}@sha256:{'1' * 64}"
OTHER = f"{APP}@sha256:{'2' * 64}"


def pinned(**fields: object) -> StepPlan:
    plan = BuildPlan(build_id="b", project_id="p", steps=(StepPlan(index=0, image="i", **fields),))
    return with_pinned_images(plan, [PINNED]).steps[0]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        (APP, PINNED),
        (f"{APP}:v1.2-rc_1", PINNED),
        (f"{APP}:v1@sha256:{'3' * 64}", PINNED),
        (OTHER, PINNED),
        (f"--image={APP}:1", f"--image={PINNED}"),
        (f"a={APP}:1,b={APP}:2", f"a={PINNED},b={PINNED}"),
        (f"'{APP}:1'", f"'{PINNED}'"),
        (f"{APP}-worker:1", f"{APP}-worker:1"),
        (f"{APP}/worker:1", f"{APP}/worker:1"),
        (f"other/{APP}:1", f"other/{APP}:1"),
        ("team/app:1", "team/app:1"),
        ("registry-example.com:5000/team/app:1", "registry-example.com:5000/team/app:1"),
    ],
)
def test_every_reference_to_the_image_becomes_the_pinned_one(argument: str, expected: str) -> None:
    assert pinned(args=("deploy", argument)).args == ("deploy", expected)


def test_scripts_and_variables_are_changed_where_they_name_a_tag() -> None:
    script = f"#!/bin/sh\nkubectl set image deploy/app app={APP}:1\nIMAGE={APP}\n"
    own = "BUILDRUNNER_PINNED_IMAGES=mine"
    step = pinned(script=script, env=(own, f"IMAGE={APP}:1", f"NAME={APP}", f"Z={OTHER}"))
    assert step.script == f"#!/bin/sh\nkubectl set image deploy/app app={PINNED}\nIMAGE={APP}\n"
    assert step.env == (
        f"BUILDRUNNER_PINNED_IMAGES={PINNED}",
        f"IMAGE={PINNED}",
        f"NAME={APP}",
        f"Z={PINNED}",
    )
    assert step.args is None
    assert step.pinned_images == (PINNED,)


def test_without_images_nothing_changes() -> None:
    plan = BuildPlan(build_id="b", project_id="p", steps=(StepPlan(index=0, image="i"),))
    assert with_pinned_images(plan, []) is plan


@pytest.mark.parametrize(
    ("image", "pinned"),
    [
        (PINNED, True),
        (f"{APP}:v1.2_x@sha256:{'2' * 64}", True),
        (f"{APP}:1", False),
        (f"{APP}:$(id)@sha256:{'2' * 64}", False),
        (f"{APP}@sha256:{'2' * 64};id", False),
        (f"-x@sha256:{'2' * 64}", False),
        (f"{APP}@sha256:{'2' * 64}\n", False),
    ],
)
def test_no_text_for_a_shell_is_an_image_by_digest(image: str, pinned: bool) -> None:
    """A record of an earlier version may have one, and a rollback would put it into a script."""
    assert is_pinned(image) is pinned


@pytest.mark.parametrize(
    ("image", "other"),
    [
        (PINNED, False),
        (OTHER, True),
        (f"{APP}:1@sha256:{'2' * 64}", True),
        (f"{APP}:1@sha256:{'1' * 64}", False),
        (f"{APP}:1", False),  # its digest is not known
        (f"{APP}-worker@sha256:{'2' * 64}", False),
    ],
)
def test_another_digest_of_the_repository_is_another_image(image: str, other: bool) -> None:
    assert is_other(image, PINNED) is other


def test_one_step_alone_waits_for_nothing_and_publishes_nothing() -> None:
    steps = (
        StepPlan(index=0, image="a"),
        StepPlan(index=1, image="b", id="deploy", depends_on=(0,)),
        StepPlan(index=2, image="c", depends_on=(1,)),
    )
    plan = BuildPlan(build_id="b", project_id="p", steps=steps, images=("i",), object_paths=("*",))
    part = only_step(plan, 1)
    assert [(step.index, step.depends_on) for step in part.steps] == [(1, ())]
    assert (part.images, part.object_paths, part.packages) == ((), (), ())
