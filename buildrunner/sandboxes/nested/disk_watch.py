"""How much of the disk a sandbox uses: measured again and again until it is too much."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from buildrunner.errors import EngineError
from buildrunner.sandboxes.nested.container import DATA, FOLDER
from buildrunner.workspace.protocol import WORKSPACE

LEAST_FILES = 1_000_000
BYTES_PER_FILE = 16 << 10
"""A file system with ext4 has room for one file, folder or link in so many bytes."""

_LOOK_S = 1.0
_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 30.0
_LONGEST_MEASURE_S = 240
_MISSES = 12  # a minute, and longer where measuring takes long
_PATIENCE_S = 600.0

# In a user namespace, steps can write to no other folders of the sandbox's disk; and they can write
# to files that have no name any more, which `du` can't see.
_WRITABLE = f"{DATA} {WORKSPACE} {FOLDER} /etc /opt /run /tmp /var/tmp"
_MEASURE = (
    "timeout",
    "--signal=KILL",
    str(_LONGEST_MEASURE_S),
    "sh",
    "-c",
    f"du -sxc --block-size=1 {_WRITABLE} 2> /dev/null | tail -n 1 | cut -f 1; "
    f"du -sxc --inodes {_WRITABLE} 2> /dev/null | tail -n 1 | cut -f 1; "
    "find -L /proc/[0-9]*/fd /proc/[0-9]*/map_files -maxdepth 1 -type f -links 0 "
    "-printf '%D:%i %b\\n' 2> /dev/null | sort -u | "
    "awk '{ n += $2 } END { printf \"%.0f %d\", n * 512, NR }'",
)
"""Prints bytes and number of files with a name, then bytes and number of open files without one."""


_MEASURE_OWN = (
    "sh",
    "-c",
    f"stat -f -c '%b %f %S %c %d' {DATA} {WORKSPACE} | "
    "awk '{ bytes += ($1 - $2) * $3; files += $4 - $5 } "
    'END { printf "%.0f %d 0 0", bytes, files }\'',
)
"""Prints the same for a sandbox whose volumes are file systems of their own."""


def most_files(limit_bytes: int) -> int:
    """Return how many files, folders and links a sandbox may have."""
    return max(LEAST_FILES, limit_bytes // BYTES_PER_FILE)


class DiskWatch:
    """Measures the disk use of one sandbox.

    A look at the file system each second ends a pause early: once the file system has lost half of
    what the sandbox may still write.

    Args:
        execute: runs a program in the sandbox, where steps can't reach it; returns its output.
        limit_bytes: what the sandbox may write.
        folder: the sandbox's data on this machine.
        own_disk: the sandbox's volumes are file systems of their own: nothing is walked.
    """

    def __init__(
        self,
        execute: Callable[[tuple[str, ...]], bytes],
        limit_bytes: int,
        folder: str,
        *,
        own_disk: bool = False,
    ) -> None:
        self._execute = execute
        self._limit = limit_bytes
        self._most_files = most_files(limit_bytes)
        self._measurement = _MEASURE_OWN if own_disk else _MEASURE
        self._folder = folder
        self._used = 0
        self._misses = 0
        self._measured_at = time.monotonic()

    def until_over(self, closing: threading.Event) -> str:
        """Wait until the sandbox uses more than it may.

        Args:
            closing: ends the wait.

        Returns:
            Why the sandbox must end; empty if ``closing`` was set.
        """
        pause_s = _PAUSE_S
        while self._wait(pause_s, closing):
            began = time.monotonic()
            if why := self._measure():
                return why
            pause_s = pause_after(time.monotonic() - began)
        return ""

    def _wait(self, pause_s: float, closing: threading.Event) -> bool:
        """Wait until it is time to measure; False if ``closing`` was set."""
        until = time.monotonic() + pause_s
        free = free_bytes(self._folder)
        may_lose = max(self._limit - self._used, self._limit // 10) // 2
        while (left_s := until - time.monotonic()) > 0:
            if closing.wait(min(_LOOK_S, left_s)):
                return False
            if free - free_bytes(self._folder) > may_lose:
                break
        return not closing.is_set()

    def _measure(self) -> str:
        try:
            named, files, nameless, open_files = map(int, self._execute(self._measurement).split())
        except (EngineError, ValueError):
            self._misses += 1
            if self._misses < _MISSES and time.monotonic() - self._measured_at < _PATIENCE_S:
                return ""
            return (
                "what the build has written to the disk could not be measured "
                f"{self._misses} times in a row, so that its limit can't be kept "
                "(serve --max-build-disk-gib)"
            )
        self._misses, self._measured_at = 0, time.monotonic()
        self._used, files = named + nameless, files + open_files
        if self._used > self._limit:
            return (
                f"the build has written {self._used / (1 << 30):.1f} GiB to the disk, and may "
                f"write {self._limit / (1 << 30):.1f} GiB (serve --max-build-disk-gib)"
            )
        if files > self._most_files:
            return (
                f"the build has {files:,} files and folders on the disk, and may have "
                f"{self._most_files:,} (serve --max-build-disk-gib)"
            )
        return ""


def pause_after(took_s: float) -> float:
    """Return the pause after a measurement, in seconds.

    Measuring takes a twentieth of the time, and more where a build makes it take longer than the
    longest pause allows.
    """
    return min(max(_PAUSE_S, 20 * took_s), _LONGEST_PAUSE_S)


def free_bytes(folder: str) -> int:
    """Return the free space of a folder's file system; 0 if that is unknown.

    A folder that this user can't look into counts as on the file system of the folder above.
    """
    try:
        found = os.statvfs(folder)
    except PermissionError:
        return free_bytes(os.path.dirname(folder))
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
