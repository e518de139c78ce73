"""Warnings about what the hosted service would do for a build and buildrunner does not (yet).

Only fields whose neglect changes what a build makes or needs: a build that silently uploads nothing
is worse than one that says so. Whether a field is still neglected is read from `stands`, the table
that the compatibility page is made from.
"""

from __future__ import annotations

from collections.abc import Iterator

from buildrunner.spec.model.build import Build, VerifyOption
from buildrunner.spec.model.message import Message
from buildrunner.spec.validation.findings import Findings

_UPLOADS = {
    "objects": "objects",
    "maven_artifacts": "mavenArtifacts",
    "go_modules": "goModules",
    "python_packages": "pythonPackages",
    "npm_packages": "npmPackages",
    "generic_artifacts": "genericArtifacts",
}

_RECORDED_OPTIONS = {
    "pool": "pool",
    "disk_size_gb": "diskSizeGb",
    "source_provenance_hash": "sourceProvenanceHash",
    "pubsub_topic": "pubsubTopic",
}


def check_differences(build: Build, findings: Findings) -> None:
    """Warn about every such field that the build uses: rule ``not-done-here``."""
    for owner, json_name, path in _used(build):
        # Not at the top: most builds use none of them.
        from buildrunner.spec.model.stands import Stand, stand_of

        verdict = stand_of(owner, json_name)
        if verdict is not None and verdict.stand is Stand.RECORDED:
            message = f"{json_name} has no effect here: {verdict.reason}"
            findings.warning("not-done-here", path, message)


def _used(build: Build) -> Iterator[tuple[type[Message], str, str]]:
    if build.dependencies:
        yield type(build), "dependencies", "dependencies"
    artifacts = build.artifacts
    if artifacts:
        for name, json_name in _UPLOADS.items():
            if getattr(artifacts, name):
                yield type(artifacts), json_name, f"artifacts.{json_name}"
    options = build.options
    if options is None:
        return
    if options.requested_verify_option is VerifyOption.VERIFIED:
        yield type(options), "requestedVerifyOption", "options.requestedVerifyOption"
    for name, json_name in _RECORDED_OPTIONS.items():
        if getattr(options, name):
            yield type(options), json_name, f"options.{json_name}"
