"""Messages of the Build resource about uploads after the steps and about the build's results."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import ClassVar

import msgspec

from buildrunner.spec.model.message import Int64, Message, TimeSpan
from buildrunner.spec.model.source import (
    ConnectedRepository,
    GitSource,
    RepoSource,
    StorageSource,
    StorageSourceManifest,
)


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
    """Files to publish unchanged (in the service's newer schema only)."""

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


class HashType(enum.Enum):
    """The algorithm of a hash."""

    NONE = 0
    SHA256 = 1
    MD5 = 2
    GO_MODULE_H1 = 3
    SHA512 = 4


class Hash(Message, frozen=True, kw_only=True):
    """The hash of a file."""

    type: HashType = HashType.NONE
    value: bytes = b""


class FileHashes(Message, frozen=True, kw_only=True):
    """The hashes of one file."""

    file_hash: tuple[Hash, ...] = ()


class SourceProvenance(Message, frozen=True, kw_only=True):
    """The exact source that was built."""

    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("file_hashes",)

    resolved_storage_source: StorageSource | None = None
    resolved_repo_source: RepoSource | None = None
    resolved_storage_source_manifest: StorageSourceManifest | None = None
    resolved_connected_repository: ConnectedRepository | None = None
    resolved_git_source: GitSource | None = None
    file_hashes: dict[str, FileHashes] = msgspec.field(default_factory=dict)


class BuiltImage(Message, frozen=True, kw_only=True):
    """An image that was pushed."""

    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("push_timing", "artifact_registry_package")

    name: str = ""
    digest: str = ""
    push_timing: TimeSpan | None = None
    artifact_registry_package: str = ""


class UploadedArtifact(Message, frozen=True, kw_only=True):
    """A language package that was published; the kinds differ in name only."""

    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("push_timing", "artifact_registry_package")

    uri: str = ""
    file_hashes: FileHashes | None = None
    push_timing: TimeSpan | None = None
    artifact_registry_package: str = ""


class UploadedPythonPackage(UploadedArtifact, frozen=True, kw_only=True):
    """A Python distribution that was published."""


class UploadedMavenArtifact(UploadedArtifact, frozen=True, kw_only=True):
    """A Maven artifact that was published."""


class UploadedGoModule(UploadedArtifact, frozen=True, kw_only=True):
    """A Go module that was published."""


class UploadedNpmPackage(UploadedArtifact, frozen=True, kw_only=True):
    """An npm package that was published."""


class Results(Message, frozen=True, kw_only=True):
    """The results of a build."""

    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("artifact_timing",)

    images: tuple[BuiltImage, ...] = ()
    build_step_images: tuple[str, ...] = ()
    artifact_manifest: str = ""
    num_artifacts: Int64 = 0
    build_step_outputs: tuple[bytes, ...] = ()
    artifact_timing: TimeSpan | None = None
    python_packages: tuple[UploadedPythonPackage, ...] = ()
    maven_artifacts: tuple[UploadedMavenArtifact, ...] = ()
    go_modules: tuple[UploadedGoModule, ...] = ()
    npm_packages: tuple[UploadedNpmPackage, ...] = ()


class Priority(enum.Enum):
    """The severity of a warning."""

    PRIORITY_UNSPECIFIED = 0
    INFO = 1
    WARNING = 2
    ALERT = 3


class Warning_(Message, frozen=True, kw_only=True):  # noqa: N801 - "Warning" is a builtin
    """A problem that did not stop the build."""

    text: str = ""
    priority: Priority = Priority.PRIORITY_UNSPECIFIED


class FailureType(enum.Enum):
    """The kind of cause that made the build fail."""

    FAILURE_TYPE_UNSPECIFIED = 0
    PUSH_FAILED = 1
    PUSH_IMAGE_NOT_FOUND = 2
    PUSH_NOT_AUTHORIZED = 3
    LOGGING_FAILURE = 4
    USER_BUILD_STEP = 5
    FETCH_SOURCE_FAILED = 6


class FailureInfo(Message, frozen=True, kw_only=True):
    """The reason why the build failed."""

    type: FailureType = FailureType.FAILURE_TYPE_UNSPECIFIED
    detail: str = ""


class ApprovalState(enum.Enum):
    """The state of a build's approval."""

    STATE_UNSPECIFIED = 0
    PENDING = 1
    APPROVED = 2
    REJECTED = 3
    CANCELLED = 5


class Decision(enum.Enum):
    """The approver's decision."""

    DECISION_UNSPECIFIED = 0
    APPROVED = 1
    REJECTED = 2


class ApprovalConfig(Message, frozen=True, kw_only=True):
    """Whether builds must be approved before they run."""

    approval_required: bool = False


class ApprovalResult(Message, frozen=True, kw_only=True):
    """A decision on a build that waited for approval."""

    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("approver_account", "approval_time")

    approver_account: str = ""
    approval_time: datetime | None = None
    decision: Decision = Decision.DECISION_UNSPECIFIED
    comment: str = ""
    url: str = ""


class BuildApproval(Message, frozen=True, kw_only=True):
    """The approval of one build."""

    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("state", "config")

    state: ApprovalState = ApprovalState.STATE_UNSPECIFIED
    config: ApprovalConfig | None = None
    result: ApprovalResult | None = None
