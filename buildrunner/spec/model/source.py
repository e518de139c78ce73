"""Messages of the Build resource that describe the origin of its files."""

from __future__ import annotations

import enum
import re
from typing import ClassVar, Final

import msgspec

from buildrunner.spec.model.message import Int64, Message


class SourceFetcher(enum.Enum):
    """The program with which the hosted service fetches an archive."""

    SOURCE_FETCHER_UNSPECIFIED = 0
    GSUTIL = 1
    GCS_FETCHER = 2


class StorageSource(Message, frozen=True, kw_only=True):
    """An archive in a bucket."""

    bucket: str = ""
    object: str = ""
    generation: Int64 = 0
    source_fetcher: SourceFetcher = SourceFetcher.SOURCE_FETCHER_UNSPECIFIED


class RepoSource(Message, frozen=True, kw_only=True):
    """A revision of a Cloud Source Repository."""

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "revision": ("branch_name", "tag_name", "commit_sha")
    }

    project_id: str = ""
    repo_name: str = ""
    branch_name: str | None = None
    tag_name: str | None = None
    commit_sha: str | None = None
    dir: str = ""
    invert_regex: bool = False
    substitutions: dict[str, str] = msgspec.field(default_factory=dict)


class GitSource(Message, frozen=True, kw_only=True):
    """A revision of any Git repository."""

    url: str = ""
    dir: str = ""
    revision: str = ""


class StorageSourceManifest(Message, frozen=True, kw_only=True):
    """A list of files in a bucket."""

    bucket: str = ""
    object: str = ""
    generation: Int64 = 0


class ConnectedRepository(Message, frozen=True, kw_only=True):
    """A revision of a repository connected to the project."""

    repository: str = ""
    dir: str = ""
    revision: str = ""


class Source(Message, frozen=True, kw_only=True):
    """The origin of the workspace's files: one kind only."""

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {
        "source": (
            "storage_source",
            "repo_source",
            "git_source",
            "storage_source_manifest",
            "connected_repository",
        )
    }

    storage_source: StorageSource | None = None
    repo_source: RepoSource | None = None
    git_source: GitSource | None = None
    storage_source_manifest: StorageSourceManifest | None = None
    connected_repository: ConnectedRepository | None = None


class HttpConfig(Message, frozen=True, kw_only=True):
    """The HTTP proxy of Git."""

    REFUSED: ClassVar[dict[str, str]] = {
        "proxy_secret_version_name": (
            "Git runs on this machine: set its proxy in the environment (https_proxy) or in Git's "
            "own configuration (http.proxy)"
        )
    }

    proxy_secret_version_name: str = ""


class GitConfig(Message, frozen=True, kw_only=True):
    """Settings for the Git operations of the build."""

    http: HttpConfig | None = None


class GitSourceRepository(Message, frozen=True, kw_only=True):
    """The repository of a dependency."""

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"repotype": ("url", "developer_connect")}
    REFUSED: ClassVar[dict[str, str]] = {
        "developer_connect": (
            "Developer Connect links exist only inside Google Cloud; give the repository's url"
        )
    }

    url: str | None = None
    developer_connect: str | None = None


class GitSourceDependency(Message, frozen=True, kw_only=True):
    """A Git repository that is fetched before the steps."""

    repository: GitSourceRepository | None = None
    revision: str = ""
    recurse_submodules: bool = False
    depth: Int64 = 0
    dest_path: str = ""
    fetch_tags: bool = False


class Dependency(Message, frozen=True, kw_only=True):
    """A dependency that is fetched before the steps, or ``empty`` for no source at all."""

    ONEOFS: ClassVar[dict[str, tuple[str, ...]]] = {"dep": ("empty", "git_source")}

    empty: bool | None = None
    git_source: GitSourceDependency | None = None


BUCKET_NAME: Final = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
"""A regular expression for the name of a bucket, without groups or anchors."""


_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def is_commit(text: str | None) -> bool:
    """Return whether a text is the full id of a Git commit, by SHA-1 or SHA-256."""
    return text is not None and _COMMIT.fullmatch(text) is not None


def may_be_commit(text: str) -> bool:
    """Return whether a text may be the id of a Git commit, whole or shortened."""
    return re.fullmatch(r"[0-9a-fA-F]{4,64}", text) is not None


def is_bucket_name(text: str) -> bool:
    """Return whether ``text`` is the name of a bucket, without scheme or folder."""
    return re.fullmatch(BUCKET_NAME, text, re.ASCII) is not None
