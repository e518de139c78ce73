"""Messages of the Build resource that say what is uploaded after the steps."""

from __future__ import annotations

from typing import ClassVar

from buildrunner.spec.model.message import Message, TimeSpan


class ArtifactObjects(Message, frozen=True, kw_only=True):
    """Files to copy to a bucket."""

    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("timing",)

    location: str = ""
    paths: tuple[str, ...] = ()
    timing: TimeSpan | None = None


class MavenArtifact(Message, frozen=True, kw_only=True):
    """A file to publish to a Maven repository."""

    NEWER: ClassVar[tuple[str, ...]] = ("deploy_folder",)

    repository: str = ""
    path: str = ""
    artifact_id: str = ""
    group_id: str = ""
    version: str = ""
    deploy_folder: str = ""


class GoModule(Message, frozen=True, kw_only=True):
    """A Go module to publish."""

    repository_name: str = ""
    repository_location: str = ""
    repository_project_id: str = ""
    source_path: str = ""
    module_path: str = ""
    module_version: str = ""


class PythonPackage(Message, frozen=True, kw_only=True):
    """Python distributions to publish."""

    repository: str = ""
    paths: tuple[str, ...] = ()


class NpmPackage(Message, frozen=True, kw_only=True):
    """An npm package to publish."""

    repository: str = ""
    package_path: str = ""


class GenericArtifact(Message, frozen=True, kw_only=True):
    """Files to publish as they are. The service's newer schema has it."""

    folder: str = ""
    registry_path: str = ""


class Artifacts(Message, frozen=True, kw_only=True):
    """Everything to upload once all steps have succeeded."""

    NEWER: ClassVar[tuple[str, ...]] = ("generic_artifacts",)

    images: tuple[str, ...] = ()
    objects: ArtifactObjects | None = None
    maven_artifacts: tuple[MavenArtifact, ...] = ()
    go_modules: tuple[GoModule, ...] = ()
    python_packages: tuple[PythonPackage, ...] = ()
    npm_packages: tuple[NpmPackage, ...] = ()
    generic_artifacts: tuple[GenericArtifact, ...] = ()
