"""The sources of builds: Git repositories, and workspaces by their initial content."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from buildrunner.settings import Settings
    from buildrunner.sources.git.command import Progress
    from buildrunner.sources.git.mirror import GitMirror
    from buildrunner.sources.git.source import GitCheckout, GitPlace, GitRequest
    from buildrunner.sources.policy import SourcePolicy
    from buildrunner.sources.uploads import OpenUpload
    from buildrunner.spec.model.build import Build
    from buildrunner.spec.model.results import HashType
    from buildrunner.spec.model.source import Source
    from buildrunner.storage.object_store import ObjectStore
    from buildrunner.storage.stores import Stores
    from buildrunner.workspace.protocol import Workspace


_LIMIT_S = 120.0


def git_mirror(settings: Settings) -> GitMirror:
    """Return the cache of Git repositories that the settings name."""
    from buildrunner.settings import cache_folder
    from buildrunner.sources.git.mirror import GitMirror

    folder = settings.git.cache or os.path.join(cache_folder(), "git")
    return GitMirror(
        folder,
        quota_bytes=settings.git.cache_gib * 2**30,
        project=settings.git.project,
    )


def git_place(
    settings: Settings, *, folder: str = "", policy: SourcePolicy | None = None
) -> GitPlace:
    """Return the allowed origins of one build's fetches, and their folder.

    Args:
        settings: settings that name the cache.
        folder: folder to use in place of the cache; the caller removes it.
        policy: allowed origins of fetches; None allows all.
    """
    from buildrunner.sources.git.source import GitPlace

    mirror = None if folder else git_mirror(settings)
    if policy is None:
        return GitPlace(mirror=mirror, temporary=folder or None)
    from buildrunner.sources.git.room import FetchRoom
    from buildrunner.sources.policy import SourceGate

    gate = SourceGate(policy)
    return GitPlace(
        mirror=mirror,
        temporary=folder or None,
        allow_host=gate.allows,
        pin=gate.pin,
        room=FetchRoom(policy.largest_bytes) if policy.largest_bytes else None,
    )


def git_request(source: Source, settings: Settings) -> GitRequest:
    """Return the request of a Git source, completed by the settings.

    Raises:
        SourceError: the location of the repository is unknown, or a token is not available.
    """
    from buildrunner.sources.git.checkout import GitOptions
    from buildrunner.sources.git.source import request_of

    request = request_of(
        source, project_id=settings.project_id, repositories=settings.git.repositories
    )
    options = GitOptions(submodules=settings.git.submodules, lfs=settings.git.lfs)
    return with_credentials(replace(request, options=options), settings)


def with_credentials(request: GitRequest, settings: Settings) -> GitRequest:
    """Return the request with the credentials for its host, unless its URL has a password.

    Raises:
        SourceError: a token is not available.
    """
    from buildrunner.sources.git.credentials import GitAccess, credentials_for
    from buildrunner.sources.git.url import parse_git_url

    git = settings.git
    access = GitAccess(
        tokens=git.tokens,
        ssh_keys=git.ssh_keys,
        known_hosts=git.known_hosts,
        host_keys=git.host_keys,
    )
    url = parse_git_url(request.url)
    if url.password:  # the URL itself has precedence
        return request
    return replace(request, credentials=credentials_for(url, access, os.environ))


def fetch_git_source(
    source: Source,
    settings: Settings,
    place: GitPlace,
    *,
    cancel: threading.Event,
    progress: Progress | None = None,
    is_named_commit: bool = False,
) -> GitCheckout:
    """Fetch a Git source as the settings say, in the calling thread.

    Args:
        source: the source.
        settings: settings with credentials.
        place: the allowed hosts, and the folder.
        cancel: kills git within a second when set.
        progress: called from other threads, too.
        is_named_commit: the revision is a commit, even if a branch or tag has its name.

    Raises:
        SourceError: the source can't be fetched; no files are left behind.
    """
    from buildrunner.sources.git.source import fetch_git

    request = git_request(source, settings)
    return fetch_git(
        replace(request, kind="commit") if is_named_commit else request,
        mirror=place.mirror,
        cancel=cancel,
        progress=progress,
        allow_host=place.allow_host,
        pin=place.pin,
        temporary=place.temporary,
        room=place.room,
    )


class GitRemotes:
    """Queries Git servers with the credentials of the settings, within a policy. Thread-safe.

    Args:
        settings: settings with credentials.
        policy: allowed servers; None allows all.
        limit_s: maximum time for one query, in seconds.
    """

    def __init__(
        self, settings: Settings, policy: SourcePolicy | None, limit_s: float = _LIMIT_S
    ) -> None:
        self._settings = settings
        self._policy = policy
        self._limit_s = limit_s
        self._asking: set[threading.Event] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def stop(self) -> None:
        """Cancel all queries, and refuse further ones. Idempotent."""
        with self._lock:
            self._stopped = True
            for cancel in self._asking:
                cancel.set()

    def list_refs(self, url: str) -> dict[str, str]:
        """See `sources.git.source.list_refs`."""
        from buildrunner.sources.git.source import list_refs

        with self._time_limit(url) as cancel:
            return list_refs(self._request(url), self._place(), cancel)

    def message(self, url: str, commit: str) -> str:
        """See `sources.git.source.commit_message`."""
        from buildrunner.sources.git.source import commit_message

        with self._time_limit(url) as cancel:
            return commit_message(self._request(url), commit, place=self._place(), cancel=cancel)

    def changed_files(self, url: str, old: str, new: str, from_merge_base: bool) -> tuple[str, ...]:
        """See `sources.git.source.changed_files`."""
        from buildrunner.sources.git.source import changed_files

        with self._time_limit(url) as cancel:
            return changed_files(
                self._request(url),
                old,
                new,
                from_merge_base=from_merge_base,
                place=self._place(),
                cancel=cancel,
            )

    @contextmanager
    def _time_limit(self, url: str) -> Iterator[threading.Event]:
        """Provide an event that is set when the time is over, or when all queries are cancelled.

        Raises:
            GitFailed: the event was set.
        """
        from buildrunner.sources.git.errors import GitFailed

        cancel = threading.Event()
        timer = threading.Timer(self._limit_s, cancel.set)
        timer.daemon = True
        with self._lock:
            self._asking.add(cancel)
            if self._stopped:
                cancel.set()
        timer.start()
        try:
            yield cancel
        except GitFailed as error:
            if error.kind != "cancelled" or self._stopped:
                raise
            said = f"{url} did not answer within {self._limit_s:g} s"
            raise GitFailed(said, kind="stalled") from error
        finally:
            timer.cancel()
            with self._lock:
                self._asking.discard(cancel)

    def _request(self, url: str) -> GitRequest:
        from buildrunner.sources.git.source import GitRequest

        return with_credentials(GitRequest(url=url), self._settings)

    def _place(self) -> GitPlace:
        return git_place(self._settings, policy=self._policy)


def workspace(folder: str | None, *, ignore_file: str = "") -> Workspace:
    """Return a workspace that begins with ``folder``; an empty one for None.

    Raises:
        UsageError: the folder or the ignore file does not exist.
        SourceError: the ignore rules can't be read.
    """
    from buildrunner.workspace.volume import EmptyWorkspace, FolderWorkspace

    if folder is None:
        return EmptyWorkspace()
    from buildrunner.sources.local_folder import LocalFolder

    return FolderWorkspace(LocalFolder(folder, ignore_file=ignore_file))


def archive_workspace(path: str, hashes: Sequence[HashType] = ()) -> Workspace:
    """Return a workspace that begins with a local archive; its ``hashes`` are recorded."""
    from buildrunner.sources.local_folder import LocalArchive
    from buildrunner.workspace.fetched import FetchedWorkspace

    return FetchedWorkspace(LocalArchive(path, hashes))


def storage_workspace(
    build: Build, stores: Stores, *, uploads: OpenUpload | None = None, largest_bytes: int = 0
) -> Workspace | None:
    """Return a workspace that begins with the build's archive or manifest in a bucket.

    Returns None for a build without one.

    Args:
        build: the Build with the source, and with the project of an uploaded source.
        stores: stores of buckets.
        uploads: opens the uploaded source of a build; None without a server.
        largest_bytes: the most bytes of the source's files; 0 for those of `ArchiveLimits`.

    Raises:
        StorageError: the source is in no bucket that builds can read.
    """
    source = build.source
    hashes = build.options.source_provenance_hash if build.options else ()
    if source is None:
        return None
    from buildrunner.archives.members import ArchiveLimits

    limits = ArchiveLimits()
    if largest_bytes:
        limits = replace(limits, size_bytes=min(limits.size_bytes, largest_bytes))
    if source.storage_source:
        from buildrunner.sources.bucket.archive import StorageArchive
        from buildrunner.sources.uploads import UploadedSource
        from buildrunner.storage.stores import UPLOADS_BUCKET
        from buildrunner.workspace.fetched import FetchedWorkspace

        where = source.storage_source
        store: ObjectStore
        if where.bucket == UPLOADS_BUCKET:
            open_upload = uploads or partial(UploadedSource, "")
            store = open_upload(build.project_id, where)
        else:
            store = stores.store_of(where.bucket, where.object)
        return FetchedWorkspace(StorageArchive(where, store, hashes=hashes, limits=limits))
    if source.storage_source_manifest:
        from buildrunner.sources.bucket.manifest import StorageManifest
        from buildrunner.workspace.fetched import FetchedWorkspace

        manifest = StorageManifest(
            source.storage_source_manifest, stores, hashes=hashes, limits=limits
        )
        return FetchedWorkspace(manifest)
    return None


def git_workspace(checkout: GitCheckout) -> Workspace:
    """Return a workspace that begins with a fetched commit, and releases the checkout."""
    from buildrunner.workspace.fetched import GitWorkspace
    from buildrunner.workspace.volume import FolderWorkspace

    return GitWorkspace(checkout, FolderWorkspace)


def with_dependencies(
    workspace: Workspace,
    build: Build,
    settings: Settings,
    place: GitPlace,
) -> Workspace:
    """Return the workspace with the build's ``dependencies`` beside the source.

    Raises:
        SourceError: a dependency is invalid, or a token for it is not available.
    """
    wanted = [one.git_source for one in build.dependencies if one.git_source is not None]
    if not wanted:
        return workspace
    from buildrunner.workspace.dependencies import (
        DependentWorkspace,
        GitDependency,
        dependency_request,
    )

    dependencies = [
        GitDependency(
            with_credentials(dependency_request(one), settings),
            one.dest_path,
            place,
        )
        for one in wanted
    ]
    return DependentWorkspace(workspace, dependencies)
