"""Fetches one commit into a folder, measures the commit and writes its files."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from buildrunner.errors import SourceError
from buildrunner.file_trees import remove_tree
from buildrunner.sources.git.command import GitCommand, format_argument
from buildrunner.sources.git.errors import GitFailed
from buildrunner.sources.git.lfs import LfsTransfers
from buildrunner.sources.git.revision import ResolvedRevision, unknown_revision

_SILENT_S = 300.0
_REMOTE_NAME = "origin"
_FETCHED = "refs/buildrunner/fetched"
_BLOCK_BYTES = 4096


class GitOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of a fetch.

    Attributes:
        depth: commits of history; 0 for the whole history.
        tags: fetch the tags that point into the fetched history.
        submodules: fetch submodules, at any depth.
        lfs: fetch the content of Git LFS files; otherwise their pointers stay.
        max_files: a commit with more files and links is refused.
        max_size_bytes: a commit whose files are larger is refused.
    """

    depth: int = 1
    tags: bool = False
    submodules: bool = False
    lfs: bool = False
    max_files: int = 2_000_000
    max_size_bytes: int = 200 * 1024**3


class WrittenCommit(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the folder.

    Attributes:
        commit: full SHA that HEAD names.
        files: files and links of the commit, without those of submodules.
        size_bytes: their size, without LFS content.
    """

    commit: str
    files: int
    size_bytes: int


class RevisionMoved(Exception):
    """The ref names another commit now, and the server serves only commits that refs name."""


class CheckoutFolder:
    """A folder with its own repository and a detached HEAD. Owned by one thread.

    Args:
        git: runs git for the repository's URL.
        path: the folder, created by `init`.
        options: options of the fetch.
    """

    def __init__(self, git: GitCommand, path: str, options: GitOptions) -> None:
        self.path = path
        self._options = options
        self._plain_git = git
        self._git = git
        self._has_filters = False

    def init(self, commit: str) -> None:
        """Create the folder, with an empty repository and its remote.

        Args:
            commit: a full SHA of the remote, whose length decides the object format.
        """
        os.makedirs(self.path, exist_ok=True)
        self._plain_git.run(
            "init",
            "--quiet",
            "--template=",
            "--initial-branch=main",
            format_argument(commit),
            folder=self.path,
        )
        url = self._plain_git.url.text
        self._plain_git.run("remote", "add", _REMOTE_NAME, url, folder=self.path)

    def unlock(self) -> None:
        """Remove the locks and partial packs of a killed git."""
        for folder, folders, names in os.walk(os.path.join(self.path, ".git")):
            if folder.endswith("/objects"):
                folders[:] = [name for name in folders if name in ("pack", "info")]
            for name in names:
                if name.endswith(".lock") or name.startswith("tmp_"):
                    os.unlink(os.path.join(folder, name))

    def fetch(self, revision: ResolvedRevision) -> str:
        """Fetch the commit, and as little else as possible. Returns its SHA.

        Raises:
            GitFailed: see `GitCommand.run`; ``unknown_ref`` if the commit does not exist.
            RevisionMoved: resolve the revision again.
        """
        git = self._plain_git
        git.report(f"Fetching {git.url.text}")
        try:
            if not self._has(revision):
                self._fetch(revision.wanted)
        except GitFailed as failed:
            if failed.kind not in ("not_advertised", "unknown_ref"):
                raise
            if revision.ref:
                self._fetch_ref(revision)
            else:
                self._fetch_everything(revision)
        commit = self._commit_of(revision.wanted)
        if not commit or (revision.ref and commit != revision.commit):
            raise SourceError(
                f"revision {revision.wanted} of {git.url.text} is not a commit",
                hint="name a branch, a tag of a commit, or a commit",
            )
        return commit

    def _has(self, revision: ResolvedRevision) -> bool:
        """Return whether an earlier fetch brought the commit with the requested history."""
        if self._options.depth != 1 or self._options.tags:
            return False
        try:
            with open(os.path.join(self.path, ".git", "shallow"), encoding="ascii") as shallow:
                known = revision.commit in shallow.read().split()
        except FileNotFoundError:
            return False
        return known and self._commit_of(revision.wanted) == revision.commit

    def _fetch(self, what: str, *, depth: bool = True) -> None:
        options = self._options
        arguments = ["fetch", "--progress", "--no-write-fetch-head", "--force"]
        if options.depth and depth:
            arguments.append(f"--depth={options.depth}")
        if not options.tags:
            arguments.append("--no-tags")
        elif not options.depth:
            arguments.append("--tags")
        # git follows tags only for a ref that the refspec stores under a local name.
        refspec = f"+{what}:{_FETCHED}" if ":" not in what else what
        try:
            self._plain_git.run(
                *arguments, _REMOTE_NAME, refspec, folder=self.path, silent_s=_SILENT_S
            )
        except GitFailed as failed:
            if failed.kind != "no_depth" or not depth:
                raise
            self._fetch(what, depth=False)

    def _fetch_ref(self, revision: ResolvedRevision) -> None:
        """Fetch the ref, which must still name the commit, from a server that serves only refs."""
        self._fetch(revision.ref)
        found = self._plain_git.run("rev-parse", _FETCHED, folder=self.path).strip()
        if found != revision.wanted:
            raise RevisionMoved(revision.ref)

    def _fetch_everything(self, revision: ResolvedRevision) -> None:
        """Fetch all branches and tags, for a commit that the server does not serve by its SHA."""
        self._plain_git.report("Fetching the whole history: the server gives out no single commit")
        shallow = os.path.exists(os.path.join(self.path, ".git", "shallow"))
        try:
            self._plain_git.run(
                "fetch",
                "--progress",
                "--no-write-fetch-head",
                "--tags" if self._options.tags else "--no-tags",
                *(["--unshallow"] if shallow else []),
                _REMOTE_NAME,
                "+refs/heads/*:refs/buildrunner/heads/*",
                "+refs/tags/*:refs/buildrunner/tags/*",
                folder=self.path,
                silent_s=_SILENT_S,
            )
        except GitFailed as failed:
            if failed.kind != "not_advertised":
                raise  # otherwise the server's repository is shallow, and lacks the commit
        if not self._commit_of(revision.wanted):
            raise unknown_revision(self._plain_git, revision.wanted)

    def _commit_of(self, name: str) -> str:
        """Return the commit of a local object, or an empty string."""
        try:
            return self._plain_git.run(
                "rev-parse", "--quiet", "--verify", f"{name}^{{commit}}", folder=self.path
            ).strip()
        except GitFailed as failed:
            if failed.kind == "cancelled":
                raise
            return ""

    def measure(self, commit: str) -> WrittenCommit:
        """Measure the commit's files before they are written.

        Raises:
            GitFailed: the files exceed the limits or the free space of the disk.
        """
        files = size = 0
        options = self._options

        def count(line: str) -> bool:
            nonlocal files, size
            files += 1
            length = line.partition("\t")[0].rpartition(" ")[2]
            size += int(length) if length.isdigit() else 0
            return files <= options.max_files and size <= options.max_size_bytes

        self._plain_git.run(
            "ls-tree", "-r", "-l", "--full-tree", commit, folder=self.path, each_line=count
        )
        url = self._plain_git.url.text
        if files > options.max_files or size > options.max_size_bytes:
            raise GitFailed(
                f"commit {commit} of {url} has more than {options.max_files:,} files or "
                f"{options.max_size_bytes // 1024**3:,} GiB",
                kind="refused",
                hint="raise the limits of Git sources if that is meant",
            )
        disk = os.statvfs(self.path)
        needed = size + files * _BLOCK_BYTES
        if not self._written and needed > disk.f_bavail * disk.f_frsize:
            raise GitFailed(
                f"there is no space left on the disk for {url}: commit {commit} needs "
                f"{needed // 1024**2:,} MiB",
                kind="disk",
                hint="make room, or lower the quota of the Git cache",
            )
        return WrittenCommit(commit=commit, files=files, size_bytes=size)

    @property
    def _written(self) -> bool:
        """Return whether a commit is written already."""
        return os.path.exists(os.path.join(self.path, ".git", "index"))

    def write(self, revision: ResolvedRevision, commit: str) -> None:
        """Write exactly the commit to the folder, whatever its earlier content.

        Raises:
            GitFailed: a file name can't be written here, an LFS object or submodule is missing,
                the disk is full, ...
        """
        self._set_filters()
        if self._options.lfs:
            check_lfs_hosts(self._plain_git, self.path, commit)
        if self._options.submodules:
            self._clear()
        elif self._written:
            self._git.run("clean", "-ffdxq", folder=self.path)
        with self._lfs_gate() as git:
            git.run(
                "checkout",
                "--force",
                "--progress",
                "--no-recurse-submodules",
                "--detach",
                commit,
                folder=self.path,
            )
            self._set_refs(revision)
            if self._options.submodules:
                folder = os.path.realpath(self.path)
                update_submodules(git, folder, os.path.join(folder, ".git"))

    @contextmanager
    def _lfs_gate(self) -> Iterator[GitCommand]:
        """Yield a `GitCommand` whose Git LFS connects only to hosts that the policy allows."""
        if not (self._options.lfs and self._plain_git.is_limited):
            yield self._git
            return
        with LfsTransfers(self._plain_git) as transfers:
            yield self._git.with_settings(transfers.settings, {})

    def holds(self, commit: str) -> bool:
        """Return whether the folder has the commit exactly as `write` left it. Changes nothing."""
        self._set_filters()
        try:
            state = self._git.run(
                "status",
                "--porcelain=v2",
                "--branch",
                "--untracked-files=all",
                "--ignored",
                folder=self.path,
            )
        except GitFailed as failed:
            if failed.kind == "cancelled":
                raise
            return False
        lines = state.splitlines()
        return f"# branch.oid {commit}" in lines and all(line.startswith("# ") for line in lines)

    def _clear(self) -> None:
        """Remove everything except the repository itself."""
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name == ".git":
                    continue
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    os.unlink(entry.path)
        if self._written:
            os.unlink(os.path.join(self.path, ".git", "index"))

    def _set_filters(self) -> None:
        if not self._has_filters:
            config, environment = filter_settings(self._plain_git, self.path, lfs=self._options.lfs)
            self._git = self._plain_git.with_settings(config, environment)
            self._has_filters = True

    def _set_refs(self, revision: ResolvedRevision) -> None:
        """Set only the requested ref, as a user's fetch would."""
        refs = os.path.join(self.path, ".git", "refs")
        if not self._options.tags:
            remove_tree(os.path.join(refs, "tags"))
        remove_tree(os.path.join(refs, "remotes"))
        os.makedirs(os.path.join(refs, "tags"), exist_ok=True)
        name = ""
        if revision.tag:
            name = f"refs/tags/{revision.tag}"
        elif revision.branch:
            name = f"refs/remotes/{_REMOTE_NAME}/{revision.branch}"
        if name:
            self._plain_git.run("update-ref", name, revision.wanted, folder=self.path)
        remove_tree(os.path.join(refs, "buildrunner"))


_FILTER_KEY = re.compile(r"filter\.(.+)\.(?:clean|smudge|process|required)")
_NO_FILTER = (("clean", ""), ("smudge", ""), ("process", ""), ("required", "false"))
_LFS = (
    ("filter.lfs.clean", "git-lfs clean -- %f"),
    ("filter.lfs.smudge", "git-lfs smudge -- %f"),
    ("filter.lfs.process", "git-lfs filter-process"),
    ("filter.lfs.required", "true"),
    # With several workers, git may write ``.lfsconfig`` after the files that need it.
    ("checkout.workers", "1"),
    # Per file. After a transient failure, the whole fetch is retried (see `fetch_git`).
    ("lfs.transfer.maxretries", "2"),
)


def filter_settings(
    git: GitCommand, folder: str, *, lfs: bool
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return settings and environment that turn off every filter of the user's configuration.

    Args:
        git: runs git.
        folder: a repository.
        lfs: let Git LFS replace pointers by content.

    Raises:
        SourceError: LFS is requested, and git-lfs is not installed.
    """
    names = git.run("config", "--list", "--name-only", folder=folder)
    drivers = {found[1] for line in names.split("\n") if (found := _FILTER_KEY.fullmatch(line))}
    config = [
        (f"filter.{driver}.{key}", value) for driver in sorted(drivers) for key, value in _NO_FILTER
    ]
    if not lfs:
        return config, {}
    if shutil.which("git-lfs") is None:
        raise SourceError("Git LFS is not installed", hint="install git-lfs")
    return [*config, *_LFS], {"GIT_LFS_SKIP_SMUDGE": "0"}


def check_lfs_hosts(git: GitCommand, folder: str, commit: str) -> None:
    """Refuse LFS servers in the commit's ``.lfsconfig`` that the policy does not allow.

    Raises:
        SourceError: there is such a server, or the file is a link, which LFS would follow.
    """
    entry = git.run("ls-tree", commit, "--", ".lfsconfig", folder=folder)
    if entry and not entry.startswith("100"):
        raise SourceError(
            f".lfsconfig of {git.url.text} is not a file in commit {commit}",
            hint="commit the settings of Git LFS as a file",
        )
    try:
        listed = git.run(
            "config", "--blob", f"{commit}:.lfsconfig", "--null", "--list", folder=folder
        )
    except GitFailed as failed:
        if failed.kind == "cancelled":
            raise
        return  # the file is missing, or Git LFS can't read it either
    for entry in listed.split("\0"):
        key, _, value = entry.partition("\n")
        if "\n" in value or "\r" in value:  # git-lfs reads each line as a setting
            raise SourceError(
                f"{key} in .lfsconfig of {git.url.text} has a line end in commit {commit}",
                hint="write the setting in one line",
            )
        if key.endswith("url"):
            git.check_host(value)


_MAX_DEPTH = 20
_GITLINK = re.compile(r"160000 [0-9a-f]+ 0\t(.+)\n")
_GIT_FILE = "gitdir: "


def update_submodules(git: GitCommand, folder: str, repository: str, *, depth: int = 0) -> None:
    """Fetch and write the submodules of ``folder``, recursively, at depth 1 if possible.

    This works level by level, since the hosts of a level must be checked before its fetch. The
    submodules are those of the index: ``.gitmodules`` can name any folder of the machine.

    Args:
        git: runs git.
        folder: the working tree. No part of its path is a link.
        repository: its Git folder, which holds those of the submodules.
        depth: the level of the submodules.

    Raises:
        GitFailed: a submodule can't be fetched, or its protocol is not allowed.
        SourceError: a host is not allowed, the nesting is too deep, or a submodule is elsewhere.
    """
    if not os.path.isfile(os.path.join(folder, ".gitmodules")):
        return
    submodules = _submodules(git, folder)
    if not submodules:
        return
    clones = os.path.join(repository, "modules")
    for path in submodules:
        _clone_of(git, folder, path, clones)
    if depth >= _MAX_DEPTH:
        raise SourceError(
            f"the submodules of {git.url.text} are nested more than {_MAX_DEPTH} deep",
            hint="a submodule may contain itself",
        )
    git.run("submodule", "--quiet", "init", folder=folder)
    git.run("submodule", "--quiet", "sync", folder=folder)
    for _, url in _submodule_settings(git, folder, "url"):
        git.check_host(url)
    try:
        _update(git, folder, "--depth=1")
    except GitFailed as failed:
        # The host serves no partial history, or only the last commits of branches.
        if failed.kind not in ("no_depth", "not_advertised"):
            raise
        # A clone at depth 1 would never fetch deeper history.
        git.run("submodule", "--quiet", "deinit", "--force", "--all", folder=folder)
        remove_tree(clones)
        _update(git, folder)
    for path in submodules:
        if clone := _clone_of(git, folder, path, clones):
            update_submodules(git, os.path.join(folder, path), clone, depth=depth + 1)


def _update(git: GitCommand, folder: str, *depth: str) -> None:
    # In place of a command (!...), a merge or a rebase.
    updates = _submodule_settings(git, folder, "update")
    writing = [(key, "checkout") for key, value in updates if value != "none"]
    git.with_settings(writing, {}).run(
        *("submodule", "update", "--init", "--force", "--progress", *depth, "--jobs=4"),
        folder=folder,
        silent_s=_SILENT_S,
    )


def _submodules(git: GitCommand, folder: str) -> list[str]:
    """Return the paths of the submodules in the index.

    Raises:
        SourceError: old versions of Git would shorten a path.
    """
    found: list[str] = []

    def take(line: str) -> bool:
        if gitlink := _GITLINK.fullmatch(line):
            found.append(gitlink[1])
        return True

    git.run(*("-c", "core.quotePath=false", "ls-files", "--stage"), folder=folder, each_line=take)
    for path in found:
        if path.startswith('"'):
            raise SourceError(
                f"the path {path} of a submodule of {git.url.text} is not supported",
                hint="use a path without quotation marks, backslashes and control characters",
            )
    return found


def _clone_of(git: GitCommand, folder: str, path: str, clones: str) -> str:
    """Return the Git folder of a submodule; empty if the submodule is not checked out.

    Raises:
        SourceError: the path leads through a link, or the Git folder is not one of ``clones``.
    """
    outside = SourceError(f"the submodule {path} of {git.url.text} leads out of the repository")
    inner = os.path.join(folder, path)
    if os.path.realpath(inner) != inner:
        raise outside
    try:
        with open(os.path.join(inner, ".git"), "rb") as file:
            text = os.fsdecode(file.read(_LARGEST_BYTES)).rstrip("\r\n")
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        raise outside from error
    clone = os.path.realpath(os.path.join(inner, text.removeprefix(_GIT_FILE)))
    if not text.startswith(_GIT_FILE) or not clone.startswith(f"{clones}/"):
        raise outside
    return clone


def _submodule_settings(git: GitCommand, folder: str, name: str) -> list[tuple[str, str]]:
    """Return the submodules' settings of a name, also those of included files."""
    listed = git.run("config", "--null", "--list", folder=folder)
    settings = (entry.partition("\n") for entry in listed.split("\0"))
    return [
        (key, value)
        for key, _, value in settings
        if key.startswith("submodule.") and key.endswith(f".{name}")
    ]


_LARGEST_BYTES = 16 * 1024**2


def read_file(folder: str, path: str) -> bytes | None:
    """Return a file's content; None if the file does not exist or is a folder.

    A symbolic link is followed only inside the folder: error messages quote the config, and must
    quote nothing that is outside of the repository.

    Args:
        folder: folder of the checkout, which does not change meanwhile.
        path: path relative to the folder.

    Raises:
        SourceError: the path leads out of the folder, or the file is too large, can't be read or is
            not a regular file.
    """
    root = os.path.realpath(folder)
    found = os.path.realpath(os.path.join(root, path))
    inner = os.path.relpath(found, root).split(os.sep, 1)[0]
    if inner in (os.pardir, ".git"):
        raise SourceError(f"{path} leads out of the files of the repository")
    try:
        status = os.stat(found)
        if stat.S_ISDIR(status.st_mode):
            return None
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST_BYTES:
            raise SourceError(f"{path} of the repository is no file that could be a config")
        with open(found, "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SourceError(f"{path} of the repository can't be read: {error.strerror}") from error
