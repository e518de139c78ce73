"""The BuildTrigger resource: which events start which build."""

from __future__ import annotations

import enum
from datetime import datetime
from typing import ClassVar

import msgspec

from buildrunner.spec.model.build import Build
from buildrunner.spec.model.message import Int64, Message
from buildrunner.spec.model.results import ApprovalConfig
from buildrunner.spec.model.source import RepoSource


class CommentControl(enum.Enum):
    """Whether a pull request needs a ``/gcbrun`` comment."""

    COMMENTS_DISABLED = 0
    COMMENTS_ENABLED = 1
    COMMENTS_ENABLED_FOR_EXTERNAL_CONTRIBUTORS_ONLY = 2


class PubsubState(enum.Enum):
    """Whether a Pub/Sub trigger can receive messages."""

    STATE_UNSPECIFIED = 0
    OK = 1
    SUBSCRIPTION_DELETED = 2
    TOPIC_DELETED = 3
    SUBSCRIPTION_MISCONFIGURED = 4


class WebhookState(enum.Enum):
    """Whether a webhook trigger can check its callers."""

    STATE_UNSPECIFIED = 0
    OK = 1
    SECRET_DELETED = 2


class RepoType(enum.Enum):
    """The forge of a repository."""

    UNKNOWN = 0
    CLOUD_SOURCE_REPOSITORIES = 1
    GITHUB = 2
    BITBUCKET_SERVER = 3
    GITLAB = 4


class RepositoryType(enum.Enum):
    """The forge of a connected repository."""

    REPOSITORY_TYPE_UNSPECIFIED = 0
    GITHUB = 1
    GITHUB_ENTERPRISE = 2
    GITLAB_ENTERPRISE = 3


class IncludeBuildLogs(enum.Enum):
    """Whether the log is shown on the forge (in the service's newer schema only)."""

    INCLUDE_BUILD_LOGS_UNSPECIFIED = 0
    INCLUDE_BUILD_LOGS_WITH_STATUS = 1


class EventType(enum.Enum):
    """The kind of event that fires the trigger (in the service's newer schema only)."""

    EVENT_TYPE_UNSPECIFIED = 0
    REPO = 1
    WEBHOOK = 2
    PUBSUB = 3
    MANUAL = 4


class PushFilter(Message, frozen=True, kw_only=True):
    """A filter for pushes, by branches or tags."""

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"git_ref": ("branch", "tag")}

    branch: str | None = None
    tag: str | None = None
    invert_regex: bool = False


class PullRequestFilter(Message, frozen=True, kw_only=True):
    """A filter for pull requests, by target branches."""

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"git_ref": ("branch",)}

    branch: str | None = None
    comment_control: CommentControl = CommentControl.COMMENTS_DISABLED
    invert_regex: bool = False


class GitHubEventsConfig(Message, frozen=True, kw_only=True):
    """Events of a repository on GitHub."""

    NEWER: ClassVar[tuple[str, ...]] = ("enterprise_config_resource_name",)
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"event": ("pull_request", "push")}

    enterprise_config_resource_name: str = ""
    installation_id: Int64 = 0
    owner: str = ""
    name: str = ""
    pull_request: PullRequestFilter | None = None
    push: PushFilter | None = None


class GitLabEventsConfig(Message, frozen=True, kw_only=True):
    """Events of a project on a GitLab server (in the service's newer schema only)."""

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"event": ("pull_request", "push")}
    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("gitlab_config",)

    project_namespace: str = ""
    gitlab_config_resource: str = ""
    gitlab_config: dict[str, str] = msgspec.field(default_factory=dict)
    pull_request: PullRequestFilter | None = None
    push: PushFilter | None = None


class BitbucketServerTriggerConfig(Message, frozen=True, kw_only=True):
    """Events of a repository on a Bitbucket server (in the service's newer schema only)."""

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"event": ("pull_request", "push")}
    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("bitbucket_server_config",)

    repo_slug: str = ""
    project_key: str = ""
    bitbucket_server_config_resource: str = ""
    bitbucket_server_config: dict[str, str] = msgspec.field(default_factory=dict)
    pull_request: PullRequestFilter | None = None
    push: PushFilter | None = None


