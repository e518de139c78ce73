"""Events of a running build: one stream of small, frozen, JSON-able values.

Order: ``BuildStarted``; per phase ``PhaseStarted`` .. ``PhaseFinished`` (SETUPBUILD and FETCHSOURCE
overlap); per step ``StepStarted`` .. ``StepFinished``; ``BuildFinished`` last. All events come from
one thread (the engine's loop), so a listener needs no lock. A slow listener may drop
``TransferMoved``, but no other event. Log text is not an event: it goes to the `LogSink`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Union

import msgspec

from buildrunner.engine.deployments import Deployment


class _Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", rename="camel"):
    at: datetime


class BuildStarted(_Event, frozen=True, tag="buildStarted"):
    """The build runs: Status WORKING."""

    build_id: str
    steps: int


class PhaseStarted(_Event, frozen=True, tag="phaseStarted"):
    """``phase`` is SETUPBUILD, FETCHSOURCE, BUILD or PUSH (the keys of ``Build.timing``)."""

    phase: str


class PhaseFinished(_Event, frozen=True, tag="phaseFinished"):
    """The phase has ended, in success or failure."""

    phase: str


class SourceFetched(_Event, frozen=True, tag="sourceFetched"):
    """The workspace is filled: number of files and bytes, and the method (``overlay``, ...)."""

    files: int
    size_bytes: int
    way: str


class StepStarted(_Event, frozen=True, tag="stepStarted"):
    """The step begins.

    Attributes:
        pulls: whether its image is being pulled. Then ``imageReady`` follows before its container
            starts.
    """

    step: int
    pulls: bool = False


class PullStarted(_Event, frozen=True, tag="pullStarted"):
    """The pull of an image begins, for one step, or as a prefetch for several."""

    image: str
    steps: tuple[int, ...]


class TransferMoved(_Event, frozen=True, tag="transferMoved"):
    """A transfer moved on.

    Attributes:
        direction: ``pull`` or ``push`` of an image, ``fetch`` of the source, ``upload`` of a file.
        image: the image, or the URL of the object.
        current_bytes, total_bytes: bytes of the file, or of all layers whose size is known.
        status: the engine's own term for the current work.
    """

    direction: str
    image: str
    current_bytes: int
    total_bytes: int
    status: str = ""


class PullFinished(_Event, frozen=True, tag="pullFinished"):
    """The pull of an image has ended; ``error`` is empty on success."""

    image: str
    digest: str = ""
    error: str = ""


class ImageReady(_Event, frozen=True, tag="imageReady"):
    """The pull that a step waited for has ended, and its container may start from now on."""

    step: int


class StepRunning(_Event, frozen=True, tag="stepRunning"):
    """The step's container has started."""

    step: int


class StepFinished(_Event, frozen=True, tag="stepFinished"):
    """A step ended.

    Attributes:
        status: SUCCESS, FAILURE, TIMEOUT or CANCELLED.
        exit_code: None when no container ended by itself.
        oom_killed: the kernel killed the step for lack of memory.
        forgiven: the step failed, and the build continues.
        error: one sentence unless the status is SUCCESS; else empty.
        pull_s, start_s, run_s: seconds of the pull, the start and the run.
        image_digest: digest of the step's image; empty if unknown.
        output: the content of ``$BUILDER_OUTPUT/output`` (at most 51,200 bytes).
        last_lines: the end of the output of a failed step (masked, at most 20 lines).
        deployments: the deployments that the step reported. Without a report, those that the
            commands of a successful step suggest.
    """

    step: int
    status: str
    exit_code: int | None = None
    oom_killed: bool = False
    forgiven: bool = False
    error: str = ""
    pull_s: float = 0.0
    start_s: float = 0.0
    run_s: float = 0.0
    image_digest: str = ""
    output: bytes = b""
    last_lines: tuple[str, ...] = ()
    deployments: tuple[Deployment, ...] = ()


class PushStarted(_Event, frozen=True, tag="pushStarted"):
    """An image's push begins (attempt counts from 1)."""

    image: str
    attempt: int = 1


class ImagePushed(_Event, frozen=True, tag="imagePushed"):
    """A registry confirmed one name of an image."""

    name: str
    digest: str
    size_bytes: int
    layers_pushed: int
    layers_reused: int
    push_s: float


class Warned(_Event, frozen=True, tag="warning"):
    """A warning for the user that does not fail the build."""

    text: str


class BuildFinished(_Event, frozen=True, tag="buildFinished"):
    """The build's end. ``status`` is a Build.Status name, ``failure_type`` a FailureType name.

    ``error`` is the sentence of the log's ``ERROR:`` line; empty on SUCCESS. ``stopped_by`` says
    which user or signal cancelled the build, or which timeout it exceeded.
    """

    status: str
    error: str = ""
    stopped_by: str = ""
    failure_type: str = ""
    failing_step: int | None = None


BuildEvent = Union[  # noqa: UP007  (msgspec needs the union as a value)
    BuildStarted,
    PhaseStarted,
    PhaseFinished,
    SourceFetched,
    StepStarted,
    PullStarted,
    TransferMoved,
    PullFinished,
    ImageReady,
    StepRunning,
    StepFinished,
    PushStarted,
    ImagePushed,
    Warned,
    BuildFinished,
]
