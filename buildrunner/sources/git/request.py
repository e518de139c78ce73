"""The Git repository and revision that a Build's ``source`` names."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from buildrunner.errors import SourceError
from buildrunner.sources.git.checkout import GitOptions
from buildrunner.sources.git.credentials import GitCredentials
from buildrunner.sources.git.revision import RevisionKind
from buildrunner.spec.model.results import SourceProvenance
from buildrunner.spec.model.source import Source


class GitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to fetch one revision of a repository.

    Attributes:
        url: URL, scp-like address or path of the repository. Credentials in it are used, and
            appear nowhere.
        revision: branch, tag, SHA or full ref; empty: the remote's HEAD.
        kind: what the revision must be.
        source: the message of the Build that asks for it; provenance is a copy of it.
        full_name: ``owner/name`` where it is not what the URL says.
        options: how much of the repository.
        credentials: None: git finds its own.
    """

    url: str
    revision: str = ""
    kind: RevisionKind = "any"
    source: Source | None = None
    full_name: str = ""
    options: GitOptions = GitOptions()
    credentials: GitCredentials | None = None


def request_of(
    source: Source, *, project_id: str, repositories: Mapping[str, str] | None = None
) -> GitRequest:
    """Return the request in a Build's ``source``, when it is a Git repository.

    Args:
        source: with ``git_source``, ``repo_source`` or ``connected_repository``.
        project_id: project of sources that name none.
        repositories: where repositories are whose message holds no URL: name -> URL.

    Raises:
        SourceError: it is no Git source, its ``dir`` leaves the repository, or nobody says where
            the repository is.
    """
    repositories = repositories or {}
    git, repo, connected = source.git_source, source.repo_source, source.connected_repository
    if git is not None:
        _check_dir(git.dir)
        return GitRequest(url=git.url, revision=git.revision, source=source)
    if repo is not None:
        _check_dir(repo.dir)
        project = repo.project_id or project_id
        url = repositories.get(repo.repo_name) or (
            f"https://source.developers.google.com/p/{project}/r/{repo.repo_name}"
        )
        kind: RevisionKind = "branch" if repo.branch_name else "tag" if repo.tag_name else "commit"
        revision = repo.branch_name or repo.tag_name or repo.commit_sha or ""
        return GitRequest(
            url=url,
            revision=revision,
            kind=kind if revision else "any",
            source=source,
            full_name=repo.repo_name,
        )
    if connected is not None:
        _check_dir(connected.dir)
        url = repositories.get(connected.repository, "")
        if not url:
            raise SourceError(
                f"nobody says where {connected.repository} is",
                hint="map the repository's name to its Git URL in the settings",
            )
        return GitRequest(url=url, revision=connected.revision, source=source)
    raise SourceError("the source is not a Git repository")


def _check_dir(folder: str) -> None:
    if folder.startswith("/") or ".." in folder.split("/"):
        raise SourceError(
            f"dir {folder!r} of the source leaves the repository",
            hint="give a path below the root of the repository",
        )


def provenance_of(source: Source | None, url: str, commit: str) -> SourceProvenance:
    """``sourceProvenance``: the source's own message with the commit in place of its revision.

    Args:
        source: what asked for it; None: a Git source that a flag gave.
        url: the repository, without credentials.
        commit: full SHA.

    Source: ``SourceProvenance.resolvedGitSource``, ``resolvedRepoSource``,
        ``resolvedConnectedRepository``.
    """
    from buildrunner.spec.model.source import GitSource

    if source is not None and source.repo_source is not None:
        return SourceProvenance(
            resolved_repo_source=msgspec.structs.replace(
                source.repo_source, branch_name=None, tag_name=None, commit_sha=commit
            )
        )
    if source is not None and source.connected_repository is not None:
        return SourceProvenance(
            resolved_connected_repository=msgspec.structs.replace(
                source.connected_repository, revision=commit
            )
        )
    folder = source.git_source.dir if source is not None and source.git_source else ""
    return SourceProvenance(resolved_git_source=GitSource(url=url, dir=folder, revision=commit))
