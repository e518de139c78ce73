"""The outcome of a build and of its steps, and the events that announce them.

The functions that return a `Decision` write the build's ``ERROR:`` line; `step_run.StepVerdict`
writes the error of a step. A resumed build restores the outcomes of its steps from the events.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import msgspec

from buildrunner.engine.deployments import Deployment
from buildrunner.engine.events import BuildFinished, StepFinished
from buildrunner.errors import (
    EXIT_BUILD_FAILED,
    AttestationError,
    BuildrunnerError,
    ConfigError,
    EngineUnavailable,
    ImagePushError,
    PackageError,
    SourceError,
    UploadError,
    UsageError,
)
from buildrunner.plan.build_plan import StepPlan
from buildrunner.spec.model.build import Status
from buildrunner.spec.model.results import FailureType, SourceProvenance


class Span(msgspec.Struct, frozen=True):
    """A span of time. ``end`` is None until the span has ended."""

    start: datetime
    end: datetime | None = None


class StepOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one step.

    Attributes:
        index: index of the step in the config.
        status: SUCCESS, FAILURE, TIMEOUT, CANCELLED, or QUEUED if the step never started.
        exit_code: None if no container of the step ended by itself.
        oom_killed: the kernel killed the step for lack of memory.
        forgiven: the step failed, and the build continues (``allowFailure``).
        error: one sentence without the step's name; empty on SUCCESS and QUEUED.
        infrastructure: the step failed because the engine broke.
        timing: from the start of the step to its end; None if it never started.
        pull_timing: the pull of its image; None if it never started.
        start_s, run_s: seconds from the image to the started container, and from there to its end.
        image_digest: digest of the image that the step ran; empty if unknown.
        output: content of ``$BUILDER_OUTPUT/output``, at most 51,200 bytes.
        last_lines: the end of the step's log; empty unless the step failed.
        deployments: the deployments that the step reported. Without a report, those that the
            commands of a successful step suggest.
    """

    index: int
    status: Status = Status.QUEUED
    exit_code: int | None = None
    oom_killed: bool = False
    forgiven: bool = False
    error: str = ""
    infrastructure: bool = False
    timing: Span | None = None
    pull_timing: Span | None = None
    start_s: float = 0.0
    run_s: float = 0.0
    image_digest: str = ""
    output: bytes = b""
    last_lines: tuple[str, ...] = ()
    deployments: tuple[Deployment, ...] = ()


