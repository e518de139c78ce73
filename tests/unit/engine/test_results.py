from __future__ import annotations

from datetime import UTC, datetime, timedelta

from buildrunner.engine.outcome import BuildOutcome, PushedName, Span, StepOutcome
from buildrunner.spec.model.build import Build, BuildStep, Status
from buildrunner.spec.model.message import TimeSpan
from buildrunner.spec.model.results import FailureInfo, FailureType, Priority, Warning_
from buildrunner.store.records import apply_outcome

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_a_success_fills_timing_and_results() -> None:
    build = Build(id="b", steps=(BuildStep(name="a"), BuildStep(name="b")), images=("r/x:v1",))
    outcome = BuildOutcome(
        status=Status.SUCCESS,
        started_at=START,
        finished_at=at(9),
        steps=(
            StepOutcome(
                index=0,
                status=Status.SUCCESS,
                exit_code=0,
                timing=Span(at(1), at(3)),
                pull_timing=Span(at(1), at(2)),
                image_digest="sha256:11",
                output=b"out",
            ),
            StepOutcome(
                index=1,
                status=Status.FAILURE,
                exit_code=3,
                forgiven=True,
                timing=Span(at(3), at(5)),
                pull_timing=Span(at(3), at(3)),
            ),
        ),
        phases={"BUILD": Span(at(1), at(5)), "PUSH": Span(at(5), at(9))},
        images=(PushedName(name="r/x:v1", digest="sha256:22", timing=Span(at(5), at(9))),),
        warnings=("step 1 was allowed to fail",),
    )
    done = apply_outcome(build, outcome)
    assert done.status is Status.SUCCESS
    assert (done.start_time, done.finish_time) == (START, at(9))
    assert [step.status for step in done.steps] == [Status.SUCCESS, Status.FAILURE]
    assert [step.exit_code for step in done.steps] == [0, 3]
    assert done.steps[0].timing == TimeSpan(start_time=at(1), end_time=at(3))
    assert done.steps[0].pull_timing == TimeSpan(start_time=at(1), end_time=at(2))
    assert set(done.timing) == {"BUILD", "PUSH"}
    assert done.results is not None
    assert done.results.build_step_images == ("sha256:11", "")
    assert done.results.build_step_outputs == (b"out", b"")
    (image,) = done.results.images
    assert (image.name, image.digest) == ("r/x:v1", "sha256:22")
    assert image.push_timing == TimeSpan(start_time=at(5), end_time=at(9))
    assert done.failure_info is None
    assert done.warnings == (
        Warning_(text="step 1 was allowed to fail", priority=Priority.WARNING),
    )
    assert done.images == build.images


def test_a_failure_says_why_and_what_never_ran_has_no_timing() -> None:
    build = Build(id="b", steps=(BuildStep(name="a"), BuildStep(name="b")))
    outcome = BuildOutcome(
        status=Status.FAILURE,
        started_at=START,
        finished_at=at(2),
        error='build step 0 "a" failed: step exited with non-zero status: 3',
        failure_type=FailureType.USER_BUILD_STEP,
        failure_detail="Build step failure: ...",
        failing_step=0,
        steps=(
            StepOutcome(index=0, status=Status.FAILURE, exit_code=3, timing=Span(START, at(1))),
            StepOutcome(index=1),
        ),
    )
    done = apply_outcome(build, outcome)
    assert done.failure_info == FailureInfo(
        type=FailureType.USER_BUILD_STEP, detail="Build step failure: ..."
    )
    assert done.status_detail == outcome.error
    assert done.steps[1].status is Status.QUEUED
    assert done.steps[1].timing is None
    assert done.results is not None
    assert done.results.build_step_outputs == ()
