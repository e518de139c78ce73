"""A Git repository as the source of a build: fetches its commit and files, and lists its refs.

Some queries need no checkout: refs, changed files, messages of commits.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import Final

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
    NO_LIMITS,
    GitCommand,
    GitLimits,
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
from buildrunner.sources.git.room import FetchRoom
from buildrunner.sources.git.url import parse_git_url
from buildrunner.spec.model.results import SourceProvenance
from buildrunner.spec.model.source import Source

_TRIES = 4
_LONGEST_WAIT_S = 30.0
_MOVES = 3


class GitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to fetch one revision of a repository.

    Attributes:
        url: URL, scp-like address or path of the repository. Credentials in it are used, but
            never shown.
        revision: branch, tag, SHA or full ref; empty: the remote's HEAD.
        kind: the required kind of the revision.
        source: ``source`` of the Build, which the provenance copies; None if a flag names the
            repository.
        full_name: ``owner/name`` if it differs from the URL.
        options: options of the fetch.
        credentials: None lets git use the user's own.
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
    """Return the request in a Build's ``source``, if it is a Git repository.

    Args:
        source: with ``git_source``, ``repo_source`` or ``connected_repository``.
        project_id: project of sources that name no project.
        repositories: URLs of repositories whose message has no URL, by name.

    Raises:
        SourceError: ``source`` is not a Git repository, its ``dir`` leaves the repository, or the
            repository's URL is unknown.
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
    """Return ``sourceProvenance``: the source's own message with the commit as its revision.

    Args:
        source: the Build's source; None for a Git source from a flag.
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
    """The allowed hosts of one build's fetches, and their folder.

    Attributes:
        mirror: the cache; None: each fetch into its own folder, below ``temporary``.
        temporary: parent of folders outside the cache; None: the system's temporary folder.
        allow_host: returns whether a host is allowed; empty means this machine. None: all.
        pin: ties an allowed URL to addresses, see `SourceGate`.
        room: limits what all of these fetches write; None sets no limit.
    """

    mirror: GitMirror | None = None
    temporary: str | None = None
    allow_host: Callable[[str], bool] | None = None
    pin: Callable[[str], tuple[str, str] | None] | None = None
    room: FetchRoom | None = None


class ResolvedSource(msgspec.Struct, frozen=True, kw_only=True):
    """The facts for built-in substitutions (see `BuiltIns`).

    Attributes:
        url: the repository's URL, without a password.
        commit_sha: full SHA.
        branch: branch; empty if the revision is no branch.
        tag: tag; empty if the revision is no tag.
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
    """A fetched commit, valid until it is released.

    Attributes:
        folder: absolute path, with ``.git``; read-only, since other builds may use it.
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
        """Release the folder, which is removed unless it is in the cache. Idempotent."""
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
    room: FetchRoom | None = None,
) -> GitCheckout:
    """Resolve the revision to a commit, and fetch exactly that, with retries.

    The commit is requested by its SHA, so a push in between has no effect. Old servers serve only
    commits that refs name: if the ref has moved, the revision is resolved again, at most three
    times in all. Runs in any thread.

    Args:
        request: the request.
        mirror: the cache; None: fetch into a new folder, which `GitCheckout.release` removes.
        cancel: kills git within a second when set.
        progress: called from other threads, too.
        allow_host: returns whether a host is allowed; empty means this machine. None: all.
        pin: ties an allowed URL to addresses, see `SourceGate`.
        temporary: parent of folders outside the cache; None: the system's temporary folder.
        wait_s: the first pause before a retry; it doubles.
        room: see `GitPlace`.

    Raises:
        SourceError: one sentence without credentials; nothing is left behind.
    """
    # The shell takes a limit of 0 bytes for none.
    limits = GitLimits(file_bytes=max(room.left_bytes, 512)) if room is not None else NO_LIMITS
    git = git_for_request(request, cancel, progress, allow_host, pin, limits, room)
    for tries in range(1, _TRIES):
        try:
            return _fetch_once(request, git, mirror, temporary)
        except GitFailed as failed:
            if failed.kind not in TRANSIENT:
                raise
            git.report(f"Trying again: {failed}")
        cancel.wait(backoff(tries, wait_s, _LONGEST_WAIT_S))
    return _fetch_once(request, git, mirror, temporary)


def git_for_request(
    request: GitRequest,
    cancel: threading.Event,
    progress: Progress | None,
    allow_host: Callable[[str], bool] | None,
    pin: Callable[[str], tuple[str, str] | None] | None,
    limits: GitLimits = NO_LIMITS,
    room: FetchRoom | None = None,
) -> GitCommand:
    """Return a `GitCommand` for a repository, with its credentials and under a policy.

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
        limits=limits,
        room=room,
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
        with (
            tempfile.TemporaryDirectory(prefix="buildrunner-git-", dir=temporary) as folder,
            git.filling(folder),
        ):
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
        os.chmod(path, 0o755)  # the mode of a workspace  # noqa: S103
        folder = CheckoutFolder(git, path, request.options)
        with git.filling(path):
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
    # A commit that was requested by SHA is named only once.
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
_MESSAGE_TIMEOUT_S = 30.0  # short, since deliveries of all forges wait for it
_PEELED = "^{}"
_MOST_BYTES = 1 << 30
_LIMITS = GitLimits(output_bytes=32 << 20, memory_bytes=1 << 30, file_bytes=_MOST_BYTES)
"""Limits of the server's own questions. 32 MiB are 400,000 refs, which take git 130 MB."""
MOST_REFS: Final = 100_000
_LONGEST_MESSAGE = 64 << 10


