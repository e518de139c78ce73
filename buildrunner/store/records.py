"""A build as it is kept while it runs: a Build that events and the outcome bring up to date."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from msgspec.structs import replace

from buildrunner.engine.events import BuildEvent, BuildStarted, StepFinished, StepStarted
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.spec.model.build import Build, BuildStep, Status
from buildrunner.spec.model.message import TimeSpan
from buildrunner.store.model.builds import CANCELLED_BY


class BuildRecord:
    """Folds what happens into the Build resource. Used by one thread; snapshots are frozen.

    Args:
        build: the build as it was asked for, substitutions made, with id and create time.
        left_out: indexes of the steps that the build does not run. They have no status.
    """

    def __init__(self, build: Build, left_out: Collection[int] = ()) -> None:
        self._build = replace(build, status=Status.QUEUED, steps=_queued(build, left_out))

    @property
    def build(self) -> Build:
        """The build as of now."""
        return self._build

    def apply(self, event: BuildEvent) -> bool:
        """Take an event; whether it is worth saving the build for."""
        handler = _HANDLERS.get(type(event))
        if handler is None:
            return False
        self._build = handler(self._build, event)
        return True

    def planned(self, build: Build, left_out: Collection[int]) -> None:
        """Take the build as it was planned, if it began before there was a plan."""
        self._build = replace(
            build,
            status=self._build.status,
            create_time=self._build.create_time,
            start_time=self._build.start_time,
            steps=_queued(build, left_out),
        )

    def replace(self, build: Build) -> None:
        """Take what came of the build after its outcome."""
        self._build = build

    def finish(self, outcome: BuildOutcome) -> None:
        """Take the outcome: it knows all times and results exactly."""
        from buildrunner.engine.results import apply_outcome

        self._build = apply_outcome(self._build, outcome)


def _queued(build: Build, left_out: Collection[int]) -> tuple[BuildStep, ...]:
    return tuple(
        step if index in left_out else replace(step, status=Status.QUEUED)
        for index, step in enumerate(build.steps)
    )


def _started(build: Build, event: BuildStarted) -> Build:
    return replace(build, status=Status.WORKING, start_time=event.at)


def _step_started(build: Build, event: StepStarted) -> Build:
    return _with_step(
        build, event.step, status=Status.WORKING, timing=TimeSpan(start_time=event.at)
    )


def _step_finished(build: Build, event: StepFinished) -> Build:
    begun = build.steps[event.step].timing
    return _with_step(
        build,
        event.step,
        status=Status[event.status],
        exit_code=event.exit_code or 0,
        timing=TimeSpan(start_time=begun.start_time if begun else None, end_time=event.at),
    )


_HANDLERS: dict[type, Callable[[Build, Any], Build]] = {
    BuildStarted: _started,
    StepStarted: _step_started,
    StepFinished: _step_finished,
}


def _with_step(build: Build, index: int, **changes: object) -> Build:
    steps: list[BuildStep] = list(build.steps)
    steps[index] = replace(steps[index], **changes)
    return replace(build, steps=tuple(steps))


FIRST_ATTEMPT: Final = "first_attempt"
ATTEMPTS: Final = "attempts"
FROM_BUILD: Final = "from_build"
FROM_STEP: Final = "from_step"
REUSED_STEPS: Final = "reused_steps"
# A later attempt does not inherit them.
OF_ONE_ATTEMPT: Final = frozenset({ATTEMPTS, CANCELLED_BY, FROM_BUILD, FROM_STEP, REUSED_STEPS})


def reused_steps_of(labels: Mapping[str, str]) -> frozenset[int]:
    """Return the indexes of the steps that a build reuses of the build it resumes."""
    return frozenset(map(int, filter(None, labels.get(REUSED_STEPS, "").split(","))))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(instant: datetime) -> int:
    """Microseconds from 1970 to an aware instant."""
    return (instant - _EPOCH) // _MICROSECOND


def instant_of(value: int) -> datetime:
    """The instant of that many microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=value)


def parse_instant(text: str) -> int:
    """Microseconds since 1970 of an RFC 3339 time or date; without an offset it is UTC.

    Raises:
        ValueError: it is neither.
    """
    instant = datetime.fromisoformat(text)
    return microseconds(instant if instant.tzinfo else instant.replace(tzinfo=UTC))
