"""A cache of checkouts on this machine, so that the next build fetches only changes.

Each repository (URL, options and owner of credentials) has its own folder::

    NAME-HASH/lock         held while a checkout is fetched or removed; one at a time
    NAME-HASH/0/           a checkout with its own repository, for builds
    NAME-HASH/0.lock       shared by the builds that use it, exclusive for changes
    NAME-HASH/0.json       its content; absent while it is being changed, and after a failure
    NAME-HASH/0.size       its size while 0.json is absent

A build whose commit is in a checkout shares that checkout. No build writes to a checkout: steps
write to layers above it, or to copies. Another commit is fetched into an unused checkout, so that
git transfers and writes only the difference. If none is unused, the commit is fetched into a new
checkout that starts with a copy of the objects.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from buildrunner.errors import SourceError
from buildrunner.file_trees import disk_bytes, remove_tree
from buildrunner.sources.git.checkout import CheckoutFolder, GitOptions, WrittenCommit
from buildrunner.sources.git.command import GitCommand
from buildrunner.sources.git.errors import REMOTE, GitFailed
from buildrunner.sources.git.revision import ResolvedRevision

DEFAULT_QUOTA_BYTES = 20 * 1024**3
_Note = TypeVar("_Note", bound=msgspec.Struct)

_MANY_PACKS = 20
_TRASH = "trash."  # no folder of a repository has a full stop in its name
# Failures that a fresh checkout would not cure.
_OURS_TO_KEEP = REMOTE | {"cancelled", "disk", "refused"}


class MirrorLease:
    """A checkout in the cache, while the lease is held.

    Attributes:
        folder: absolute path; must not be written to.
        written: its content.
        reused: it existed already.
    """

    def __init__(self, folder: str, written: WrittenCommit, lock: int, *, reused: bool) -> None:
        self.folder = folder
        self.written = written
        self.reused = reused
        self._lock = lock

    def release(self) -> None:
        """Release the lease, so that other processes may change or remove the checkout.

        Idempotent.
        """
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


class GitMirror:
    """The cache. Any number of processes and threads may use the same folder.

    Args:
        folder: its folder, created when needed, private to this user.
        quota_bytes: its size limit; the least recently used checkouts are removed first.
            Checkouts in use always stay.
        project: project of the builds; empty for builds without a server. Projects share no
            checkouts: those may have submodules and LFS files that only one project's credentials
            can read, and a fetch that a build makes long holds up others of the repository.
    """

    def __init__(
        self,
        folder: str,
        *,
        quota_bytes: int = DEFAULT_QUOTA_BYTES,
        project: str = "",
    ) -> None:
        self._folder = os.path.abspath(folder)
        self._quota_bytes = quota_bytes
        self._project = project

    def checkout(
        self, git: GitCommand, revision: ResolvedRevision, options: GitOptions
    ) -> MirrorLease:
        """Lease a checkout of the commit. Waits for other fetches of the same repository.

        A broken checkout is removed and fetched again.

        Raises:
            GitFailed, SourceError, RevisionMoved: as `CheckoutFolder`; a new checkout that failed
                is removed, an old one stays unchanged or is marked as incomplete.
        """
        repository = _Repository(self._folder, git, options, self._project)
        try:
            lease = repository.lease(revision)
        except OSError as error:
            raise SourceError(
                f"the Git cache {self._folder} can't be used: {error.strerror}",
                hint="make room or check its permissions, or pass --no-git-cache",
            ) from error
        try:
            self.trim()
        except OSError as error:  # the checkout exists, so errors with leftovers are ignored
            git.report(f"The Git cache {self._folder} can't be trimmed: {error.strerror}")
        return lease

    def hold(self, folder: str, commit: str) -> MirrorLease | None:
        """Lease a checkout again, for a build that resumes after its process has died.

        Before that, other processes may change the checkout.

        Args:
            folder: the earlier `GitCheckout.folder`.
            commit: full SHA of the checkout.

        Returns:
            None if the checkout is not in the cache, or was changed: the build can't resume with
            it.
        """
        home, number = os.path.split(folder)
        path = os.path.join(home, f"{number}.lock")
        if os.path.dirname(home) != self._folder or not os.path.exists(path):
            return None
        lock = FileLock(path)
        state = read_state(home, number) if lock.take(exclusive=False) else None
        if state is None or state.commit != commit:
            lock.close()
            return None
        written = WrittenCommit(commit=commit, files=state.files, size_bytes=state.size_bytes)
        return MirrorLease(folder, written, lock.detach(), reused=True)

    def trim(self) -> int:
        """Remove unused checkouts beyond the quota. Returns the remaining bytes."""
        kept: list[tuple[int, int, str, str]] = []
        for home in folders_in(self._folder):
            if os.path.basename(home).startswith(_TRASH):
                remove_tree(home)
                continue
            for number in checkout_numbers(home):
                state = read_state(home, number)
                used_ns = os.stat(os.path.join(home, f"{number}.lock")).st_mtime_ns
                size = state.disk_bytes if state else self._incomplete_bytes(home, number)
                kept.append((used_ns, size, home, number))
        total = sum(size for _, size, _, _ in kept)
        for _, size, home, number in sorted(kept):
            if total <= self._quota_bytes:
                break
            if self._remove_if_free(home, number):
                total -= size
        return total

    def _incomplete_bytes(self, home: str, number: str) -> int:
        """Return the size of a checkout without a state, which can be as large as a complete one.

        While it is being changed, this is its size before: its build trims the cache afterwards. It
        is measured once after a change that failed, or whose process died.
        """
        noted = noted_size(home, number)
        if noted is not None and not noted.is_changing:
            return noted.disk_bytes
        with _locked_if_free(home, number) as is_free:
            if noted is not None and not is_free:
                return noted.disk_bytes
        size = disk_bytes(os.path.join(home, number))
        with _locked_if_free(home, number) as is_free:
            if is_free and noted_size(home, number) == noted:
                note_size(home, number, CheckoutSize(size, is_changing=False))
        return size

    def _remove_if_free(self, home: str, number: str) -> bool:
        with _locked_if_free(home, number) as is_free:
            if is_free:
                discard(self._folder, home, number)
            return is_free


class _Repository:
    """One repository's part of the cache."""

    def __init__(self, root: str, git: GitCommand, options: GitOptions, project: str) -> None:
        from hashlib import sha256

        key = f"{git.url.text}\0{options.depth}{options.tags}{options.submodules}{options.lfs}"
        if project:
            key += f"\0{project}"
        name = "".join(c if c.isalnum() else "-" for c in git.url.full_name[-40:])
        digest = sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        self._root = root
        self._home = os.path.join(root, f"{name}-{digest[:24]}")
        self._git = git
        self._options = options

    def lease(self, revision: ResolvedRevision) -> MirrorLease:
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        os.makedirs(self._home, mode=0o700, exist_ok=True)
        with FileLock(os.path.join(self._home, "lock")) as lock:
            if not lock.take(exclusive=True):
                self._git.report("Waiting for another build that fetches the same repository")
                lock.wait(self._git.cancel, self._git.url.text)
            shared = self._find(revision)
            return shared if shared is not None else self._change(revision)

    def _find(self, revision: ResolvedRevision) -> MirrorLease | None:
        """Return a checkout that has the commit already."""
        for number in checkout_numbers(self._home):
            state = read_state(self._home, number)
            if state is None or (state.commit, state.revision) != (
                revision.commit,
                revision.ref,
            ):
                continue
            lock = FileLock(self._path(f"{number}.lock"))
            if lock.take(exclusive=False) and self._folder(number).holds(state.commit):
                written = WrittenCommit(
                    commit=state.commit, files=state.files, size_bytes=state.size_bytes
                )
                return self._leased(number, lock, written, reused=True)
            lock.close()
        return None

    def _change(self, revision: ResolvedRevision) -> MirrorLease:
        """Fetch the commit into an unused checkout."""
        number, lock = self._free(revision)
        is_new = not self._has_objects(number)
        try:
            before = CheckoutSize(self._size_before(number), is_changing=True)
            note_size(self._home, number, before)
            try:
                written = self._fill(number, revision)
            except GitFailed as failed:
                is_too_large = failed.kind == "too_large"
                if failed.kind in _OURS_TO_KEEP or not self._has_objects(number):
                    raise
                if is_too_large and is_new:
                    raise
                # Objects that earlier builds fetched count, too, and may be too many.
                why = "too large" if is_too_large else "broken"
                self._git.report(f"Fetching the repository anew: its copy in the cache is {why}")
                discard(self._root, self._home, number)
                written = self._fill(number, revision)
        except BaseException as error:
            is_too_large = isinstance(error, GitFailed) and error.kind == "too_large"
            is_useless = read_state(self._home, number) is None and not self._has_head(number)
            if is_too_large or is_useless:
                discard(self._root, self._home, number)
            lock.close()
            raise
        lock.share()
        return self._leased(number, lock, written, reused=False)

    def _size_before(self, number: str) -> int:
        """Return the size of a checkout before a change, as far as it is known."""
        state = read_state(self._home, number)
        if state is not None:
            return state.disk_bytes
        noted = noted_size(self._home, number)
        return noted.disk_bytes if noted is not None else repository_bytes(self._path(number))

    def _fill(self, number: str, revision: ResolvedRevision) -> WrittenCommit:
        with self._git.filling(self._path(number)):
            return self._fetched(number, revision)

    def _fetched(self, number: str, revision: ResolvedRevision) -> WrittenCommit:
        folder = self._folder(number)
        if os.path.isdir(os.path.join(folder.path, ".git")):
            folder.unlock()
        else:
            folder.init(revision.commit)
        commit = folder.fetch(revision)
        written = folder.measure(commit)
        forget_state(self._home, number)
        folder.write(revision, commit)
        if count_packs(folder.path) > _MANY_PACKS:
            self._git.run("repack", "--geometric=2", "-d", "--quiet", folder=folder.path)
        state = CheckoutState(
            commit=commit,
            revision=revision.ref,
            files=written.files,
            size_bytes=written.size_bytes,
            disk_bytes=self._size_of(folder.path, written),
        )
        write_state(self._home, number, state)
        return written

    def _size_of(self, path: str, written: WrittenCommit) -> int:
        if self._options.submodules or self._options.lfs:  # whose files `written` does not count
            return disk_bytes(path)
        return written.size_bytes + repository_bytes(path)

    def _free(self, revision: ResolvedRevision) -> tuple[str, FileLock]:
        """Return an unused checkout, locked; preferably one of the same branch."""
        numbers = list(checkout_numbers(self._home))
        states = {number: read_state(self._home, number) for number in numbers}

        def distance(number: str) -> tuple[bool, bool]:
            state = states[number]
            return (state is None, state is None or state.revision != revision.ref)

        for number in sorted(numbers, key=distance):
            lock = FileLock(self._path(f"{number}.lock"))
            if lock.take(exclusive=True):
                return number, lock
            lock.close()
        new = next(str(n) for n in range(len(numbers) + 1) if str(n) not in numbers)
        lock = FileLock(self._path(f"{new}.lock"))
        if not lock.take(exclusive=True):
            lock.wait(self._git.cancel, self._git.url.text)
        seed = next((number for number in numbers if states[number] is not None), None)
        if seed is not None:
            self._seed(seed, new)
        return new, lock

    def _seed(self, old: str, new: str) -> None:
        """Copy the objects of another checkout.

        A copy, not links: a build that uses the other checkout would see its files change (ctime).
        """
        target = self._path(new)
        os.mkdir(target)
        shutil.copytree(
            os.path.join(self._path(old), ".git"),
            os.path.join(target, ".git"),
            symlinks=True,
            ignore=shutil.ignore_patterns("index", "*.lock", "tmp_*"),
        )

    def _leased(
        self, number: str, lock: FileLock, written: WrittenCommit, *, reused: bool
    ) -> MirrorLease:
        os.utime(self._path(f"{number}.lock"))
        return MirrorLease(self._path(number), written, lock.detach(), reused=reused)

    def _folder(self, number: str) -> CheckoutFolder:
        return CheckoutFolder(self._git, self._path(number), self._options)

    def _has_objects(self, number: str) -> bool:
        """Return whether earlier fetched objects exist, which may be broken."""
        return count_packs(self._path(number)) > 0 or self._has_head(number)

    def _has_head(self, number: str) -> bool:
        return os.path.exists(os.path.join(self._path(number), ".git", "index"))

    def _path(self, name: str) -> str:
        return os.path.join(self._home, name)