class RepositoryEventConfig(Message, frozen=True, kw_only=True):
    """Events of a connected repository."""

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"filter": ("pull_request", "push")}
    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("repository_type",)

    repository: str = ""
    repository_type: RepositoryType = RepositoryType.REPOSITORY_TYPE_UNSPECIFIED
    pull_request: PullRequestFilter | None = None
    push: PushFilter | None = None


class PubsubConfig(Message, frozen=True, kw_only=True):
    """Messages of a Pub/Sub topic."""

    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("subscription", "state")

    subscription: str = ""
    topic: str = ""
    service_account_email: str = ""
    state: PubsubState = PubsubState.STATE_UNSPECIFIED


class WebhookConfig(Message, frozen=True, kw_only=True):
    """Calls of a URL with a secret."""

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"auth_method": ("secret",)}
    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("state",)

    secret: str | None = None
    state: WebhookState = WebhookState.STATE_UNSPECIFIED


class CronConfig(Message, frozen=True, kw_only=True):
    """Times at which the trigger fires by itself (in the service's newer schema only)."""

    schedule: str = ""
    time_zone: str = ""


class GitFileSource(Message, frozen=True, kw_only=True):
    """A config file in a repository."""

    NEWER: ClassVar[tuple[str, ...]] = ("bitbucket_server_config",)
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "source": ("repository",),
        "enterprise_config": ("github_enterprise_config", "bitbucket_server_config"),
    }

    path: str = ""
    uri: str = ""
    repository: str | None = None
    repo_type: RepoType = RepoType.UNKNOWN
    revision: str = ""
    github_enterprise_config: str | None = None
    bitbucket_server_config: str | None = None


class GitRepoSource(Message, frozen=True, kw_only=True):
    """The source to check out when the event names no repository."""

    NEWER: ClassVar[tuple[str, ...]] = ("bitbucket_server_config",)
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "source": ("repository",),
        "enterprise_config": ("github_enterprise_config", "bitbucket_server_config"),
    }

    uri: str = ""
    repository: str | None = None
    ref: str = ""
    repo_type: RepoType = RepoType.UNKNOWN
    github_enterprise_config: str | None = None
    bitbucket_server_config: str | None = None


class BuildTrigger(Message, frozen=True, kw_only=True):
    """A template of builds and the events that start them."""

    NEWER: ClassVar[tuple[str, ...]] = (
        "gitlab_enterprise_events_config",
        "bitbucket_server_trigger_config",
        "cron",
        "include_build_logs",
        "event_type",
    )
    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "build_template": ("autodetect", "build", "filename", "git_file_source")
    }
    OUTPUT_ONLY: ClassVar[tuple[str, ...]] = ("resource_name", "id", "create_time", "event_type")

    resource_name: str = ""
    id: str = ""
    description: str = ""
    name: str = ""
    tags: tuple[str, ...] = ()
    trigger_template: RepoSource | None = None
    github: GitHubEventsConfig | None = None
    pubsub_config: PubsubConfig | None = None
    webhook_config: WebhookConfig | None = None
    gitlab_enterprise_events_config: GitLabEventsConfig | None = None
    bitbucket_server_trigger_config: BitbucketServerTriggerConfig | None = None
    cron: CronConfig | None = None
    autodetect: bool | None = None
    build: Build | None = None
    filename: str | None = None
    git_file_source: GitFileSource | None = None
    create_time: datetime | None = None
    disabled: bool = False
    substitutions: dict[str, str] = msgspec.field(default_factory=dict)
    ignored_files: tuple[str, ...] = ()
    included_files: tuple[str, ...] = ()
    filter: str = ""
    source_to_build: GitRepoSource | None = None
    approval_config: ApprovalConfig | None = None
    service_account: str = ""
    repository_event_config: RepositoryEventConfig | None = None
    include_build_logs: IncludeBuildLogs = IncludeBuildLogs.INCLUDE_BUILD_LOGS_UNSPECIFIED
    event_type: EventType = EventType.EVENT_TYPE_UNSPECIFIED
