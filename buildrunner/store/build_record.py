"""A build as it is kept while it runs: a Build that events and the outcome bring up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from buildrunner.engine.events import BuildStarted, StepFinished, StepStarted
from buildrunner.spec.model import BuildStep, Status, TimeSpan

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.engine.events import BuildEvent
    from buildrunner.engine.outcome import BuildOutcome, Span
    from buildrunner.spec.model import Build
    from buildrunner.spec.model_results import FailureInfo, Results


class BuildRecord:
    """Folds what happens into the Build resource. Used by one thread; snapshots are frozen.

    Args:
        build: the build as it was asked for, substitutions made, with id and create time.
    """

    def __init__(self, build: Build) -> None:
        steps = tuple(replace(step, status=Status.QUEUED) for step in build.steps)
        self._build = replace(build, status=Status.QUEUED, steps=steps)

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

    def finish(self, outcome: BuildOutcome) -> None:
        """Take the outcome: it knows all times and results exactly."""
        build = self._build
        self._build = replace(
            build,
            status=outcome.status,
            status_detail=outcome.error,
            start_time=outcome.started_at,
            finish_time=outcome.finished_at,
            steps=tuple(
                replace(
                    step,
                    status=ended.status,
                    exit_code=ended.exit_code or 0,
                    timing=_time_span(ended.timing),
                    pull_timing=_time_span(ended.pull_timing),
                )
                for step, ended in zip(build.steps, outcome.steps, strict=True)
            ),
            timing={name: _span(span) for name, span in outcome.phases.items()},
            results=_results(outcome),
            failure_info=_failure_info(outcome),
            warnings=(*build.warnings, *_warnings(outcome)),
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


def _results(outcome: BuildOutcome) -> Results:
    from buildrunner.spec.model_results import BuiltImage, Results

    return Results(
        images=tuple(
            BuiltImage(name=image.name, digest=image.digest, push_timing=_span(image.timing))
            for image in outcome.images
        ),
        build_step_images=outcome.build_step_images,
        build_step_outputs=outcome.build_step_outputs,
    )


def _failure_info(outcome: BuildOutcome) -> FailureInfo | None:
    if outcome.failure_type is None:
        return None
    from buildrunner.spec.model_results import FailureInfo

    return FailureInfo(type=outcome.failure_type, detail=outcome.failure_detail)


def _warnings(outcome: BuildOutcome) -> tuple[Any, ...]:
    if not outcome.warnings:
        return ()
    from buildrunner.spec.model_results import Priority, Warning_

    return tuple(Warning_(text=text, priority=Priority.WARNING) for text in outcome.warnings)


def _span(span: Span) -> TimeSpan:
    return TimeSpan(start_time=span.start, end_time=span.end)


def _time_span(span: Span | None) -> TimeSpan | None:
    return None if span is None else _span(span)
