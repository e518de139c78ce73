"""Workspaces, by what they begin with."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from buildrunner.wiring.git import with_credentials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from buildrunner.settings import Settings
    from buildrunner.sources.git.source import GitCheckout, GitPlace
    from buildrunner.sources.uploads import OpenUpload
    from buildrunner.spec.model.build import Build
    from buildrunner.spec.model.results import HashType
    from buildrunner.storage.object_store import ObjectStore
    from buildrunner.storage.stores import Stores
    from buildrunner.workspace.protocol import Workspace


def workspace(folder: str | None, *, ignore_file: str = "") -> Workspace:
    """A workspace that begins with ``folder``; empty when None.

    Raises:
        UsageError: no such folder, or no such ignore file.
        SourceError: ignore rules that can't be read.
    """
    from buildrunner.workspace.volume import EmptyWorkspace, FolderWorkspace

    if folder is None:
        return EmptyWorkspace()
    from buildrunner.sources.folder.local_folder import LocalFolder

    return FolderWorkspace(LocalFolder(folder, ignore_file=ignore_file))


def archive_workspace(path: str, hashes: Sequence[HashType] = ()) -> Workspace:
    """A workspace that begins with an archive of this machine; ``hashes`` of it are recorded."""
    from buildrunner.sources.folder.local_folder import LocalArchive
    from buildrunner.workspace.fetched import FetchedWorkspace

    return FetchedWorkspace(LocalArchive(path, hashes))


def storage_workspace(
    build: Build, stores: Stores, *, uploads: OpenUpload | None = None
) -> Workspace | None:
    """A workspace that begins with the build's archive or manifest in a bucket; None without.

    Args:
        build: its source, and its project for an uploaded source.
        stores: which store has which bucket.
        uploads: opens the uploaded source of a build; None where there is no server.

    Raises:
        StorageError: the source is in no bucket that builds may read.
    """
    source = build.source
    hashes = build.options.source_provenance_hash if build.options else ()
    if source is None:
        return None
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
        return FetchedWorkspace(StorageArchive(where, store, hashes=hashes))
    if source.storage_source_manifest:
        from buildrunner.sources.bucket.manifest import StorageManifest
        from buildrunner.workspace.fetched import FetchedWorkspace

        manifest = StorageManifest(source.storage_source_manifest, stores, hashes=hashes)
        return FetchedWorkspace(manifest)
    return None


def git_workspace(checkout: GitCheckout) -> Workspace:
    """A workspace that begins with a fetched commit, and gives it back."""
    from buildrunner.workspace.fetched import GitWorkspace
    from buildrunner.workspace.volume import FolderWorkspace

    return GitWorkspace(checkout, FolderWorkspace)


def with_dependencies(
    workspace: Workspace,
    build: Build,
    settings: Settings,
    place: GitPlace,
) -> Workspace:
    """The workspace, with the build's ``dependencies`` beside the source in it.

    Raises:
        SourceError: a dependency can't be fetched as it is written.
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