_LOCK_POLL_S = 0.05


class CheckoutState(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a checkout."""

    commit: str
    revision: str
    files: int
    size_bytes: int
    disk_bytes: int


class CheckoutSize(msgspec.Struct, frozen=True):
    """The size of a checkout without a state.

    Attributes:
        disk_bytes: the size; that of before, while it is being changed.
        is_changing: a change has begun. If nobody has the checkout's lock, the change has failed.
    """

    disk_bytes: int
    is_changing: bool


class FileLock:
    """One open lock file. `close` releases the lock."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, *, exclusive: bool) -> bool:
        """Acquire the lock without waiting. Returns whether that succeeded."""
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self, cancel: threading.Event, url: str) -> None:
        """Wait for the lock (by polling, since the kernel's own wait can't be cancelled)."""
        while not self.take(exclusive=True):
            if cancel.wait(_LOCK_POLL_S):
                raise GitFailed(f"fetching {url} was cancelled", kind="cancelled")

    def share(self) -> None:
        """Make the lock shared, for other readers."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def detach(self) -> int:
        """Return the open file to the caller, who then owns it."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        """Release the lock. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def folders_in(path: str) -> Iterator[str]:
    """Return the paths of subfolders, sorted; none if the folder is missing."""
    try:
        with os.scandir(path) as entries:
            yield from sorted(entry.path for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return


def checkout_numbers(home: str) -> Iterator[str]:
    """Return the names of the checkouts of a repository."""
    for path in folders_in(home):
        name = os.path.basename(path)
        if name.isdecimal() and os.path.exists(os.path.join(home, f"{name}.lock")):
            yield name


def read_state(home: str, number: str) -> CheckoutState | None:
    """Return the content of a checkout; None while it is being changed."""
    return _read(os.path.join(home, f"{number}.json"), CheckoutState)


def write_state(home: str, number: str, state: CheckoutState) -> None:
    """Record that a checkout is complete, and its content."""
    _write(os.path.join(home, f"{number}.json"), state)


def forget_state(home: str, number: str) -> None:
    """Mark a checkout as incomplete."""
    path = os.path.join(home, f"{number}.json")
    if os.path.exists(path):
        os.unlink(path)


def noted_size(home: str, number: str) -> CheckoutSize | None:
    """Return the noted size of a checkout; None if it was never noted."""
    return _read(os.path.join(home, f"{number}.size"), CheckoutSize)


def note_size(home: str, number: str, size: CheckoutSize) -> None:
    """Note the size of a checkout that has no state, or soon has none."""
    _write(os.path.join(home, f"{number}.size"), size)


def _read(path: str, kind: type[_Note]) -> _Note | None:
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=kind)
    except (OSError, msgspec.DecodeError):
        return None


