"""The Build resource: the build itself, its steps, its options and its secrets.

Messages of the source, of artifacts and of results are in `source` and `results`, triggers in
`trigger`. The meaning of each field is in `descriptions`, its support by buildrunner in `stands`.
"""

from __future__ import annotations

import enum
from datetime import datetime, timedelta
from typing import ClassVar

import msgspec

from buildrunner.spec.model.message import Int64, Message, TimeSpan
from buildrunner.spec.model.results import (
    Artifacts,
    BuildApproval,
    FailureInfo,
    HashType,
    Results,
    SourceProvenance,
    Warning_,
)
from buildrunner.spec.model.source import Dependency, GitConfig, Source


class Status(enum.Enum):
    """The status of a build or a step."""

    STATUS_UNKNOWN = 0
    PENDING = 10
    QUEUED = 1
    WORKING = 2
    SUCCESS = 3
    FAILURE = 4
    INTERNAL_ERROR = 5
    TIMEOUT = 6
    CANCELLED = 7
    EXPIRED = 9

    @property
    def is_final(self) -> bool:
        """Return whether the status is final."""
        return self.name in FINAL_STATUSES


FINAL_STATUSES = frozenset(
    {"SUCCESS", "FAILURE", "INTERNAL_ERROR", "TIMEOUT", "CANCELLED", "EXPIRED"}
)
"""Names of the final statuses, for stored documents."""


class VerifyOption(enum.Enum):
    """Whether a build without provenance fails."""

    NOT_VERIFIED = 0
    VERIFIED = 1
    BEST_EFFORT = 3


class MachineType(enum.Enum):
    """The machine type of the hosted service."""

    UNSPECIFIED = 0
    N1_HIGHCPU_8 = 1
    N1_HIGHCPU_32 = 2
    E2_HIGHCPU_8 = 5
    E2_HIGHCPU_32 = 6
    E2_MEDIUM = 7
    E2_STANDARD_2 = 11


class SubstitutionOption(enum.Enum):
    """Whether unknown and unused substitutions are errors."""

    MUST_MATCH = 0
    ALLOW_LOOSE = 1


class LogStreamingOption(enum.Enum):
    """Whether the stored log grows while the build runs."""

    STREAM_DEFAULT = 0
    STREAM_ON = 1
    STREAM_OFF = 2


class LoggingMode(enum.Enum):
    """The hosted service's place for the log."""

    LOGGING_UNSPECIFIED = 0
    LEGACY = 1
    GCS_ONLY = 2
    STACKDRIVER_ONLY = 3
    NONE = 4
    CLOUD_LOGGING_ONLY = 5


class DefaultLogsBucketBehavior(enum.Enum):
    """The hosted service's default bucket for logs."""

    DEFAULT_LOGS_BUCKET_BEHAVIOR_UNSPECIFIED = 0
    REGIONAL_USER_OWNED_BUCKET = 1
    LEGACY_BUCKET = 2


class DockerDaemon(enum.Enum):
    """Access of steps to the container engine (in the service's newer schema only)."""

    DOCKER_DAEMON_UNSPECIFIED = 0
    NO_DOCKER = 1
    NON_PRIVILEGED = 2
    PRIVILEGED = 3


class MachineSeries(enum.Enum):
    """The series of machines to build on (in the service's newer schema only).

    Source: the order of the values in the service's published description; it names no numbers.
    """

    MACHINE_SERIES_UNSPECIFIED = 0
    MACHINE_SERIES_E = 1
    MACHINE_SERIES_N = 2
    MACHINE_SERIES_C = 3


class Volume(Message, frozen=True, kw_only=True):
    """A named volume and the absolute path where a step sees it."""

    name: str = ""
    path: str = ""


class StepResult(Message, frozen=True, kw_only=True):
    """A result that a step declares (in the service's newer schema only)."""

    name: str = ""
    attestation_type: str = ""
    attestation_content: str = ""


class BuildStep(Message, frozen=True, kw_only=True):
    """One container to run."""

    NEWER: ClassVar[tuple[str, ...]] = ("results",)
    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("timing", "pull_timing", "status", "exit_code")
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "_automap_substitutions": ("automap_substitutions",)
    }

    name: str = ""
    env: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    dir: str = ""
    id: str = ""
    wait_for: tuple[str, ...] = ()
    entrypoint: str = ""
    secret_env: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    timing: TimeSpan | None = None
    pull_timing: TimeSpan | None = None
    timeout: timedelta | None = None
    status: Status = Status.STATUS_UNKNOWN
    allow_failure: bool = False
    exit_code: int = 0
    allow_exit_codes: tuple[int, ...] = ()
    script: str = ""
    automap_substitutions: bool | None = None
    results: tuple[StepResult, ...] = ()


