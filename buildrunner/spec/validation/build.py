"""Rules about the build as a whole, its source and its uploads, before substitution."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import msgspec

from buildrunner.spec.lexical_path import clean_path
from buildrunner.spec.model import git_address
from buildrunner.spec.model.build import (
    Build,
    BuildOptions,
    DefaultLogsBucketBehavior,
    LoggingMode,
    SubstitutionOption,
)
from buildrunner.spec.model.results import ArtifactObjects, Artifacts
from buildrunner.spec.model.source import GitSourceDependency, is_bucket_name
from buildrunner.spec.validation.findings import Findings, shortened
from buildrunner.spec.writing import encode_message

_ZERO = timedelta()
_LOGS_ELSEWHERE: Final = (LoggingMode.CLOUD_LOGGING_ONLY, LoggingMode.NONE)


def check_build_level(build: Build, limits: Limits, findings: Findings) -> None:
    """Check durations, disk, tags and the account: V03-V06, V08, V10."""
    timeout = build.timeout
    if timeout is not None and timeout > limits.timeout:
        findings.error("V03", "timeout", "timeout exceeds the timeout limit of 24h0m0s")
    elif timeout is not None and timeout < _ZERO:
        findings.error("V04", "timeout", "invalid timeout: timeout must be >=0")
    if build.queue_ttl is not None and build.queue_ttl < _ZERO:
        findings.error("V05", "queueTtl", "invalid queueTtl: queueTtl must be >=0")
    if len(build.tags) > limits.tags:
        message = f"number of tags {len(build.tags)} exceeded (max: {limits.tags})"
        findings.error("V08", "tags", message)
    options = build.options
    if options is not None and options.disk_size_gb > limits.disk_size_gb:
        message = f"diskSizeGb exceeds the maximum of {limits.disk_size_gb}"
        findings.error("V06", "options.diskSizeGb", message)
    elif options is not None and options.disk_size_gb < 0:
        findings.error("V06", "options.diskSizeGb", "diskSizeGb must be >=0")
    if build.service_account and not _has_log_destination(build, options or BuildOptions()):
        findings.warning(
            "V10",
            "serviceAccount",
            "the hosted service refuses a build with its own service account and no place for logs",
            "set logsBucket, options.logging: CLOUD_LOGGING_ONLY, or "
            "options.defaultLogsBucketBehavior: REGIONAL_USER_OWNED_BUCKET",
        )


def _has_log_destination(build: Build, options: BuildOptions) -> bool:
    regional = DefaultLogsBucketBehavior.REGIONAL_USER_OWNED_BUCKET
    return (
        bool(build.logs_bucket)
        or options.logging in _LOGS_ELSEWHERE
        or options.default_logs_bucket_behavior is regional
    )


def check_uploads(build: Build, limits: Limits, findings: Findings) -> None:
    """Check images and artifacts, before substitution: V60-V68."""
    artifacts = build.artifacts
    _check_images("images", build.images, limits, findings)
    if artifacts is None:
        return
    _check_images("artifacts.images", artifacts.images, limits, findings)
    if build.images and artifacts.images and build.images != artifacts.images:
        findings.error(
            "V62",
            "artifacts.images",
            "cannot specify different .images and .artifacts.images",
            "they mean the same: keep one of the two lists",
        )
    if artifacts.objects is not None:
        _check_objects(artifacts.objects, limits, findings)
    _check_packages(artifacts, findings)


def _check_images(path: str, images: tuple[str, ...], limits: Limits, findings: Findings) -> None:
    if len(images) > limits.images:
        findings.error("V60", path, f"cannot specify more than {limits.images} images to build")
    for index, image in enumerate(images):
        if len(image) > limits.image_length:
            message = f"image {index} too long (max: {limits.image_length})"
            findings.error("V61", f"{path}[{index}]", message)


def _check_objects(objects: ArtifactObjects, limits: Limits, findings: Findings) -> None:
    location, paths = objects.location, objects.paths
    where = "artifacts.objects.location"
    if not location:
        findings.error("V63", where, ".artifacts.location field is empty")
    where = "artifacts.objects.paths"
    if not paths:
        findings.error("V65", where, ".artifacts.paths field empty")
    if len(paths) > limits.artifact_paths:
        message = (
            f".artifacts.paths field has length {len(paths)}, "
            f"but cannot specify more than {limits.artifact_paths}"
        )
        findings.error("V66", where, message)
    seen: set[str] = set()
    for index, path in enumerate(paths):
        if path in seen:
            message = f'.artifacts.paths field has duplicate paths; remove duplicates ["{path}"]'
            findings.error("V67", f"{where}[{index}]", message)
        seen.add(path)
        if any(char.isspace() for char in path):
            message = f'.artifacts.paths "{path}" contains whitespace'
            findings.error("V68", f"{where}[{index}]", message)


# The required fields of the API, in the order of the reference.
_REQUIRED: Final = (
    ("maven_artifacts", "mavenArtifacts", ("repository", "artifact_id", "group_id", "version")),
    ("go_modules", "goModules", ("repository_name", "module_path", "module_version")),
    ("python_packages", "pythonPackages", ("repository", "paths")),
    ("npm_packages", "npmPackages", ("repository", "package_path")),
    ("generic_artifacts", "genericArtifacts", ("folder", "registry_path")),
)


def _check_packages(artifacts: Artifacts, findings: Findings) -> None:
    for attribute, json_name, all_required in _REQUIRED:
        for index, package in enumerate(getattr(artifacts, attribute)):
            path = f"artifacts.{json_name}[{index}]"
            required: tuple[str, ...] = all_required
            if attribute == "maven_artifacts" and package.deploy_folder:
                required = ("repository",)  # the files of deployFolder have the repository's layout
                if package.path:
                    message = "mavenArtifacts must not specify both path and deployFolder"
                    findings.error("artifact-field", path, message)
            missing = [name for name in required if not getattr(package, name)]
            if attribute == "maven_artifacts" and not (package.path or package.deploy_folder):
                missing.append("path")
            for name in missing:
                head, *rest = name.split("_")
                field = head + "".join(map(str.capitalize, rest))
                findings.error("artifact-field", path, f"{json_name} must specify {field}")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The enforced limits, and in ``portable_*`` the smaller ones that only warn.

    Lengths are in characters unless the name says bytes.
    """

    timeout: timedelta = timedelta(hours=24)
    disk_size_gb: int = 4000
    tags: int = 64
    substitutions: int = 200
    portable_substitutions: int = 100
    substitution_key_bytes: int = 100
    substitution_value_bytes: int = 4000
    steps: int = 300
    portable_steps: int = 100
    step_name: int = 1000
    args: int = 100
    arg_length: int = 10_000
    portable_arg_length: int = 4000
    dir_length: int = 1000
    allow_exit_codes: int = 255
    script_bytes: int = 2**20
    portable_script_length: int = 10_000
    env: int = 100
    env_length: int = 32 * 1024
    secret_values: int = 100
    secret_value_bytes: int = 64 * 1024
    images: int = 100
    image_length: int = 1000
    artifact_paths: int = 100


