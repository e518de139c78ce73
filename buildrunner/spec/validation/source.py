"""Rules about what a build fetches: its source's folder, its dependencies."""

from __future__ import annotations

from buildrunner.spec.lexical_path import clean_path
from buildrunner.spec.model import git_address
from buildrunner.spec.model.bucket_name import is_bucket_name
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.source import GitSourceDependency
from buildrunner.spec.validation.findings import Findings, shortened
from buildrunner.spec.writing import encode_message

_WORKSPACE = "/workspace"


def check_source(build: Build, findings: Findings) -> None:
    """``source.*`` and ``dependencies``: what they name, and no password in it.

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
