"""The space on the disk that the Git fetches of one build may take together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from buildrunner.errors import SourceError
from buildrunner.file_trees import disk_bytes
from buildrunner.sources.git.errors import GitFailed

_LOOK_S = 0.1
_PAUSE_S = 0.5
_PAUSES_PER_MEASURE = 5.0  # a pause is at least that many times as long as the last measurement


class FetchRoom:
    """Limits the sum of all files that the fetches of one build write. For one fetch at a time.

    The system limits each file (`GitLimits.file_bytes`); only a measurement shows the sum: a server
    may send many objects, submodules and files of Git LFS. While a folder is being filled, a thread
    measures it again and again, sooner if the disk loses much space.

    Args:
        limit_bytes: the most bytes of all fetches together.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = self._left = limit_bytes
        self._over = threading.Event()

    @property
    def left_bytes(self) -> int:
        """Return what the fetches so far have left."""
        return max(self._left, 0)

    @property
    def is_over(self) -> bool:
        """Return whether the folder that is being filled is larger than it may be."""
        return self._over.is_set()

    @contextmanager
    def filled(self, folder: str, url: str) -> Iterator[None]:
        """Measure a folder while the block fills it. At its end, what it takes is taken.

        Args:
            folder: the folder; what it contains already counts, too.
            url: the repository, for messages.

        Raises:
            GitFailed: ``too_large``.
            SourceError: the folder can't be measured.
        """
        self._over.clear()
        ended = threading.Event()
        thread = threading.Thread(target=self._watch, args=(folder, ended), daemon=True)
        thread.start()
        try:
            yield
        except Exception as error:
            if self.is_over and not (isinstance(error, GitFailed) and error.kind == "cancelled"):
                raise too_large(url) from error
            raise
        finally:
            ended.set()
            thread.join()
        try:
            used = disk_bytes(folder)
        except OSError as error:
            raise SourceError(f"the fetched files can't be measured: {error}") from error
        if self.is_over or used > self._left:
            self._over.set()
            raise too_large(url)
        self._left -= used

    def _watch(self, folder: str, ended: threading.Event) -> None:
        pause_s, used = _PAUSE_S, 0
        while self._wait(folder, pause_s, max(self._left - used, self._limit // 10) // 2, ended):
            began_s = time.monotonic()
            try:
                used = disk_bytes(folder, ended)
            except OSError:  # a folder that can't be measured may have any size
                used = self._left + 1
            if used > self._left:
                self._over.set()
                return
            pause_s = max(_PAUSE_S, _PAUSES_PER_MEASURE * (time.monotonic() - began_s))

    @staticmethod
    def _wait(folder: str, pause_s: float, may_lose: int, ended: threading.Event) -> bool:
        """Wait until it is time to measure, or the disk lost much. Returns False at the end."""
        until_s = time.monotonic() + pause_s
        free = _free_bytes(folder)
        while (left_s := until_s - time.monotonic()) > 0:
            if ended.wait(min(_LOOK_S, left_s)):
                return False
            if free - _free_bytes(folder) > may_lose:
                break
        return not ended.is_set()


def too_large(url: str) -> GitFailed:
    """Return the error for a fetch that takes more than a build may."""
    return GitFailed(
        f"{url} takes more of the disk than is allowed here",
        kind="too_large",
        hint="serve --max-build-disk-gib limits what a build may fetch, with all submodules, files "
        "of Git LFS and dependencies; a question of the server itself gets 1 GiB",
    )


def _free_bytes(folder: str) -> int:
    try:
        disk = os.statvfs(folder)
    except OSError:  # it does not exist yet
        return 0
    return disk.f_bavail * disk.f_frsize
