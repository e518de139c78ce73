"""The step graph against its tables, and against a naive scheduler on random graphs."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from buildrunner.plan.build_plan import StepPlan
from buildrunner.plan.step_graph import StepGraph, StopReason
from buildrunner.spec.model.build import Status

S, F, T, C, Q, W = (
    Status.SUCCESS,
    Status.FAILURE,
    Status.TIMEOUT,
    Status.CANCELLED,
    Status.QUEUED,
    Status.WORKING,
)


def graph(*steps):
    """a and b parallel, c waits for both; each argument adds fields to one of them."""
    fields = [*steps, *[{}] * (3 - len(steps))]
    needs = [(), (), (0, 1)]
    return StepGraph(
        [
            StepPlan(index=index, image="busybox", depends_on=needs[index], **fields[index])
            for index in range(3)
        ]
    )


def build_status_of(each):
    """WORKING until the graph is over; then how the steps' part of the build ended."""
    if not each.is_over:
        return W
    return each.stop_reason.value if each.stop_reason else S


def start_all(each):
    for index in each.ready():
        each.start(index)


def run_rest(each):
    while not each.is_over:
        start_all(each)
        for index in each.running:
            each.finish(index, S)


def kill(each):
    for index in each.running:
        each.finish(index, F, exit_code=137)


def test_all_exit_0():
    each = graph()
    assert each.ready() == (0, 1)
    run_rest(each)
    assert (each.statuses, build_status_of(each)) == ((S, S, S), S)


def test_a_exits_1_while_b_runs():
    each = graph()
    start_all(each)
    each.finish(0, F, exit_code=1)
    assert each.ready() == ()
    assert each.running == {1}
    assert build_status_of(each) is W
    kill(each)
    assert (each.statuses, build_status_of(each)) == ((F, C, Q), F)


def test_a_exits_1_with_allow_failure():
    each = graph({"allow_failure": True})
    start_all(each)
    each.finish(0, F, exit_code=1)
    run_rest(each)
    assert (each.statuses, build_status_of(each)) == ((F, S, S), S)
    assert each.is_forgiven(0)


def test_allow_exit_codes_take_precedence_over_allow_failure():
    each = graph({"allow_failure": True, "allow_exit_codes": (1,)})
    start_all(each)
    each.finish(0, F, exit_code=2)
    kill(each)
    assert (each.statuses, build_status_of(each)) == ((F, C, Q), F)
    forgiving = graph({"allow_exit_codes": (1,)})
    start_all(forgiving)
    forgiving.finish(0, F, exit_code=1)
    run_rest(forgiving)
    assert (forgiving.statuses, build_status_of(forgiving)) == ((F, S, S), S)


def test_b_finished_then_a_exits_1():
    each = graph()
    start_all(each)
    each.finish(1, S)
    each.finish(0, F, exit_code=1)
    assert (each.statuses, build_status_of(each)) == ((F, S, Q), F)


@pytest.mark.parametrize(
    ("fields", "build_status"),
    [
        ({}, F),
        ({"allow_failure": True}, S),
        ({"allow_failure": True, "allow_exit_codes": (1,)}, F),
        ({"allow_exit_codes": (1,)}, F),
    ],
)
@pytest.mark.parametrize("status", [T, F])
def test_a_timeout_or_a_failed_pull_is_forgiven_by_allow_failure_only(status, fields, build_status):
    each = graph(fields)
    start_all(each)
    each.finish(0, status)
    if build_status is F:
        kill(each)
        assert each.statuses == (status, C, Q)
    run_rest(each)
    assert build_status_of(each) is build_status


@pytest.mark.parametrize(
    ("reason", "build_status"), [(StopReason.TIMEOUT, T), (StopReason.CANCELLED, C)]
)
def test_a_deadline_or_a_cancel_during_a_and_b(reason, build_status):
    each = graph()
    start_all(each)
    each.stop(reason)
    each.stop(StopReason.FAILURE)
    each.finish(0, S)
    each.finish(1, F, exit_code=143)
    assert (each.statuses, build_status_of(each)) == ((C, C, Q), build_status)
    assert each.stop_reason is reason


def test_a_stop_after_the_end_changes_nothing():
    each = graph()
    run_rest(each)
    each.stop(StopReason.CANCELLED)
    assert build_status_of(each) is S


def test_a_build_where_every_step_was_forgiven_succeeds():
    fields = {"allow_failure": True}
    each = graph(fields, fields, fields)
    while not each.is_over:
        start_all(each)
        for index in each.running:
            each.finish(index, F, exit_code=1)
    assert (each.statuses, build_status_of(each)) == ((F, F, F), S)


def test_impossible_calls_are_refused():
    each = graph()
    with pytest.raises(ValueError, match="can't start"):
        each.start(2)
    with pytest.raises(ValueError, match="not running"):
        each.finish(0, S)
    each.start(0)
    with pytest.raises(ValueError, match="can't start"):
        each.start(0)


@st.composite
def graphs(draw):
    count = draw(st.integers(0, 12))
    return [
        (
            sorted(draw(st.sets(st.integers(0, index - 1)))) if index else [],
            draw(st.booleans()),
            draw(st.sampled_from([(), (1,)])),
            draw(st.sampled_from([0, 0, 0, 1, 2])),
        )
        for index in range(count)
    ]


def naive(steps, order, stop_at):
    """Appendix D, as literally as possible: every pass asks every step anew."""
    state = dict.fromkeys(range(len(steps)), Q)
    done: set[int] = set()
    build = S
    ends = 0
    stopped = False

    def start():
        for index, (needs, *_rest) in enumerate(steps):
            if state[index] is Q and all(need in done for need in needs):
                state[index] = W

    while True:
        if not stopped:
            start()
        running = [index for index in state if state[index] is W]
        if not running:
            return state, build
        if ends == stop_at and not stopped:
            stopped, build = True, C
        index = order.choice(running)
        if stopped:
            state[index] = C
            continue
        ends += 1
        _, allow_failure, codes, code = steps[index]
        state[index] = S if code == 0 else F
        if code == 0 or (code in codes if codes else allow_failure):
            done.add(index)
        else:
            stopped, build = True, F


@given(graphs(), st.integers(0, 2**32), st.integers(0, 20))
def test_random_graphs_run_as_the_naive_scheduler_says(steps, seed, stop_at):
    each = StepGraph(
        [
            StepPlan(
                index=index,
                image="busybox",
                depends_on=tuple(needs),
                allow_failure=allow_failure,
                allow_exit_codes=codes,
            )
            for index, (needs, allow_failure, codes, _) in enumerate(steps)
        ]
    )
    order = random.Random(seed)
    ends = 0
    while True:
        start_all(each)
        running = sorted(each.running)
        if not running:
            break
        if ends == stop_at:
            each.stop(StopReason.CANCELLED)
        index = order.choice(running)
        ends += 1
        code = steps[index][3]
        each.finish(index, F if code else S, exit_code=code)
    expected, build_status = naive(steps, random.Random(seed), stop_at)
    assert dict(enumerate(each.statuses)) == expected
    assert each.is_over
    assert build_status_of(each) is build_status