class PushedName(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``results.images``."""

    name: str
    digest: str
    timing: Span
    size_bytes: int = 0
    layers_pushed: int = 0
    layers_reused: int = 0


class PublishedPackage(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of ``results.pythonPackages``, ``mavenArtifacts``, ``npmPackages``, ``goModules``.

    Attributes:
        kind: ``python``, ``maven``, ``npm`` or ``go``.
        uri: address of the published package.
        hash: SHA-256 of the file; for a Go module, of its list of files (``h1``).
        timing: time from the first byte to the last answer.
    """

    kind: str
    uri: str
    hash: bytes
    timing: Span


class UploadedFile(msgspec.Struct, frozen=True):
    """One file of ``artifacts.objects``: its URL with the generation, and its SHA-256 in hex."""

    url: str
    sha256: str


class UploadedObjects(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of ``artifacts.objects``.

    Attributes:
        manifest_url: URL of the list of files, without generation.
        count: number of uploaded files, without the list.
        timing: the whole upload.
        files: the uploaded files, in order.
    """

    manifest_url: str
    count: int
    timing: Span
    files: tuple[UploadedFile, ...] = ()


class BuildOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a build.

    Attributes:
        status: a final status.
        error: the sentence of the log's ``ERROR:`` line; empty on SUCCESS.
        stopped_by: the origin of the cancel, or the timeout that the build exceeded; empty for
            other ends. ``error`` has Cloud Build's own words for these, which name neither.
        failure_type: FailureInfo.type; None unless FAILURE, or if no type fits.
        failure_detail: FailureInfo.detail; empty unless FAILURE.
        failing_step: index of the step that failed the build; None if no step did.
        started_at, finished_at: span of the whole run.
        steps: one for each step, by index.
        phases: keys of Build.timing (SETUPBUILD, FETCHSOURCE, BUILD, PUSH) with their spans.
        images: ``results.images`` in order.
        packages: the published packages, in order.
        objects: the upload of ``artifacts.objects``; None without one.
        provenance: the exact source of the build; None for a folder of this machine.
        attestations: signed statements about the published artifacts, each a line of JSON.
        warnings: problems that did not fail the build, as sentences for users.
    """

    status: Status
    started_at: datetime
    finished_at: datetime
    error: str = ""
    stopped_by: str = ""
    failure_type: FailureType | None = None
    failure_detail: str = ""
    failing_step: int | None = None
    steps: tuple[StepOutcome, ...] = ()
    phases: dict[str, Span] = {}
    images: tuple[PushedName, ...] = ()
    packages: tuple[PublishedPackage, ...] = ()
    objects: UploadedObjects | None = None
    provenance: SourceProvenance | None = None
    attestations: tuple[bytes, ...] = ()
    warnings: tuple[str, ...] = ()


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a build ends. The first decision counts.

    Attributes:
        status: the build's final status.
        error: the sentence after ``ERROR:`` in the log; empty on SUCCESS.
        failure_type: FailureInfo.type; None unless FAILURE, or if no type fits.
        detail: FailureInfo.detail; empty unless FAILURE.
        failing_step: index of the step that failed the build; None if no step did.
    """

    status: Status
    error: str = ""
    failure_type: FailureType | None = None
    detail: str = ""
    failing_step: int | None = None

    @property
    def word(self) -> str:
        """Return the log's last phase word. Source: semantics 5.11, rule 2."""
        match self.status:
            case Status.SUCCESS:
                return "DONE"
            case Status.TIMEOUT | Status.CANCELLED:
                return self.status.name
            case _:
                return "ERROR"


SUCCEEDED = Decision(status=Status.SUCCESS)
CANCELLED = Decision(status=Status.CANCELLED, error="context canceled")
TIMED_OUT = Decision(status=Status.TIMEOUT, error="context deadline exceeded")


def stopped_by(decision: Decision, cancel_reason: str, timeout_s: float) -> str:
    """Return `BuildOutcome.stopped_by` for a decision."""
    match decision.status:
        case Status.CANCELLED:
            return cancel_reason
        case Status.TIMEOUT:
            return f"the build took longer than its timeout of {timeout_s:g}s"
        case _:
            return ""


def failed_step(step: StepPlan, outcome: StepOutcome) -> Decision:
    """Decide for a step that failed and is not forgiven. Source: semantics 1.12, 5.7, 5.8, O-8."""
    if outcome.error.startswith("error pulling"):
        error = outcome.error
    else:
        error = f'build step {step.index} "{step.image}" failed: {outcome.error}'
    if outcome.infrastructure:
        return Decision(status=Status.INTERNAL_ERROR, error=error, failing_step=step.index)
    return Decision(
        status=Status.FAILURE,
        error=error,
        failure_type=FailureType.USER_BUILD_STEP,
        detail=f"Build step failure: {error}",
        failing_step=step.index,
    )


def lost_container(step: StepPlan) -> Decision:
    """Decide for a step whose container disappeared after the process of the build had died."""
    error = (
        f'build step {step.index} "{step.image}" failed: its container was removed while no '
        "process watched it"
    )
    return Decision(status=Status.INTERNAL_ERROR, error=error, failing_step=step.index)


def text_of(error: Exception) -> str:
    """Return the error's message, followed by its hint if it has one."""
    hint = error.hint if isinstance(error, BuildrunnerError) else ""
    return f"{error}: {hint}" if hint else str(error)


def failed_setup(error: Exception) -> Decision:
    """Decide for an error of network, volumes, secrets or source."""
    text = text_of(error)
    if isinstance(error, SourceError):
        return _failure(text, FailureType.FETCH_SOURCE_FAILED)
    if isinstance(error, EngineUnavailable) or not _is_users_fault(error):
        return Decision(status=Status.INTERNAL_ERROR, error=text)
    return _failure(text, None)


def failed_planning(error: Exception) -> Decision:
    """Decide for a config from the source that is wrong, or that this machine can't run."""
    if isinstance(error, ConfigError | UsageError):
        return _failure(text_of(error), None)
    return failed_setup(error)


def failed_push(error: Exception) -> Decision:
    """Decide for an image, file or package that can't be pushed, published or attested."""
    if isinstance(error, AttestationError):
        return _failure(text_of(error), None)
    if not isinstance(error, ImagePushError | PackageError | UploadError):
        return Decision(status=Status.INTERNAL_ERROR, error=text_of(error))
    refused = error.unauthorized
    return _failure(
        text_of(error),
        FailureType.PUSH_NOT_AUTHORIZED if refused else FailureType.PUSH_FAILED,
    )


def images_not_found(missing: Sequence[str]) -> Decision:
    """Decide for images to push that no step built. Source: semantics 1.12 and 5.11, rule 7."""
    listed = ", ".join(f'"{name}"' for name in missing)
    return Decision(
        status=Status.FAILURE,
        error=f"failed to find one or more images after execution of build steps: [{listed}]",
        failure_type=FailureType.PUSH_IMAGE_NOT_FOUND,
        detail=f"Image(s) {', '.join(missing)} could not be found. Does a step build and tag it "
        "under exactly this name?",
    )


def log_broken(error: Exception) -> Decision:
    """Decide for a log that can't be written."""
    return _failure(f"the build's log can't be written: {error}", FailureType.LOGGING_FAILURE)


def _failure(error: str, kind: FailureType | None) -> Decision:
    return Decision(status=Status.FAILURE, error=error, failure_type=kind, detail=error)


def _is_users_fault(error: Exception) -> bool:
    return isinstance(error, BuildrunnerError) and error.exit_code == EXIT_BUILD_FAILED


def step_finished(outcome: StepOutcome, at: datetime) -> StepFinished:
    """Return the event of a step's end."""
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
        deployments=outcome.deployments,
    )


def outcome_of(event: StepFinished, began: datetime) -> StepOutcome:
    """Restore the outcome of a step from the event of its end; the step started at ``began``."""
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
        deployments=event.deployments,
    )


def build_finished(outcome: BuildOutcome, at: datetime) -> BuildFinished:
    """Return the event of a build's end."""
    return BuildFinished(
        at=at,
        status=outcome.status.name,
        error=outcome.error,
        stopped_by=outcome.stopped_by,
        failure_type=outcome.failure_type.name if outcome.failure_type else "",
        failing_step=outcome.failing_step,
    )
