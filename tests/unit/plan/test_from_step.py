"""Resuming a build from one of its steps: what is left to run."""

from __future__ import annotations

import pytest

from buildrunner.errors import ConfigError
from buildrunner.plan.build_plan import BuildPlan, StepPlan
from buildrunner.plan.selection import reused_steps, without_steps


def plan(*depends_on: tuple[int, ...]) -> BuildPlan:
    steps = tuple(
        StepPlan(index=index, image="busybox", id=f"s{index}", depends_on=before)
        for index, before in enumerate(depends_on)
    )
    return BuildPlan(build_id="b", project_id="p", steps=steps, images=("app",), volumes=("v",))


def test_steps_keep_their_numbers_and_wait_for_no_reused_step() -> None:
    left = without_steps(plan((), (), (0,), (0, 1), (0, 1, 2, 3)), {0})
    assert [(one.label, one.depends_on) for one in left.steps] == [
        ('Step #1 - "s1"', ()),
        ('Step #2 - "s2"', ()),
        ('Step #3 - "s3"', (0,)),
        ('Step #4 - "s4"', (0, 1, 2)),
    ]
    assert (left.images, left.volumes) == (("app",), ("v",))  # with what is reused it is whole


def test_the_last_step_of_several_is_still_named_in_the_log() -> None:
    assert without_steps(plan((), (0,)), {0}).names_steps
    assert not plan(()).names_steps


def test_a_build_without_a_step_left_is_refused() -> None:
    with pytest.raises(ConfigError, match="no step is left"):
        without_steps(plan(()), {0})


@pytest.mark.parametrize(
    ("statuses", "first", "reused"),
    [
        (["SUCCESS", "SUCCESS", "FAILURE", "QUEUED"], 2, (0, 1)),
        # A step beside it that was stopped has not done its work.
        (["SUCCESS", "CANCELLED", "FAILURE"], 2, (0,)),
        # What comes behind the step runs again though it had succeeded.
        (["SUCCESS", "FAILURE", "SUCCESS"], 1, (0,)),
        (["FAILURE"], 0, ()),
    ],
)
def test_what_succeeded_before_the_step_is_reused(
    statuses: list[str], first: int, reused: tuple[int, ...]
) -> None:
    assert reused_steps(statuses, first) == reused