def list_refs(request: GitRequest, place: GitPlace, cancel: threading.Event) -> dict[str, str]:
    """Return branches and tags of a repository: commit by full name, tags peeled.

    Names that are not UTF-8 are skipped, since no event can contain them.

    Args:
        request: the repository; its revision is ignored.
        place: the allowed hosts.
        cancel: kills git within a second when set.

    Raises:
        SourceError: the server does not answer, or refuses, or it has more than `MOST_REFS`.
    """
    git = git_for_request(request, cancel, None, place.allow_host, place.pin, _LIMITS)
    text = git.run("ls-remote", "--heads", "--tags", "--", git.url.text, timeout_s=_REFS_TIMEOUT_S)
    found: dict[str, str] = {}
    for line in text.split("\n"):
        sha, _, name = line.partition("\t")
        if name.endswith(_PEELED) and name.removesuffix(_PEELED) in found:
            found[name.removesuffix(_PEELED)] = sha
        elif name and _readable(name) == name:
            found[name] = sha
    if len(found) > MOST_REFS:
        raise SourceError(
            f"{git.url.text} has {len(found):,} branches and tags; the server looks for missed"
            f" pushes among {MOST_REFS:,} at most"
        )
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
    """Return the paths that differ between two commits; a renamed file counts under both names.

    Only commits and folders are fetched from servers that support partial clones.

    Args:
        request: the repository with both commits; its revision is ignored.
        old: full SHA.
        new: full SHA.
        from_merge_base: compare with the merge base instead of ``old``.
        place: the allowed hosts, and the parent of temporary folders.
        cancel: kills git within a second when set.

    Raises:
        SourceError: the server does not answer, refuses, or lacks a commit.
    """
    git = _asking(request, place, cancel)
    with (
        tempfile.TemporaryDirectory(prefix="buildrunner-diff-", dir=place.temporary) as folder,
        git.filling(folder),
    ):
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
            # Prints both commits, then ^BASE for each merge base (none without a common history).
            three = git.run("rev-parse", f"{old}...{new}", folder=folder).split()
            old = next((one[1:] for one in three if one.startswith("^")), old)
        listed = git.run(
            "diff-tree", "-r", "-z", "--name-only", "--no-renames", old, new, folder=folder
        )
    return tuple(sorted(_readable(name) for name in listed.split("\0") if name.strip("\n")))


def commit_message(
    request: GitRequest, commit: str, *, place: GitPlace, cancel: threading.Event
) -> str:
    """Return the message of a commit; fetches only the commit if the server supports that.

    A very long message is cut.

    Args:
        request: the repository with the commit; its revision is ignored.
        commit: full SHA.
        place: the allowed hosts, and the parent of temporary folders.
        cancel: kills git within a second when set.

    Raises:
        SourceError: the server does not answer, refuses, or lacks the commit.
    """
    git = _asking(request, place, cancel)
    with (
        tempfile.TemporaryDirectory(prefix="buildrunner-log-", dir=place.temporary) as folder,
        git.filling(folder),
    ):
        git.run("init", "--quiet", "--bare", "--template=", format_argument(commit), folder=folder)
        fetch_history(
            git,
            folder,
            (commit,),
            filters=filter_arguments(git, "tree:0", folder),
            depth=1,
            timeout_s=_MESSAGE_TIMEOUT_S,
        )
        lines: list[str] = []
        size = 0

        def take(line: str) -> bool:
            nonlocal size
            lines.append(line)
            size += len(line)
            return size < _LONGEST_MESSAGE

        git.run("log", "-1", "--format=%B", commit, folder=folder, each_line=take)
        return _readable("".join(lines)[:_LONGEST_MESSAGE].strip())


def _asking(request: GitRequest, place: GitPlace, cancel: threading.Event) -> GitCommand:
    """Return the `GitCommand` for a question of the server that fetches something."""
    room = FetchRoom(_MOST_BYTES)
    return git_for_request(request, cancel, None, place.allow_host, place.pin, _LIMITS, room)


def _readable(text: str) -> str:
    """Return the text with invalid UTF-8 replaced, since it is compared, stored and shown."""
    return os.fsencode(text).decode("utf-8", "replace")
