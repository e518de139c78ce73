"""Events of a running build: one stream of small, frozen, JSON-able values.

Order: ``BuildStarted``; per phase ``PhaseStarted`` .. ``PhaseFinished`` (SETUPBUILD and FETCHSOURCE
overlap); per step ``StepStarted`` .. ``StepFinished``; ``BuildFinished`` last. All events come from
one thread (the engine's loop), so that a listener needs no lock. ``TransferMoved`` may be dropped
by a slow listener, others may not.
Log text is not an event: it goes to the `LogSink`.
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
    """The phase is over, whatever came of it."""

    phase: str


class SourceFetched(_Event, frozen=True, tag="sourceFetched"):
    """The workspace is filled: how many files and bytes, and by which way (``overlay``, ...)."""

    files: int
    size_bytes: int
    way: str


class StepStarted(_Event, frozen=True, tag="stepStarted"):
    """The step's turn has come; its image may still have to be pulled."""

    step: int


class PullStarted(_Event, frozen=True, tag="pullStarted"):
    """An image is being pulled, for one step or ahead of need for several."""

    image: str
    steps: tuple[int, ...]


class TransferMoved(_Event, frozen=True, tag="transferMoved"):
    """A transfer moved on.

    Attributes:
        direction: ``pull`` or ``push`` of an image, ``fetch`` of the source, ``upload`` of a file.
        image: the image, or the URL of the object.
        current_bytes, total_bytes: of all layers whose size is known.
        status: the engine's own word.
    """

    direction: str
    image: str
    current_bytes: int
    total_bytes: int
    status: str = ""


class PullFinished(_Event, frozen=True, tag="pullFinished"):
    """``error`` is empty when the image is here."""

    image: str
    digest: str = ""
    error: str = ""


class StepRunning(_Event, frozen=True, tag="stepRunning"):
    """The step's container has started."""

    step: int


class StepFinished(_Event, frozen=True, tag="stepFinished"):
    """A step ended.

    Attributes:
        status: SUCCESS, FAILURE, TIMEOUT or CANCELLED.
        exit_code: None when no container ended by itself.
        oom_killed: the kernel killed it for lack of memory.
        forgiven: it failed, and the build goes on all the same.
        error: one sentence when it is not SUCCESS; empty otherwise.
        pull_s, start_s, run_s: where the time went.
        image_digest: digest of the image it ran; empty when unknown.
        output: what it wrote to ``$BUILDER_OUTPUT/output`` (at most 51,200 bytes).
        last_lines: the end of its output when it failed (masked, at most 20 lines).
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
    """Something a person should know that does not fail the build."""

    text: str


class BuildFinished(_Event, frozen=True, tag="buildFinished"):
    """The end. ``status`` is a Build.Status name, ``failure_type`` a FailureInfo.FailureType name.

    ``error`` is the sentence of the log's ``ERROR:`` line; empty on SUCCESS. ``stopped_by`` says
    who cancelled the build, or which timeout it exceeded.
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
    StepRunning,
    StepFinished,
    PushStarted,
    ImagePushed,
    Warned,
    BuildFinished,
]
