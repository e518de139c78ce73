"""A Git repository as the source of a build: its commit and files, fetched, and its refs, listed.

Some questions need no checkout: where refs are, which files changed, what a commit's message is.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Mapping

import msgspec

from buildrunner.errors import SourceError
from buildrunner.file_trees import remove_tree
from buildrunner.retry import backoff
from buildrunner.sources.git.checkout import (
    CheckoutFolder,
    GitOptions,
    RevisionMoved,
    WrittenCommit,
)
from buildrunner.sources.git.command import (
    GitCommand,
    Progress,
    fetch_history,
    filter_arguments,
    format_argument,
)
from buildrunner.sources.git.credentials import GitCredentials, access_to
from buildrunner.sources.git.errors import TRANSIENT, GitFailed
from buildrunner.sources.git.mirror import GitMirror, MirrorLease
from buildrunner.sources.git.revision import (
    ResolvedRevision,
    RevisionKind,
    ShortSha,
    complete_sha,
    resolve_revision,
)
from buildrunner.sources.git.url import parse_git_url
from buildrunner.spec.model.results import SourceProvenance
from buildrunner.spec.model.source import Source

_TRIES = 4
_LONGEST_WAIT_S = 30.0
_MOVES = 3


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


class GitPlace(msgspec.Struct, frozen=True, kw_only=True):
    """The allowed origins of one build's fetches, and their folder.

    Attributes:
        mirror: the cache; None: each into a folder of its own, below ``temporary``.
        temporary: where folders outside the cache are made; None: the system's place.
        allow_host: says whether a host may be talked to; empty means this machine. None: all.
        pin: ties an allowed URL to addresses, see `SourceGate`.
    """

    mirror: GitMirror | None = None
    temporary: str | None = None
    allow_host: Callable[[str], bool] | None = None
    pin: Callable[[str], tuple[str, str] | None] | None = None


class ResolvedSource(msgspec.Struct, frozen=True, kw_only=True):
    """The facts that built-in substitutions are made of (see `BuiltIns`).

    Attributes:
        url: the repository's URL, without a password.
        commit_sha: full SHA.
        branch: empty when the revision was no branch.
        tag: empty when the revision was no tag.
        repo_full_name: ``owner/name``.
        files: files and links in the commit.
        size_bytes: their size.
    """

    url: str
    commit_sha: str
    branch: str
    tag: str
    repo_full_name: str
    files: int
    size_bytes: int


class GitCheckout:
    """A fetched commit, until it is released.

    Attributes:
        folder: absolute path, ``.git`` in it; read-only, others may use it too.
        resolved: facts for substitutions.
        provenance: for the Build.
        log: lines for the build's log.
    """

    def __init__(
        self,
        folder: str,
        resolved: ResolvedSource,
        provenance: SourceProvenance,
        log: tuple[str, ...],
        lease: MirrorLease | None,
    ) -> None:
        self.folder = folder
        self.resolved = resolved
        self.provenance = provenance
        self.log = log
        self._lease = lease

    def release(self) -> None:
        """Give the folder back; it is removed unless the cache keeps it. Idempotent."""
        if self._lease is not None:
            self._lease.release()
        else:
            remove_tree(self.folder)


def fetch_git(
    request: GitRequest,
    *,
    mirror: GitMirror | None,
    cancel: threading.Event,
    progress: Progress | None = None,
    allow_host: Callable[[str], bool] | None = None,
    pin: Callable[[str], tuple[str, str] | None] | None = None,
    temporary: str | None = None,
    wait_s: float = 1.0,
) -> GitCheckout:
    """Resolve the revision to a commit, and fetch exactly that, at once or after some tries.

    The commit is requested by its SHA: a push in between changes nothing. If a server can't do that
    (old servers), the revision is resolved again until both agree. Runs in any thread.

    Args:
        request: what to fetch.
        mirror: the cache; None: into a folder of its own, which `GitCheckout.release` removes.
        cancel: kills git within a second when set.
        progress: called from other threads, too.
        allow_host: says whether a host may be talked to; empty means this machine. None: all.
        pin: ties an allowed URL to addresses, see `SourceGate`.
        temporary: where folders outside the cache are made; None: the system's place.
        wait_s: the first pause before another try; it doubles.

    Raises:
        SourceError: one sentence, no credentials in it; nothing is left behind.
    """
    git = git_door(request, cancel, progress, allow_host, pin)
    for tries in range(1, _TRIES):
        try:
            return _fetch_once(request, git, mirror, temporary)
        except GitFailed as failed:
            if failed.kind not in TRANSIENT:
                raise
            git.report(f"Trying again: {failed}")
        cancel.wait(backoff(tries, wait_s, _LONGEST_WAIT_S))
    return _fetch_once(request, git, mirror, temporary)


def git_door(
    request: GitRequest,
    cancel: threading.Event,
    progress: Progress | None,
    allow_host: Callable[[str], bool] | None,
    pin: Callable[[str], tuple[str, str] | None] | None,
) -> GitCommand:
    """The way to a repository: with its credentials, and held to a policy.

    Raises:
        SourceError: the policy does not allow its host.
    """
    url = parse_git_url(request.url)
    access = access_to(url, request.credentials)
    git = GitCommand(
        url,
        environment=access.environment,
        config=access.config,
        secrets=access.secrets,
        cancel=cancel,
        progress=progress,
        allow_host=allow_host,
        pin=pin,
    )
    git.check_host(url.text)
    return git


def _fetch_once(
    request: GitRequest, git: GitCommand, mirror: GitMirror | None, temporary: str | None
) -> GitCheckout:
    for _ in range(_MOVES):
        git.report(f"Resolving {request.revision or 'HEAD'} of {git.url.text}")
        revision = _resolve(request, git, temporary)
        try:
            return _checkout(request, git, revision, mirror, temporary)
        except RevisionMoved:
            git.report(f"{revision.ref} has moved meanwhile: resolving it again")
    raise SourceError(
        f"{request.revision or 'HEAD'} of {git.url.text} moves faster than it can be fetched",
        hint="name a commit",
    )


def _resolve(request: GitRequest, git: GitCommand, temporary: str | None) -> ResolvedRevision:
    try:
        return resolve_revision(git, request.revision, request.kind)
    except ShortSha as short:
        with tempfile.TemporaryDirectory(prefix="buildrunner-git-", dir=temporary) as folder:
            return complete_sha(git, short, folder)


def _checkout(
    request: GitRequest,
    git: GitCommand,
    revision: ResolvedRevision,
    mirror: GitMirror | None,
    temporary: str | None,
) -> GitCheckout:
    if mirror is not None:
        lease = mirror.checkout(git, revision, request.options)
        return _result(request, git, revision, lease.folder, lease.written, lease)
    path = tempfile.mkdtemp(prefix="buildrunner-git-", dir=temporary)
    try:
        os.chmod(path, 0o755)  # what a build sees as its workspace  # noqa: S103
        folder = CheckoutFolder(git, path, request.options)
        folder.init(revision.commit)
        written = folder.measure(folder.fetch(revision))
        folder.write(revision, written.commit)
    except BaseException:
        remove_tree(path)
        raise
    return _result(request, git, revision, path, written, None)


def _result(
    request: GitRequest,
    git: GitCommand,
    revision: ResolvedRevision,
    folder: str,
    written: WrittenCommit,
    lease: MirrorLease | None,
) -> GitCheckout:

    named = revision.tag or revision.branch or revision.ref or request.revision
    # A commit that was asked for by its own name is told once.
    named = "" if named == written.commit else f"{named} "
    state = "in the cache already" if lease is not None and lease.reused else "fetched"
    return GitCheckout(
        folder,
        ResolvedSource(
            url=git.url.text,
            commit_sha=written.commit,
            branch=revision.branch,
            tag=revision.tag,
            repo_full_name=request.full_name or git.url.full_name,
            files=written.files,
            size_bytes=written.size_bytes,
        ),
        provenance_of(request.source, git.url.text, written.commit),
        (f"Source: {git.url.text} {named}at {written.commit} ({state})",),
        lease,
    )


_REFS_TIMEOUT_S = 60.0
_FETCH_TIMEOUT_S = 120.0
_MESSAGE_TIMEOUT_S = 30.0  # of one commit; deliveries of all forges wait for it
_PEELED = "^{}"


def list_refs(request: GitRequest, place: GitPlace, cancel: threading.Event) -> dict[str, str]:
    """Branches and tags of a repository: commit by full name, tags peeled.

    Names that are not UTF-8 are left out: no event could tell of them.

    Args:
        request: the repository; its revision does not count.
        place: where may be fetched from.
        cancel: kills git within a second when set.

    Raises:
        SourceError: the server does not answer, or refuses.
    """
    git = git_door(request, cancel, None, place.allow_host, place.pin)
    text = git.run("ls-remote", "--heads", "--tags", "--", git.url.text, timeout_s=_REFS_TIMEOUT_S)
    found: dict[str, str] = {}
    for line in text.split("\n"):
        sha, _, name = line.partition("\t")
        if name.endswith(_PEELED) and name.removesuffix(_PEELED) in found:
            found[name.removesuffix(_PEELED)] = sha
        elif name and _readable(name) == name:
            found[name] = sha
    return found


def changed_files(
    request: GitRequest,
    old: str,
    new: str,
    *,
    from_merge_base: bool,
    place: GitPlace,
    cancel: threading.Event,
) -> tuple[str, ...]:
    """Paths that differ between two commits; a renamed file counts under both names.

    Only commits and folders are fetched from servers that can leave out the rest.

    Args:
        request: the repository that has both; its revision does not count.
        old: full SHA.
        new: full SHA.
        from_merge_base: compare with the commit that both come from, not with ``old`` itself.
        place: where may be fetched from, and where folders are made.
        cancel: kills git within a second when set.

    Raises:
        SourceError: the server does not answer, refuses, or has not both.
    """
    git = git_door(request, cancel, None, place.allow_host, place.pin)
    with tempfile.TemporaryDirectory(prefix="buildrunner-diff-", dir=place.temporary) as folder:
        git.run("init", "--quiet", "--bare", "--template=", format_argument(new), folder=folder)
        fetch_history(
            git,
            folder,
            (old, new),
            filters=filter_arguments(git, "blob:none", folder),
            depth=0 if from_merge_base else 1,
            timeout_s=_FETCH_TIMEOUT_S,
        )
        if from_merge_base:
            # Both, and then ^BASE for each base; there is none when they have nothing in common.
            three = git.run("rev-parse", f"{old}...{new}", folder=folder).split()
            old = next((one[1:] for one in three if one.startswith("^")), old)
        listed = git.run(
            "diff-tree", "-r", "-z", "--name-only", "--no-renames", old, new, folder=folder
        )
    return tuple(sorted(_readable(name) for name in listed.split("\0") if name.strip("\n")))


def commit_message(
    request: GitRequest, commit: str, *, place: GitPlace, cancel: threading.Event
) -> str:
    """The message of a commit; nothing but the commit is fetched, where the server can do so.

    Args:
        request: the repository that has it; its revision does not count.
        commit: full SHA.
        place: where may be fetched from, and where folders are made.
        cancel: kills git within a second when set.

    Raises:
        SourceError: the server does not answer, refuses, or has it not.
    """
    git = git_door(request, cancel, None, place.allow_host, place.pin)
    with tempfile.TemporaryDirectory(prefix="buildrunner-log-", dir=place.temporary) as folder:
        git.run("init", "--quiet", "--bare", "--template=", format_argument(commit), folder=folder)
        fetch_history(
            git,
            folder,
            (commit,),
            filters=filter_arguments(git, "tree:0", folder),
            depth=1,
            timeout_s=_MESSAGE_TIMEOUT_S,
        )
        return _readable(git.run("log", "-1", "--format=%B", commit, folder=folder).strip())


def _readable(text: str) -> str:
    """The text, with what is not UTF-8 replaced: it is to be compared, stored and shown."""
    return os.fsencode(text).decode("utf-8", "replace")
