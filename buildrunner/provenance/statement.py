"""The SLSA v1 provenance of a build, as an in-toto statement. Pure.

Source: https://slsa.dev/spec/v1.0/provenance and the in-toto attestation framework, Statement v1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from buildrunner import __version__
from buildrunner.containers.image_name import ImageName
from buildrunner.engine.outcome import BuildOutcome, PublishedPackage
from buildrunner.errors import AttestationError
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.results import SourceProvenance
from buildrunner.spec.writing import encode_message

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PROVENANCE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:buildrunner:cloudbuild:v1"
"""The build type, which defines ``externalParameters``: see docs/how-to/provenance.md."""
LOCAL_BUILDER: Final = "urn:buildrunner:local"
"""Builder id of `buildrunner submit` without a server."""

_DEFINITION = (
    "steps",
    "images",
    "artifacts",
    "options",
    "availableSecrets",
    "dependencies",
    "timeout",
    "tags",
    "serviceAccount",
)


def provenance_statement(
    build: Build,
    plan: BuildPlan,
    outcome: BuildOutcome,
    *,
    builder_id: str,
    masked: Callable[[str], str] = lambda text: text,
) -> dict[str, Any] | None:
    """Return the statement about the artifacts of a build; None if it published nothing.

    Args:
        build: the build, with its substitutions applied.
        plan: the plan of the build.
        outcome: the published artifacts, and the images of the steps.
        builder_id: URI of the server that ran the build.
        masked: hides the values of secrets in a text that the author of the build wrote.

    Raises:
        AttestationError: a fact of the server has the value of a secret.
    """
    subjects = list(_subjects(outcome))
    if not subjects:
        return None
    definition: dict[str, Any] = {
        "buildType": BUILD_TYPE,
        "externalParameters": _external(build, plan.origin, masked),
        "internalParameters": _internal(build, plan),
        "resolvedDependencies": [
            *_sources(outcome.provenance, plan.origin),
            *_images(plan, outcome),
        ],
    }
    details = {
        "builder": {"id": builder_id, "version": {"buildrunner": __version__}},
        "metadata": {
            "invocationId": _invocation(build, plan),
            "startedOn": _time(outcome.started_at),
            "finishedOn": _time(outcome.finished_at),
        },
    }
    predicate = {"buildDefinition": definition, "runDetails": details}
    facts = {
        "source": definition["externalParameters"].get("source"),
        "config": definition["externalParameters"].get("config"),
        "internalParameters": definition["internalParameters"],
        "resolvedDependencies": list(_sources(outcome.provenance, plan.origin)),
        "builder": details["builder"],
        "invocationId": _invocation(build, plan),
    }
    for name, fact in facts.items():
        if _masked(fact, masked) != fact:  # another value in its place would be a false statement
            raise AttestationError(
                f"{name} of the provenance has the value of a secret",
                hint="give the secret another value than a name of the repository or the server",
            )
    return {
        "_type": STATEMENT_TYPE,
        "subject": subjects,
        "predicateType": PROVENANCE_TYPE,
        "predicate": predicate,
    }


def _invocation(build: Build, plan: BuildPlan) -> str:
    location = plan.substitutions.get("LOCATION") or "global"
    return f"projects/{build.project_id}/locations/{location}/builds/{build.id}"


def _subjects(outcome: BuildOutcome) -> Iterator[dict[str, Any]]:
    """Yield images by repository and digest, files and packages by URL and digest; each once."""
    seen = set()
    for image in outcome.images:
        subject = (ImageName.parse(image.name).repository, image.digest)
        if image.digest and subject not in seen:
            seen.add(subject)
            yield {"name": subject[0], "digest": _digest(image.digest)}
    for file in outcome.objects.files if outcome.objects else ():
        yield {"name": file.url, "digest": {"sha256": file.sha256}}
    for package in outcome.packages:
        yield {"name": package.uri, "digest": _package_digest(package)}


def _package_digest(package: PublishedPackage) -> dict[str, str]:
    """Return the digest of a package. in-toto calls the sum of a Go module ``dirHash``."""
    return {"dirHash" if package.kind == "go" else "sha256": package.hash.hex()}


def _digest(text: str) -> dict[str, str]:
    algorithm, _, value = text.partition(":")
    return {algorithm: value}


def _external(build: Build, origin: BuildOrigin, masked: Callable[[str], str]) -> dict[str, Any]:
    document = encode_message(build)
    source: dict[str, Any] = document.get("source", {})
    if origin.repository:
        source = {"repository": origin.repository, "commit": origin.commit}
        if origin.ref:
            source["ref"] = origin.ref
    parameters: dict[str, Any] = {
        "build": _masked(
            {name: document[name] for name in _DEFINITION if document.get(name)}, masked
        ),
        "substitutions": _masked(document.get("substitutions", {}), masked),
    }
    if source:
        parameters["source"] = source
    if origin.config:
        config = {"path": origin.config, "digest": {"sha256": origin.config_sha256}}
        if origin.config_in_source:
            config["uri"] = _git_uri(origin)
        parameters["config"] = config
    return parameters


def _internal(build: Build, plan: BuildPlan) -> dict[str, Any]:
    origin = plan.origin
    parameters: dict[str, Any] = {
        "projectId": build.project_id,
        "privileged": plan.privileged,
        "dockerSocket": plan.docker_socket,
        "untrusted": origin.untrusted,
    }
    if origin.trigger:
        parameters["trigger"] = {"id": origin.trigger, "name": origin.trigger_name}
    if plan.left_out:
        parameters["leftOut"] = list(plan.left_out)
    return parameters


def _git_uri(origin: BuildOrigin) -> str:
    return f"git+{origin.repository}@{origin.ref}" if origin.ref else f"git+{origin.repository}"


def _sources(resolved: SourceProvenance | None, origin: BuildOrigin) -> Iterator[dict[str, Any]]:
    if origin.repository:
        yield {
            "uri": _git_uri(origin),
            "digest": {"gitCommit": origin.commit},
        }
    if resolved is None:
        return
    for stored in (resolved.resolved_storage_source, resolved.resolved_storage_source_manifest):
        if stored is not None:
            uri = f"gs://{stored.bucket}/{stored.object}"
            yield _with_hashes(f"{uri}#{stored.generation}" if stored.generation else uri, resolved)


def _with_hashes(uri: str, resolved: SourceProvenance) -> dict[str, Any]:
    digest = (
        {
            hash_.type.name.lower(): hash_.value.hex()
            for hash_ in next(iter(resolved.file_hashes.values())).file_hash
        }
        if len(resolved.file_hashes) == 1
        else {}
    )
    return {"uri": uri, **({"digest": digest} if digest else {})}


def _images(plan: BuildPlan, outcome: BuildOutcome) -> Iterator[dict[str, Any]]:
    """Yield the images of the steps, each once, with the digest if a registry has the image."""
    digests = {step.index: step.image_digest for step in outcome.steps}
    seen = set()
    for step in plan.steps:
        image = (ImageName.parse(step.image), digests.get(step.index, ""))
        if image not in seen:
            seen.add(image)
            uri = f"oci://{msgspec.structs.replace(image[0], digest='')}"
            yield {"uri": uri, **({"digest": _digest(image[1])} if image[1] else {})}


def _masked(value: Any, masked: Callable[[str], str]) -> Any:
    match value:
        case str():
            return masked(value)
        case dict():
            return {key: _masked(entry, masked) for key, entry in value.items()}
        case list() | tuple():
            return [_masked(entry, masked) for entry in value]
        case _:
            return value


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
