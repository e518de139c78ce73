"""The line at the bottom of the terminal."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.engine import events
from buildrunner.logs.console.outputs import graph_columns, status_line
from buildrunner.logs.console.wording import Look
from buildrunner.plan.build_plan import BuildPlan, StepPlan
from buildrunner.plan.drawing import display_width
from tests.unit.logs.builds import at, diamond, ended, running, started, view_of

PLAIN = Look(colour=False, live=True, unicode=True)
ASCII = Look(colour=False, live=True, unicode=False)
COLOURED = Look(colour=True, live=True, unicode=True)


def test_columns_are_what_can_run_at_the_same_time():
    assert graph_columns(diamond()) == [[0], [1, 2], [3]]


def test_it_shows_the_graph_the_count_the_time_and_what_runs():
    view = view_of(
        diamond(), started(0, 0), ended(0, 5), started(1, 5), running(1, 6), started(2, 5)
    )
    assert status_line(view, at(17), 100, PLAIN) == "✔─◐◌─○  1/4  0:17  lint 12s, test 12s"


def test_a_part_of_a_build_is_drawn_without_the_steps_that_are_left_out():
    steps = (StepPlan(index=4, image="a"), StepPlan(index=7, image="a", depends_on=(0,)))
    view = view_of(BuildPlan(build_id="b", project_id="p", steps=steps), started(4, 0), ended(4, 5))
    assert status_line(view, at(5), 100, PLAIN) == "✔─○  1/2  0:05"


def test_it_does_without_unicode():
    view = view_of(diamond(), started(0, 0), running(0, 0))
    assert status_line(view, at(1), 100, ASCII) == ">-..-.  0/4  0:01  deps 1s"


def test_pulls_show_how_far_they_are():
    view = view_of(
        diamond(),
        events.PullStarted(at=at(0), image="eu.gcr.io/p/python:3.12", steps=(0,)),
        events.TransferMoved(
            at=at(1),
            direction="pull",
            image="eu.gcr.io/p/python:3.12",
            current_bytes=9 * 2**20,
            total_bytes=20 * 2**20,
        ),
    )
    assert "pull python:3.12 45% of 20.0 MiB" in status_line(view, at(2), 100, PLAIN)
    view.apply(events.PullFinished(at=at(3), image="eu.gcr.io/p/python:3.12"))
    assert "pull" not in status_line(view, at(3), 100, PLAIN)


def test_the_end_of_a_forgiven_step_is_marked_as_such():
    view = view_of(diamond(), started(0, 0), ended(0, 1, "FAILURE", exit_code=1, forgiven=True))
    assert status_line(view, at(1), 100, PLAIN).startswith("!─")


def test_many_steps_are_counted():
    steps = tuple(StepPlan(index=n, image="i") for n in range(300))
    plan = BuildPlan(build_id="b", project_id="p", steps=steps)
    view = view_of(plan, *(started(n, 0) for n in range(60)), *(ended(n, 1) for n in range(50)))
    assert status_line(view, at(1), 200, PLAIN).startswith("✔50 ◌10 ○240   50/300")
    assert "+6" in status_line(view, at(1), 200, PLAIN)


@pytest.mark.parametrize("look", [PLAIN, ASCII, COLOURED])
@given(width=st.integers(1, 80), name=st.text(min_size=1, max_size=30))
def test_it_never_grows_wider_than_the_terminal(look, width, name):
    steps = (StepPlan(index=0, id=name, image=name),)
    view = view_of(BuildPlan(build_id="b", project_id="p", steps=steps), started(0, 0))
    line = re.sub(r"\x1b\[[0-9;]*m", "", status_line(view, at(1), width, look))
    assert display_width(line) <= width


def test_wide_characters_count_twice():
    assert display_width("日本") == 4
    assert display_width("e\u0301") == 1