def _write(path: str, note: msgspec.Struct) -> None:
    with open(f"{path}.new", "wb") as file:
        file.write(msgspec.json.encode(note))
    os.replace(file.name, path)


@contextmanager
def _locked_if_free(home: str, number: str) -> Iterator[bool]:
    """Hold the locks of a checkout that no build uses or changes; else give False.

    The lock of the repository comes first, so that no build takes the checkout for used.
    """
    with (
        FileLock(os.path.join(home, "lock")) as repository_lock,
        FileLock(os.path.join(home, f"{number}.lock")) as lock,
    ):
        yield repository_lock.take(exclusive=True) and lock.take(exclusive=True)


def discard(root: str, home: str, number: str) -> None:
    """Remove a checkout. The holder of its lock may create it again."""
    forget_state(home, number)
    note_size(home, number, CheckoutSize(0, is_changing=True))
    path = os.path.join(home, number)
    if not os.path.exists(path):
        return
    trash = os.path.join(root, f"{_TRASH}{os.path.basename(home)}-{number}-{os.getpid()}")
    os.rename(path, trash)
    remove_tree(trash)


def count_packs(folder: str) -> int:
    """Return the number of packs of a checkout's repository."""
    try:
        names = os.listdir(os.path.join(folder, ".git", "objects", "pack"))
    except OSError:
        return 0
    return sum(1 for name in names if name.endswith(".pack"))


def repository_bytes(folder: str) -> int:
    """Return the size of a checkout's repository, without the working tree."""
    size = 0
    for path, _, names in os.walk(os.path.join(folder, ".git")):
        size += sum(os.lstat(os.path.join(path, name)).st_size for name in names)
    return size
