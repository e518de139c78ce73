"""Fills the Build resource with what came of the build."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from buildrunner.engine.outcome import BuildOutcome, Span, StepOutcome
from buildrunner.spec.model.build import Build, BuildStep
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

_UPLOADED: dict[str, tuple[str, type[UploadedArtifact], HashType]] = {
    "python": ("python_packages", UploadedPythonPackage, HashType.SHA256),
    "maven": ("maven_artifacts", UploadedMavenArtifact, HashType.SHA256),
    "npm": ("npm_packages", UploadedNpmPackage, HashType.SHA256),
    "go": ("go_modules", UploadedGoModule, HashType.GO_MODULE_H1),
}


def apply_outcome(build: Build, outcome: BuildOutcome) -> Build:
    """The finished resource: ``build`` with all output fields that the run decides.

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
    """Objects and packages; ``artifactTiming`` spans both."""
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
        if package.kind == "generic":  # the published schema has no place for them
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
