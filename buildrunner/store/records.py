"""The Build resource of a running build: updated by events, filled with results, and stored."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from msgspec.structs import replace

from buildrunner.engine.events import (
    BuildEvent,
    BuildStarted,
    ImageReady,
    StepFinished,
    StepStarted,
)
from buildrunner.engine.outcome import BuildOutcome, Span, StepOutcome
from buildrunner.errors import StoreError
from buildrunner.plan.pinned_images import Rollback
from buildrunner.spec.model.build import Build, BuildStep, Status
from buildrunner.spec.model.message import TimeSpan
from buildrunner.spec.model.results import (
    Artifacts,
    BuiltImage,
    FailureInfo,
    FailureType,
    FileHashes,
    Hash,
    HashType,
    Priority,
    Results,
    UploadedArtifact,
    UploadedGoModule,
    UploadedMavenArtifact,
    UploadedNpmPackage,
    UploadedPythonPackage,
    Warning_,
)
from buildrunner.store.build_store import BuildStore, Document
from buildrunner.store.model.builds import CANCELLED_BY, LOST_WORKER, WAITS_FOR
from buildrunner.store.model.deployments import RecordedDeployment, recorded

_UPLOADED: dict[str, tuple[str, type[UploadedArtifact], HashType]] = {
    "python": ("python_packages", UploadedPythonPackage, HashType.SHA256),
    "maven": ("maven_artifacts", UploadedMavenArtifact, HashType.SHA256),
    "npm": ("npm_packages", UploadedNpmPackage, HashType.SHA256),
    "go": ("go_modules", UploadedGoModule, HashType.GO_MODULE_H1),
}


def apply_outcome(build: Build, outcome: BuildOutcome) -> Build:
    """Return the finished resource: ``build`` with all output fields of the run.

    Source: semantics 1.1 (timing has a key for each phase that existed), 1.10, 5.10 (outputs are
    absent until one step writes one), 6.4; a forgiven failure is also a warning (O-19).
    """
    by_index = {step.index: step for step in outcome.steps}
    return replace(
        build,
        status=outcome.status,
        status_detail=outcome.stopped_by or outcome.error,
        start_time=outcome.started_at,
        finish_time=outcome.finished_at,
        steps=tuple(
            _finished_step(step, by_index.get(index)) for index, step in enumerate(build.steps)
        ),
        artifacts=_artifacts(build, outcome),
        source_provenance=outcome.provenance or build.source_provenance,
        results=_results(len(build.steps), by_index, outcome),
        timing={phase: _time_span(span) for phase, span in outcome.phases.items()},
        failure_info=_failure_info(outcome),
        warnings=build.warnings + _warnings(outcome),
    )


def _finished_step(step: BuildStep, outcome: StepOutcome | None) -> BuildStep:
    if outcome is None:
        return step
    return replace(
        step,
        status=outcome.status,
        exit_code=outcome.exit_code or 0,
        timing=_time_span(outcome.timing) if outcome.timing else None,
        pull_timing=_time_span(outcome.pull_timing) if outcome.pull_timing else None,
    )


def _results(count: int, steps: Mapping[int, StepOutcome], outcome: BuildOutcome) -> Results:
    images = tuple(steps[index].image_digest if index in steps else "" for index in range(count))
    outputs = tuple(steps[index].output if index in steps else b"" for index in range(count))
    return Results(
        images=tuple(
            BuiltImage(name=image.name, digest=image.digest, push_timing=_time_span(image.timing))
            for image in outcome.images
        ),
        build_step_images=images,
        build_step_outputs=outputs if any(outputs) else (),
        **_uploaded(outcome),
    )


def _artifacts(build: Build, outcome: BuildOutcome) -> Artifacts | None:
    artifacts = build.artifacts
    if artifacts is None or artifacts.objects is None or outcome.objects is None:
        return artifacts
    timing = _time_span(outcome.objects.timing)
    return replace(artifacts, objects=replace(artifacts.objects, timing=timing))


def _uploaded(outcome: BuildOutcome) -> dict[str, Any]:
    """Return results of objects and packages; ``artifactTiming`` spans both."""
    fields = _published(outcome)
    objects = outcome.objects
    if objects is not None:
        last = fields["artifact_timing"].end_time if fields else objects.timing.end
        fields["artifact_timing"] = TimeSpan(start_time=objects.timing.start, end_time=last)
        fields["artifact_manifest"] = objects.manifest_url
        fields["num_artifacts"] = objects.count
    return fields


def _published(outcome: BuildOutcome) -> dict[str, Any]:
    if not outcome.packages:
        return {}
    first, last = outcome.packages[0].timing, outcome.packages[-1].timing
    fields: dict[str, Any] = {
        "artifact_timing": TimeSpan(start_time=first.start, end_time=last.end)
    }
    for package in outcome.packages:
        if package.kind == "generic":  # the published schema has no field for them
            continue
        field, made, hash_type = _UPLOADED[package.kind]
        entry = made(
            uri=package.uri,
            file_hashes=FileHashes(file_hash=(Hash(type=hash_type, value=package.hash),)),
            push_timing=_time_span(package.timing),
        )
        fields[field] = (*fields.get(field, ()), entry)
    return fields


def _failure_info(outcome: BuildOutcome) -> FailureInfo | None:
    if not outcome.failure_detail:
        return None
    kind = outcome.failure_type or FailureType.FAILURE_TYPE_UNSPECIFIED
    return FailureInfo(type=kind, detail=outcome.failure_detail)


def _warnings(outcome: BuildOutcome) -> tuple[Warning_, ...]:
    return tuple(Warning_(text=text, priority=Priority.WARNING) for text in outcome.warnings)


def _time_span(span: Span) -> TimeSpan:
    return TimeSpan(start_time=span.start, end_time=span.end)


class BuildRecord:
    """Applies events to the Build resource. Used by one thread; snapshots are immutable.

    Args:
        build: the requested build, substitutions made, with id and create time.
        left_out: indexes of the steps that the build does not run. They have no status.
    """

    def __init__(self, build: Build, left_out: Collection[int] = ()) -> None:
        self._build = replace(build, status=Status.QUEUED, steps=_queued(build, left_out))

    @property
    def build(self) -> Build:
        """The present build."""
        return self._build

    def apply(self, event: BuildEvent) -> bool:
        """Apply an event. Returns whether the build should be saved."""
        handler = _HANDLERS.get(type(event))
        if handler is None:
            return False
        self._build = handler(self._build, event)
        return True

    def planned(self, build: Build, left_out: Collection[int]) -> None:
        """Replace the build by the planned one, for a build that began before it was planned."""
        self._build = replace(
            build,
            status=self._build.status,
            create_time=self._build.create_time,
            start_time=self._build.start_time,
            steps=_queued(build, left_out),
        )

    def deployments(self, event: BuildEvent) -> tuple[RecordedDeployment, ...]:
        """Return the deployments that an event of the build reports; mostly none."""
        if not isinstance(event, StepFinished) or not event.deployments:
            return ()
        steps = self._build.steps
        return tuple(
            recorded(
                one,
                project_id=self._build.project_id,
                build_id=self._build.id,
                step=event.step,
                step_id=steps[event.step].id if event.step < len(steps) else "",
                time=event.at,
            )
            for one in event.deployments
        )

    def replace(self, build: Build) -> None:
        """Replace the build, for a change after its outcome."""
        self._build = build

    def finish(self, outcome: BuildOutcome) -> None:
        """Apply the outcome, which has all results and the exact times."""
        self._build = apply_outcome(self._build, outcome)


def _queued(build: Build, left_out: Collection[int]) -> tuple[BuildStep, ...]:
    return tuple(
        step if index in left_out else replace(step, status=Status.QUEUED)
        for index, step in enumerate(build.steps)
    )


def _started(build: Build, event: BuildStarted) -> Build:
    return replace(build, status=Status.WORKING, start_time=event.at)


def _step_started(build: Build, event: StepStarted) -> Build:
    span = TimeSpan(start_time=event.at)
    return _with_step(
        build,
        event.step,
        status=Status.WORKING,
        timing=span,
        pull_timing=span if event.pulls else None,
    )


def _image_ready(build: Build, event: ImageReady) -> Build:
    pulling = build.steps[event.step].pull_timing or TimeSpan(start_time=event.at)
    return _with_step(build, event.step, pull_timing=replace(pulling, end_time=event.at))


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
    ImageReady: _image_ready,
    StepFinished: _step_finished,
}


def _with_step(build: Build, index: int, **changes: object) -> Build:
    steps: list[BuildStep] = list(build.steps)
    steps[index] = replace(steps[index], **changes)
    return replace(build, steps=tuple(steps))


def steps_begun(document: Document, reused: Collection[int] = ()) -> bool:
    """Return whether a step of a build has begun, or may have.

    Args:
        document: the stored build. It is stored before a step begins.
        reused: indexes of steps that an earlier build ran.
    """
    steps: list[Document] = document.get("steps", [])
    return any(
        step.get("status", "QUEUED") not in ("QUEUED", "PENDING", "STATUS_UNKNOWN")
        for index, step in enumerate(steps)
        if index not in reused
    )


def steps_ran(document: Document, reused: Collection[int] = ()) -> bool:
    """Return whether the container of a step was started, or may have been.

    A step whose image is being pulled has no container yet: its document says so until the pull has
    ended, and is stored before the container starts.

    Args:
        document: the stored build.
        reused: see `steps_begun`.
    """
    steps: list[Document] = document.get("steps", [])
    waiting = {index for index, step in enumerate(steps) if _is_pulling(step)}
    return steps_begun(document, waiting.union(reused))


def _is_pulling(step: Document) -> bool:
    pull = step.get("pullTiming", {})
    return step.get("status") == "WORKING" and "startTime" in pull and "endTime" not in pull


def requeued_document(document: Document, reused: Collection[int] = ()) -> Document:
    """Return the document of a build that begins again, with none of its steps begun.

    Args:
        document: the stored build.
        reused: see `steps_begun`; these steps do not change.
    """
    again = {key: value for key, value in document.items() if key not in ("startTime", "timing")}
    if "steps" in again:
        again["steps"] = [
            step if index in reused or "status" not in step else _queued_again(step)
            for index, step in enumerate(again["steps"])
        ]
    return {**again, "status": "QUEUED"}


def _queued_again(step: Document) -> Document:
    kept = {key: value for key, value in step.items() if key not in _OF_A_RUN}
    return {**kept, "status": "QUEUED"}


_OF_A_RUN: Final = ("timing", "pullTiming", "exitCode")

FIRST_ATTEMPT: Final = "first_attempt"
ATTEMPTS: Final = "attempts"
FROM_BUILD: Final = "from_build"
FROM_STEP: Final = "from_step"
REUSED_STEPS: Final = "reused_steps"
ROLLBACK_TO: Final = "rollback_to"
"""Label of a rollback: id of the deployment that the build deploys again."""
ROLLBACK_STEP: Final = "rollback_step"
PINNED_IMAGES: Final = "pinned_images"
# Labels that a later attempt does not inherit.
OF_ONE_ATTEMPT: Final = frozenset(
    {
        *(ATTEMPTS, CANCELLED_BY, FROM_BUILD, FROM_STEP, LOST_WORKER, REUSED_STEPS, WAITS_FOR),
        *(ROLLBACK_TO, ROLLBACK_STEP, PINNED_IMAGES),
    }
)


def reused_steps_of(labels: Mapping[str, str]) -> frozenset[int]:
    """Return the indexes of the steps that a build reuses from the build that it resumes."""
    return frozenset(map(int, filter(None, labels.get(REUSED_STEPS, "").split(","))))


def rollback_of(labels: Mapping[str, str]) -> Rollback | None:
    """Return the step that a build deploys again, with its images; None for other builds."""
    if ROLLBACK_STEP not in labels:
        return None
    images = tuple(labels.get(PINNED_IMAGES, "").split())
    return Rollback(int(labels[ROLLBACK_STEP]), images)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def microseconds(instant: datetime) -> int:
    """Return the microseconds from 1970 to a time with a time zone."""
    return (instant - _EPOCH) // _MICROSECOND


def instant_of(value: int) -> datetime:
    """Return the time at a number of microseconds since 1970."""
    return _EPOCH + timedelta(microseconds=value)


def parse_instant(text: str) -> int:
    """Return the microseconds since 1970 of an RFC 3339 time or date (UTC without an offset).

    Raises:
        ValueError: the text is neither a time nor a date.
    """
    instant = datetime.fromisoformat(text)
    return microseconds(instant if instant.tzinfo else instant.replace(tzinfo=UTC))


# Opening a database takes processor time that the start of the first container needs.
_WRITE_DELAY_S = 2.0
_PAUSE_S = 0.05


class BuildWriter:
    """Writes snapshots of one build in a separate thread.

    Of several snapshots that wait, only the newest is written.

    Args:
        open_store: opens the store; called in that thread.
        encode: returns the document of a build; called in that thread.
        owner: the process that runs the build, from `process_owner.this_process`.
    """

    def __init__(
        self,
        open_store: Callable[[], BuildStore],
        encode: Callable[[Build], Document],
        *,
        owner: str,
    ) -> None:
        self._open_store = open_store
        self._encode = encode
        self._owner = owner
        self._waiting: Build | None = None
        self._deployed: list[RecordedDeployment] = []
        self._begun = False
        self._closing = False
        self._changed = threading.Condition()
        self._error: StoreError | None = None
        self._thread = threading.Thread(target=self._run, name="build-writer", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """Begin to write. Call it when the first step is starting: this process is idle then.

        Without this call, the thread begins to write two seconds after its start.
        """
        if not self._begun:
            with self._changed:
                self._begun = True
                self._changed.notify()

    def save(self, build: Build) -> None:
        """Queue this snapshot to be written. Never blocks."""
        with self._changed:
            self._waiting = build
            self._changed.notify()

    def add_deployments(self, made: Sequence[RecordedDeployment]) -> None:
        """Record these deployments with the next snapshot. Never blocks."""
        with self._changed:
            self._deployed += made

    def close(self) -> None:
        """Return once the last snapshot is written. Idempotent.

        Raises:
            StoreError: the store could not be opened, or a snapshot could not be written.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._begun or self._closing, _WRITE_DELAY_S)
            self._changed.wait_for(lambda: self._closing, _PAUSE_S)
        try:
            store = self._open_store()
        except StoreError as error:
            self._error = error
            return
        created = False
        while (build := self._next()) is not None:
            try:
                document = self._encode(build)
                if created:
                    store.update(document)
                else:
                    store.create(document, owner=self._owner)
                    created = True
                if self._deployed:
                    with self._changed:
                        deployed, self._deployed = self._deployed, []
                    store.record_deployments(deployed)
            except StoreError as error:
                self._error = error
        store.close()

    def _next(self) -> Build | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closing)
            build, self._waiting = self._waiting, None
            return build
