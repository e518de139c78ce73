"""What lies in the cache of checkouts besides them: locks, and what each one holds.

See git_mirror.py for where. Locks are the kernel's (flock): they end with the process that holds
them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from typing import TYPE_CHECKING

import msgspec

from buildrunner.sources.git_errors import GitFailed

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

_LOCK_POLL_S = 0.05


class CheckoutState(msgspec.Struct, frozen=True, kw_only=True):
    """What a checkout holds."""

    commit: str
    revision: str
    files: int
    size_bytes: int
    disk_bytes: int


class FileLock:
    """One lock file, open. `close` gives the lock back."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def take(self, *, exclusive: bool) -> bool:
        """Take the lock if nobody keeps us from it."""
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(self._descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self, cancel: threading.Event, url: str) -> None:
        """Take the lock when the others are done (the kernel's own wait can't be cancelled)."""
        while not self.take(exclusive=True):
            if cancel.wait(_LOCK_POLL_S):
                raise GitFailed(f"fetching {url} was cancelled", kind="cancelled")

    def share(self) -> None:
        """Let others in who only read."""
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def detach(self) -> int:
        """Give the open file away."""
        descriptor, self._descriptor = self._descriptor, -1
        return descriptor

    def close(self) -> None:
        """Give the lock back. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def folders_in(path: str) -> Iterator[str]:
    """Paths of the folders in one, sorted; none where it is missing."""
    try:
        with os.scandir(path) as entries:
            yield from sorted(entry.path for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return


def checkout_numbers(home: str) -> Iterator[str]:
    """Names of the checkouts of a repository."""
    for path in folders_in(home):
        name = os.path.basename(path)
        if name.isdecimal() and os.path.exists(os.path.join(home, f"{name}.lock")):
            yield name


def read_state(home: str, number: str) -> CheckoutState | None:
    """What a checkout holds; None while it is being changed."""
    try:
        with open(os.path.join(home, f"{number}.json"), "rb") as file:
            return msgspec.json.decode(file.read(), type=CheckoutState)
    except (OSError, msgspec.DecodeError):
        return None


def write_state(home: str, number: str, state: CheckoutState) -> None:
    """Say that a checkout is whole, and what it holds."""
    path = os.path.join(home, f"{number}.json")
    with open(f"{path}.new", "wb") as file:
        file.write(msgspec.json.encode(state))
    os.replace(file.name, path)


def forget_state(home: str, number: str) -> None:
    """From now on nobody takes the checkout for whole."""
    path = os.path.join(home, f"{number}.json")
    if os.path.exists(path):
        os.unlink(path)


def discard(root: str, home: str, number: str) -> None:
    """Remove a checkout. Whoever holds its lock may make it anew."""
    forget_state(home, number)
    path = os.path.join(home, number)
    if not os.path.exists(path):
        return
    trash = os.path.join(root, f"trash-{os.path.basename(home)}-{number}-{os.getpid()}")
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def count_packs(folder: str) -> int:
    """How many packs a checkout's repository has."""
    try:
        names = os.listdir(os.path.join(folder, ".git", "objects", "pack"))
    except OSError:
        return 0
    return sum(1 for name in names if name.endswith(".pack"))


def repository_bytes(folder: str) -> int:
    """What a checkout's repository takes, without the files that are written out."""
    size = 0
    for path, _, names in os.walk(os.path.join(folder, ".git")):
        size += sum(os.lstat(os.path.join(path, name)).st_size for name in names)
    return size
