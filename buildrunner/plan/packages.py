"""Which packages a build publishes: the entries of ``artifacts`` with all defaults filled in."""

from __future__ import annotations

import re
from collections.abc import Iterator

from buildrunner.errors import ConfigError
from buildrunner.plan.build_plan import PackageUpload
from buildrunner.problem import Problem
from buildrunner.spec.lexical_path import join_paths
from buildrunner.spec.model.artifacts import Artifacts, GenericArtifact, MavenArtifact

_WORKSPACE = "/workspace"
_REGISTRY_PATH = re.compile(
    r"(projects/[^/]+/locations/[^/]+/repositories/[^/]+)/packages/([^/]+)/versions/([^/]+)"
)


def package_uploads(
    artifacts: Artifacts, project_id: str, location: str
) -> tuple[PackageUpload, ...]:
    """The packages in the order in which they are published: maven, python, npm, go, generic.

    Source: semantics 1.8, 6.1 and 6.7. A path is relative to ``/workspace`` or absolute below it.

    Args:
        artifacts: as the build has it, substitutions made.
        project_id: project of Go repositories that name none.
        location: their location in that case.

    Raises:
        ConfigError: a path leads out of the workspace, or a ``registryPath`` names no place.
    """
    found = _Uploads(project_id, location)
    uploads = tuple(found.of(artifacts))
    if found.problems:
        raise ConfigError(found.problems)
    return uploads


class _Uploads:
    def __init__(self, project_id: str, location: str) -> None:
        self._project_id = project_id
        self._location = location
        self.problems: list[Problem] = []

    def of(self, artifacts: Artifacts) -> Iterator[PackageUpload]:
        for index, maven in enumerate(artifacts.maven_artifacts):
            yield self._maven(maven, f"artifacts.mavenArtifacts[{index}]")
        for index, python in enumerate(artifacts.python_packages):
            place = f"artifacts.pythonPackages[{index}].paths"
            globs = tuple(self._below(path, f"{place}[{n}]") for n, path in enumerate(python.paths))
            repository = python.repository.rstrip("/")
            yield PackageUpload(kind="python", repository=repository, paths=globs)
        for index, npm in enumerate(artifacts.npm_packages):
            folder = self._below(npm.package_path, f"artifacts.npmPackages[{index}].packagePath")
            repository = npm.repository.rstrip("/")
            yield PackageUpload(kind="npm", repository=repository, paths=(folder,))
        for index, go in enumerate(artifacts.go_modules):
            host = f"{go.repository_location or self._location}-go.pkg.dev"
            project = go.repository_project_id or self._project_id
            place = f"artifacts.goModules[{index}].sourcePath"
            yield PackageUpload(
                kind="go",
                repository=f"https://{host}/{project}/{go.repository_name}",
                paths=(self._below(go.source_path, place),),
                name=go.module_path,
                version=go.module_version,
            )
        for index, generic in enumerate(artifacts.generic_artifacts):
            yield self._generic(generic, f"artifacts.genericArtifacts[{index}]")

    def _maven(self, maven: MavenArtifact, place: str) -> PackageUpload:
        repository = maven.repository.rstrip("/")
        if maven.deploy_folder:
            folder = self._below(maven.deploy_folder, f"{place}.deployFolder")
            return PackageUpload(kind="maven-folder", repository=repository, paths=(folder,))
        return PackageUpload(
            kind="maven",
            repository=repository,
            paths=(self._below(maven.path, f"{place}.path"),),
            group=maven.group_id,
            name=maven.artifact_id,
            version=maven.version,
        )

    def _generic(self, generic: GenericArtifact, place: str) -> PackageUpload:
        paths = (self._below(generic.folder, f"{place}.folder"),)
        repository, name, version = generic.registry_path.rstrip("/"), "", ""
        if named := _REGISTRY_PATH.fullmatch(repository):
            repository, name, version = named.groups()
        elif not repository.startswith(("https://", "http://")):
            problem = Problem(
                f'"{generic.registry_path}" names no place for files',
                path=f"{place}.registryPath",
                rule="artifact-field",
                hint="write projects/P/locations/L/repositories/R/packages/NAME/versions/VERSION, "
                "or the https:// address of a folder",
            )
            self.problems.append(problem)
        return PackageUpload(
            kind="generic", repository=repository, paths=paths, name=name, version=version
        )

    def _below(self, path: str, place: str) -> str:
        full = join_paths(_WORKSPACE, path)
        if full != _WORKSPACE and not full.startswith(f"{_WORKSPACE}/"):
            message = f'"{path}" is not below {_WORKSPACE}'
            self.problems.append(Problem(message, path=place, rule="package-path"))
        return full
