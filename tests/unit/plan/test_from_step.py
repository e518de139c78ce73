"""Going on with a build from one of its steps: what is left to run."""

from __future__ import annotations

import pytest

from buildrunner.errors import ConfigError
from buildrunner.plan.selection import reused_steps, without_steps
from buildrunner.spec.model.build import Build, BuildStep


def step(name: str, *wait_for: str) -> BuildStep:
    return BuildStep(name="busybox", id=name, wait_for=wait_for)


def test_what_waited_for_a_reused_step_waits_for_it_no_longer() -> None:
    build = Build(
        steps=(step("a"), step("b", "-"), step("c", "a"), step("d", "a", "b"), step("e")),
        images=("app",),
    )
    left = without_steps(build, {0})
    assert [(one.id, one.wait_for) for one in left.steps] == [
        ("b", ("-",)),
        ("c", ("-",)),
        ("d", ("b",)),
        ("e", ()),
    ]
    assert left.images == ("app",)  # with what is reused the build is whole


def test_a_build_without_a_step_left_is_refused() -> None:
    with pytest.raises(ConfigError, match="no step is left"):
        without_steps(Build(steps=(step("a"),)), {0})


@pytest.mark.parametrize(
    ("statuses", "first", "earlier", "reused"),
    [
        (["SUCCESS", "SUCCESS", "FAILURE", "QUEUED"], 2, (), (0, 1)),
        # A step beside it that was stopped has not done its work.
        (["SUCCESS", "CANCELLED", "FAILURE"], 2, (), (0,)),
        # What comes behind the step runs again though it had succeeded.
        (["SUCCESS", "FAILURE", "SUCCESS"], 1, (), (0,)),
        (["FAILURE"], 0, (), ()),
        # The old build went on itself: its steps are the 1st, 3rd and 4th of the whole build.
        (["SUCCESS", "FAILURE", "QUEUED"], 1, (0, 2), (0, 1, 2)),
    ],
)
def test_what_succeeded_before_the_step_is_reused(
    statuses: list[str], first: int, earlier: tuple[int, ...], reused: tuple[int, ...]
) -> None:
    assert reused_steps(statuses, first, earlier) == reused
