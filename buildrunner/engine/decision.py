"""How a build ends, in the words of the log and of FailureInfo."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from buildrunner.errors import (
    EXIT_BUILD_FAILED,
    BuildrunnerError,
    ConfigError,
    EngineUnavailable,
    ImagePushError,
    PackageError,
    SourceError,
    UploadError,
    UsageError,
)
from buildrunner.spec.model import Status
from buildrunner.spec.model_results import FailureType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.engine.outcome import StepOutcome
    from buildrunner.plan.build_plan import StepPlan


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a build, decided once.

    Attributes:
        status: the build's final status.
        error: the sentence behind ``ERROR:`` in the log; empty on SUCCESS.
        failure_type: set for FAILURE where a type fits.
        detail: FailureInfo.detail; empty unless FAILURE.
        failing_step: index of the step that decided it.
    """

    status: Status
    error: str = ""
    failure_type: FailureType | None = None
    detail: str = ""
    failing_step: int | None = None

    @property
    def word(self) -> str:
        """The log's last phase word. Source: semantics 5.11, rule 2."""
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


def failed_step(step: StepPlan, outcome: StepOutcome) -> Decision:
    """A step failed and was not forgiven. Source: semantics 1.12, 5.7, 5.8 and O-8."""
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
    """A step ran when the process of the build died, and its container is gone since."""
    error = (
        f'build step {step.index} "{step.image}" failed: somebody removed its container while no '
        "process watched it"
    )
    return Decision(status=Status.INTERNAL_ERROR, error=error, failing_step=step.index)


def text_of(error: Exception) -> str:
    """What is wrong, and what to do about it where the error knows."""
    hint = error.hint if isinstance(error, BuildrunnerError) else ""
    return f"{error}: {hint}" if hint else str(error)


def failed_setup(error: Exception) -> Decision:
    """Network, volumes, secrets or source could not be had."""
    text = text_of(error)
    if isinstance(error, SourceError):
        return _failure(text, FailureType.FETCH_SOURCE_FAILED)
    if isinstance(error, EngineUnavailable) or not _is_users_fault(error):
        return Decision(status=Status.INTERNAL_ERROR, error=text)
    return _failure(text, None)


def failed_planning(error: Exception) -> Decision:
    """The config that came with the source is wrong, or can't be run here."""
    if isinstance(error, ConfigError | UsageError):
        return _failure(text_of(error), None)
    return failed_setup(error)


def failed_push(error: Exception) -> Decision:
    """An image, a file or a package could not be pushed, uploaded or published."""
    if not isinstance(error, ImagePushError | PackageError | UploadError):
        return Decision(status=Status.INTERNAL_ERROR, error=text_of(error))
    refused = error.unauthorized
    return _failure(
        text_of(error),
        FailureType.PUSH_NOT_AUTHORIZED if refused else FailureType.PUSH_FAILED,
    )


def images_not_found(missing: Sequence[str]) -> Decision:
    """Images to push that no step built. Source: semantics 1.12 and 5.11, rule 7."""
    listed = ", ".join(f'"{name}"' for name in missing)
    return Decision(
        status=Status.FAILURE,
        error=f"failed to find one or more images after execution of build steps: [{listed}]",
        failure_type=FailureType.PUSH_IMAGE_NOT_FOUND,
        detail=f"Image(s) {', '.join(missing)} could not be found. Does a step build and tag it "
        "under exactly this name?",
    )


def log_broken(error: Exception) -> Decision:
    """The log can't be written."""
    return _failure(f"the build's log can't be written: {error}", FailureType.LOGGING_FAILURE)


def _failure(error: str, kind: FailureType | None) -> Decision:
    return Decision(status=Status.FAILURE, error=error, failure_type=kind, detail=error)


def _is_users_fault(error: Exception) -> bool:
    return isinstance(error, BuildrunnerError) and error.exit_code == EXIT_BUILD_FAILED
