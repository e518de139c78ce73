"""Builds and keys for the tests of provenance."""

from __future__ import annotations

import json
from base64 import b64decode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from buildrunner.engine.outcome import (
    BuildOutcome,
    PublishedPackage,
    PushedName,
    Span,
    StepOutcome,
    UploadedFile,
    UploadedObjects,
)
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan, StepPlan
from buildrunner.provenance.signing import open_signer, signed_envelope
from buildrunner.provenance.statement import provenance_statement
from buildrunner.spec.model.build import Build, BuildStep, Status

BEGAN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
ENDED = BEGAN + timedelta(seconds=90)
SPAN = Span(BEGAN, ENDED)
DIGEST = "sha256:" + "1" * 64
STEP_DIGEST = "sha256:" + "2" * 64
REPOSITORY = "https://git.example.com/acme/app"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
BUILDER = "https://ci.example.com"

ORIGIN = BuildOrigin(
    repository=REPOSITORY,
    commit=COMMIT,
    ref="refs/heads/main",
    config="cloudbuild.yaml",
    config_sha256="c" * 64,
    config_in_source=True,
    trigger="t1",
    trigger_name="on-push",
)
BUILD = Build(
    id="b1",
    project_id="shop",
    steps=(BuildStep(name="golang:1.22", args=("build", "."), secret_env=("TOKEN",)),),
    images=("r.example.com/app:v1",),
    substitutions={"_ENV": "prod"},
)
PLAN = BuildPlan(
    build_id="b1",
    project_id="shop",
    steps=(StepPlan(index=0, image="golang:1.22"), StepPlan(index=1, image="alpine")),
    images=BUILD.images,
    substitutions={"LOCATION": "global"},
    origin=ORIGIN,
)


def image(name: str = "r.example.com/app:v1", digest: str = DIGEST) -> PushedName:
    return PushedName(name=name, digest=digest, timing=SPAN)


def outcome(**changes: Any) -> BuildOutcome:
    fields: dict[str, Any] = {
        "status": Status.SUCCESS,
        "started_at": BEGAN,
        "finished_at": ENDED,
        "steps": (StepOutcome(index=0, image_digest=STEP_DIGEST), StepOutcome(index=1)),
        "images": (image(),),
    }
    return BuildOutcome(**{**fields, **changes})


def files(*urls: str) -> UploadedObjects:
    uploaded = tuple(UploadedFile(url, "3" * 64) for url in urls)
    return UploadedObjects(
        manifest_url="gs://b/m.json", count=len(urls), timing=SPAN, files=uploaded
    )


def package(kind: str, uri: str, hash_: bytes) -> PublishedPackage:
    return PublishedPackage(kind=kind, uri=uri, hash=hash_, timing=SPAN)


def statement(**changes: Any) -> dict[str, Any]:
    made = provenance_statement(BUILD, PLAN, outcome(**changes), builder_id=BUILDER)
    assert made is not None
    return made


def envelope(folder: Path, made: dict[str, Any] | None = None) -> bytes:
    """A statement, signed with the key that is made in ``folder``."""
    return signed_envelope(made or statement(), open_signer("", str(folder)))


def payload(line: bytes) -> Any:
    return json.loads(b64decode(json.loads(line)["payload"]))
