"""Which packages a build publishes: the entries of ``artifacts`` with all defaults filled in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.errors import ConfigError
from buildrunner.plan.build_plan import PackageUpload
from buildrunner.spec.lexical_path import join_paths
from buildrunner.spec.problem import Problem

if TYPE_CHECKING:
    from buildrunner.spec.model_artifacts import Artifacts

_WORKSPACE = "/workspace"


def package_uploads(
    artifacts: Artifacts, project_id: str, location: str
) -> tuple[PackageUpload, ...]:
    """The packages in the order in which they are published: maven, python, npm, go.

    Source: semantics 1.8, 6.1 and 6.7. A path is relative to ``/workspace`` or absolute below it.

    Args:
        artifacts: as the build has it, substitutions made.
        project_id: project of Go repositories that name none.
        location: their location in that case.

    Raises:
        ConfigError: a path leads out of the workspace.
    """
    problems: list[Problem] = []

    def below(path: str, place: str) -> str:
        full = join_paths(_WORKSPACE, path)
        if full != _WORKSPACE and not full.startswith(f"{_WORKSPACE}/"):
            problems.append(
                Problem(f'"{path}" is not below {_WORKSPACE}', path=place, rule="package-path")
            )
        return full

    uploads: list[PackageUpload] = []
    for index, maven in enumerate(artifacts.maven_artifacts):
        place = f"artifacts.mavenArtifacts[{index}]"
        uploads.append(
            PackageUpload(
                kind="maven",
                repository=maven.repository.rstrip("/"),
                paths=(below(maven.path, f"{place}.path"),),
                group=maven.group_id,
                name=maven.artifact_id,
                version=maven.version,
            )
        )
    for index, python in enumerate(artifacts.python_packages):
        place = f"artifacts.pythonPackages[{index}].paths"
        globs = tuple(below(path, f"{place}[{n}]") for n, path in enumerate(python.paths))
        repository = python.repository.rstrip("/")
        uploads.append(PackageUpload(kind="python", repository=repository, paths=globs))
    for index, npm in enumerate(artifacts.npm_packages):
        folder = below(npm.package_path, f"artifacts.npmPackages[{index}].packagePath")
        repository = npm.repository.rstrip("/")
        uploads.append(PackageUpload(kind="npm", repository=repository, paths=(folder,)))
    for index, go in enumerate(artifacts.go_modules):
        host = f"{go.repository_location or location}-go.pkg.dev"
        project = go.repository_project_id or project_id
        uploads.append(
            PackageUpload(
                kind="go",
                repository=f"https://{host}/{project}/{go.repository_name}",
                paths=(below(go.source_path, f"artifacts.goModules[{index}].sourcePath"),),
                name=go.module_path,
                version=go.module_version,
            )
        )
    if problems:
        raise ConfigError(problems)
    return tuple(uploads)
