"""What came of a step or of a build, as the event that tells of it, and back.

A build that is resumed knows what came of its steps from these events alone.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from buildrunner.engine.events import BuildFinished, StepFinished
from buildrunner.engine.outcome import BuildOutcome, Span, StepOutcome
from buildrunner.spec.model.build import Status


def step_finished(outcome: StepOutcome, at: datetime) -> StepFinished:
    """The event of a step's end."""
    pull = outcome.pull_timing
    pulled_until = pull.end if pull is not None else None
    return StepFinished(
        at=at,
        step=outcome.index,
        status=outcome.status.name,
        exit_code=outcome.exit_code,
        oom_killed=outcome.oom_killed,
        forgiven=outcome.forgiven,
        error=outcome.error,
        pull_s=(pulled_until - pull.start).total_seconds() if pull and pulled_until else 0,
        start_s=outcome.start_s,
        run_s=outcome.run_s,
        image_digest=outcome.image_digest,
        output=outcome.output,
        last_lines=outcome.last_lines,
    )


def outcome_of(event: StepFinished, began: datetime) -> StepOutcome:
    """What an event tells of a step whose turn came at ``began``."""
    pulled = Span(began, began + timedelta(seconds=event.pull_s))
    never_ran = (
        event.status == Status.CANCELLED.name and event.exit_code is None and not event.run_s
    )
    return StepOutcome(
        index=event.step,
        status=Status[event.status],
        exit_code=event.exit_code,
        oom_killed=event.oom_killed,
        forgiven=event.forgiven,
        error=event.error,
        timing=Span(began, event.at),
        pull_timing=None if never_ran else pulled,
        start_s=event.start_s,
        run_s=event.run_s,
        image_digest=event.image_digest,
        output=event.output,
        last_lines=event.last_lines,
    )


def build_finished(outcome: BuildOutcome, at: datetime) -> BuildFinished:
    """The event of a build's end."""
    return BuildFinished(
        at=at,
        status=outcome.status.name,
        error=outcome.error,
        stopped_by=outcome.stopped_by,
        failure_type=outcome.failure_type.name if outcome.failure_type else "",
        failing_step=outcome.failing_step,
    )
