"""Running a part of a build."""

from __future__ import annotations

import pytest

from buildrunner.errors import ConfigError
from buildrunner.plan.build_plan import BuildPlan, PackageUpload, StepPlan, VolumeMount
from buildrunner.plan.selection import Selection, select_steps

PLAN = BuildPlan(
    build_id="b",
    project_id="p",
    steps=(
        StepPlan(index=0, id="deps", image="i"),
        StepPlan(index=1, id="test", image="i", depends_on=(0,)),
        StepPlan(index=2, image="i", depends_on=(0,), volumes=(VolumeMount("v", "/v"),)),
        StepPlan(index=3, id="4", image="i", depends_on=(0, 1, 2)),
        StepPlan(index=4, id="push", image="i", depends_on=(3,)),
    ),
    images=("r/app:1",),
    volumes=("v",),
    object_location="gs://b/",
    object_paths=("out/*",),
    packages=(
        PackageUpload(kind="python", repository="https://r/simple", paths=("/workspace/dist/*",)),
    ),
)


def ids(plan):
    return [step.id or "-" for step in plan.steps]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(steps=("test",)), ["test"]),
        (Selection(steps=("2", "deps")), ["deps", "-"]),
        (Selection(first="test"), ["test", "-", "4", "push"]),
        (Selection(last="test"), ["deps", "test"]),
        (Selection(first="test", last="2"), ["test", "-"]),
        (Selection(skip=("test", "2")), ["deps", "4", "push"]),
        (Selection(first="1", skip=("push",)), ["test", "-", "4"]),
        (Selection(steps=("deps", "push"), last="4"), ["deps"]),
        (Selection(steps=("4",)), ["4"]),  # an id wins over an index
    ],
)
def test_what_is_selected(selection, expected):
    assert ids(select_steps(PLAN, selection)) == expected


def test_what_is_left_out_counts_as_done():
    part = select_steps(PLAN, Selection(skip=("test",)))
    assert [step.depends_on for step in part.steps] == [(), (0,), (0, 1), (2,)]


def test_the_steps_of_a_part_keep_their_numbers_in_the_config():
    part = select_steps(PLAN, Selection(first="2", skip=("4",)))
    assert [step.label for step in part.steps] == ["Step #2", 'Step #4 - "push"']
    assert part.names_steps


def test_a_part_of_a_build_publishes_nothing_and_says_so():
    part = select_steps(PLAN, Selection(steps=("test",)))
    assert (part.images, part.object_location, part.object_paths, part.packages) == (
        (),
        "",
        (),
        (),
    )
    assert part.volumes == ()
    assert part.left_out == (
        'Step #0 - "deps"',
        "Step #2",
        'Step #3 - "4"',
        'Step #4 - "push"',
        "push of r/app:1",
        "upload of out/*",
        "publication of python dist/*",
    )


@pytest.mark.parametrize("selection", [Selection(), Selection(first="0"), Selection(last="push")])
def test_all_steps_are_the_whole_build(selection):
    assert select_steps(PLAN, selection) is PLAN


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        (
            Selection(steps=("tset",)),
            '--step: no step has the id or index "tset"; did you mean "test"',
        ),
        (Selection(first="9"), "steps have the indexes 0 to 4 and the ids deps, test, 4, push"),
        (Selection(last="-1"), "--until"),
        (Selection(skip=("٣",)), "--skip"),
        (Selection(skip=("9" * 5000,)), "--skip"),
        (Selection(first="push", last="deps"), "--until deps stands before --from push"),
        (Selection(steps=("deps",), skip=("deps",)), "no step is left to run"),
    ],
)
def test_a_selection_that_makes_no_sense_is_an_error(selection, words):
    with pytest.raises(ConfigError) as caught:
        select_steps(PLAN, selection)
    assert words in str(caught.value)


def test_all_wrong_names_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        select_steps(PLAN, Selection(steps=("x",), first="y", last="z", skip=("w",)))
    assert len(caught.value.problems) == 4