class PoolOption(Message, frozen=True, kw_only=True):
    """The private pool that the build requests."""

    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("worker_release", "resolved_worker_release")

    name: str = ""
    worker_release: str = ""
    resolved_worker_release: str = ""


class BuildOptions(Message, frozen=True, kw_only=True):
    """Options of the build as a whole."""

    NEWER: ClassVar[tuple[str, ...]] = ("pubsub_topic", "docker_daemon", "ranked_machine_series")
    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("resolved_worker_release",)

    source_provenance_hash: tuple[HashType, ...] = ()
    requested_verify_option: VerifyOption = VerifyOption.NOT_VERIFIED
    machine_type: MachineType = MachineType.UNSPECIFIED
    disk_size_gb: Int64 = 0
    substitution_option: SubstitutionOption = SubstitutionOption.MUST_MATCH
    dynamic_substitutions: bool = False
    automap_substitutions: bool = False
    log_streaming_option: LogStreamingOption = LogStreamingOption.STREAM_DEFAULT
    worker_pool: str = ""
    pool: PoolOption | None = None
    logging: LoggingMode = LoggingMode.LOGGING_UNSPECIFIED
    env: tuple[str, ...] = ()
    secret_env: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    default_logs_bucket_behavior: DefaultLogsBucketBehavior = (
        DefaultLogsBucketBehavior.DEFAULT_LOGS_BUCKET_BEHAVIOR_UNSPECIFIED
    )
    enable_structured_logging: bool = False
    worker_release: str = ""
    resolved_worker_release: str = ""
    pubsub_topic: str = ""
    docker_daemon: DockerDaemon = DockerDaemon.DOCKER_DAEMON_UNSPECIFIED
    ranked_machine_series: tuple[MachineSeries, ...] = ()


class Secret(Message, frozen=True, kw_only=True):
    """Environment variables encrypted with one KMS key (the older form)."""

    kms_key_name: str = ""
    secret_env: dict[str, bytes] = msgspec.field(default_factory=dict)


class SecretManagerSecret(Message, frozen=True, kw_only=True):
    """A secret version and the environment variable that carries it."""

    version_name: str = ""
    env: str = ""


class InlineSecret(Message, frozen=True, kw_only=True):
    """Environment variables encrypted with one KMS key."""

    kms_key_name: str = ""
    env_map: dict[str, bytes] = msgspec.field(default_factory=dict)


class Secrets(Message, frozen=True, kw_only=True):
    """The secrets that steps may use."""

    secret_manager: tuple[SecretManagerSecret, ...] = ()
    inline: tuple[InlineSecret, ...] = ()


class Build(Message, frozen=True, kw_only=True):
    """One build: the request, and the results once it has run."""

    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = (
        "name",
        "id",
        "project_id",
        "status",
        "status_detail",
        "results",
        "create_time",
        "start_time",
        "finish_time",
        "source_provenance",
        "build_trigger_id",
        "log_url",
        "timing",
        "approval",
        "warnings",
        "failure_info",
    )

    name: str = ""
    id: str = ""
    project_id: str = ""
    status: Status = Status.STATUS_UNKNOWN
    status_detail: str = ""
    source: Source | None = None
    steps: tuple[BuildStep, ...] = ()
    results: Results | None = None
    create_time: datetime | None = None
    start_time: datetime | None = None
    finish_time: datetime | None = None
    timeout: timedelta | None = None
    images: tuple[str, ...] = ()
    queue_ttl: timedelta | None = None
    artifacts: Artifacts | None = None
    logs_bucket: str = ""
    source_provenance: SourceProvenance | None = None
    build_trigger_id: str = ""
    options: BuildOptions | None = None
    log_url: str = ""
    substitutions: dict[str, str] = msgspec.field(default_factory=dict)
    tags: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()
    timing: dict[str, TimeSpan] = msgspec.field(default_factory=dict)
    approval: BuildApproval | None = None
    service_account: str = ""
    available_secrets: Secrets | None = None
    warnings: tuple[Warning_, ...] = ()
    git_config: GitConfig | None = None
    failure_info: FailureInfo | None = None
    dependencies: tuple[Dependency, ...] = ()