DEFAULT_LIMITS: Final = Limits()


def effective_options(options: BuildOptions | None, *, triggered: bool) -> BuildOptions:
    """Return the effective options: a triggered build is always loose and dynamic.

    Source: the API text of ``substitutionOption`` and ``dynamicSubstitutions``.
    """
    given = options or BuildOptions()
    if not triggered:
        return given
    return msgspec.structs.replace(
        given,
        substitution_option=SubstitutionOption.ALLOW_LOOSE,
        dynamic_substitutions=True,
    )


_WORKSPACE = "/workspace"


def check_source(build: Build, findings: Findings) -> None:
    """Check ``source.*`` and ``dependencies``: folders, names of buckets, and no passwords.

    Source: semantics 1.5 (``dir`` is relative) and 1.13.
    """
    findings.problems.extend(git_address.build_problems(encode_message(build)))
    source = build.source
    if source is not None:
        for name, kind in (
            ("gitSource", source.git_source),
            ("repoSource", source.repo_source),
            ("connectedRepository", source.connected_repository),
        ):
            if kind is not None and _leads_out(kind.dir):
                findings.error(
                    "source-dir",
                    f"source.{name}.dir",
                    f"{kind.dir} is not a folder of the source",
                    "give a path relative to its root",
                )
        for name, place in (
            ("storageSource", source.storage_source),
            ("storageSourceManifest", source.storage_source_manifest),
        ):
            if place is not None and not is_bucket_name(place.bucket):
                findings.error(
                    "bucket-name",
                    f"source.{name}.bucket",
                    f'"{shortened(place.bucket)}" is not the name of a bucket',
                    "write the name alone: no gs://, and no folder behind it",
                )
    for index, dependency in enumerate(build.dependencies):
        if dependency.git_source is not None:
            _check_dependency(dependency.git_source, f"dependencies[{index}].gitSource", findings)


def _check_dependency(git: GitSourceDependency, path: str, findings: Findings) -> None:
    repository = git.repository
    given = {
        "repository.url": repository is not None and bool(repository.url),
        "revision": bool(git.revision),
        "destPath": bool(git.dest_path),
    }
    for name, is_given in given.items():
        if not is_given:
            findings.error("dependency", path, f"a gitSource dependency must specify {name}")
    if git.dest_path and not _is_below_workspace(git.dest_path):
        findings.error(
            "dependency",
            f"{path}.destPath",
            f"{git.dest_path} is not a folder below {_WORKSPACE}",
            "give a relative path such as third-party/name",
        )
    if git.depth < -1:
        message = "depth must be a number of commits, or -1 for the whole history"
        findings.error("dependency", f"{path}.depth", message)


def _leads_out(folder: str) -> bool:
    return folder.startswith("/") or clean_path(folder or ".").split("/")[0] == ".."


def _is_below_workspace(path: str) -> bool:
    absolute = path if path.startswith("/") else f"{_WORKSPACE}/{path}"
    return clean_path(absolute).startswith(f"{_WORKSPACE}/")
