"""What came of a build: everything that goes into the finished Build resource."""

from __future__ import annotations

from datetime import datetime

import msgspec

from buildrunner.spec.model import Status
from buildrunner.spec.model_results import FailureType, SourceProvenance


class Span(msgspec.Struct, frozen=True):
    """A span of time. ``end`` is None while it lasts."""

    start: datetime
    end: datetime | None = None


class StepOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one step.

    Attributes:
        index: which step.
        status: SUCCESS, FAILURE, TIMEOUT, CANCELLED, or QUEUED when it never started.
        exit_code: None when no container ended by itself.
        oom_killed: the kernel killed it for lack of memory.
        forgiven: it failed, and the build goes on all the same.
        error: one sentence when it failed, without the step's name; empty otherwise.
        infrastructure: it failed because the engine broke, not by its own doing.
        timing: from the step's turn to its end; None when it never started.
        pull_timing: getting its image; None when it never started.
        start_s, run_s: seconds from the image to the started container, and from there to its end.
        image_digest: digest of the image it ran; empty when unknown.
        output: what it wrote to ``$BUILDER_OUTPUT/output``, at most 51,200 bytes.
        last_lines: the end of its log when it failed.
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
        uri: where it is now.
        hash: SHA-256 of the file; for a Go module, of its list of files (``h1``).
        timing: from the first byte to the last answer.
    """

    kind: str
    uri: str
    hash: bytes
    timing: Span


class UploadedObjects(msgspec.Struct, frozen=True, kw_only=True):
    """What came of ``artifacts.objects``.

    Attributes:
        manifest_url: where the list of the files is, without generation.
        count: files uploaded, the list not counted.
        timing: the whole upload.
    """

    manifest_url: str
    count: int
    timing: Span


class BuildOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a build.

    Attributes:
        status: a final status.
        error: the sentence of the log's ``ERROR:`` line; empty on SUCCESS.
        failure_type: what kind of thing failed; None unless FAILURE, and where no type fits.
        failure_detail: FailureInfo.detail; empty unless FAILURE.
        failing_step: the step that decided it, None when it was none of them.
        started_at, finished_at: span of the whole run.
        steps: one for each step, by index.
        phases: keys of Build.timing (SETUPBUILD, FETCHSOURCE, BUILD, PUSH) with their spans.
        images: ``results.images`` in order.
        packages: what was published, in order.
        objects: the upload of ``artifacts.objects``; None when there was none.
        provenance: exactly which source was built; None for a folder of this machine.
        warnings: what a person should know that did not fail the build.
    """

    status: Status
    started_at: datetime
    finished_at: datetime
    error: str = ""
    failure_type: FailureType | None = None
    failure_detail: str = ""
    failing_step: int | None = None
    steps: tuple[StepOutcome, ...] = ()
    phases: dict[str, Span] = {}
    images: tuple[PushedName, ...] = ()
    packages: tuple[PublishedPackage, ...] = ()
    objects: UploadedObjects | None = None
    provenance: SourceProvenance | None = None
    warnings: tuple[str, ...] = ()
