"""The limit of a sandbox's disk: a separate file system, or a watch over its disk use.

With a separate file system (`own_disk`), the kernel enforces the limit. The file system is in a
file without a name. Files that no walk finds (deleted but open ones, or ones in transit through a
socket) take space there, so they count, too. A loop device that clears itself gives access to the
file: the space is free again once the engine has unmounted it, even if processes die meanwhile.

Otherwise a watch (`DiskWatch`) measures periodically, and ends a sandbox that uses too much.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from buildrunner.errors import EngineError
from buildrunner.sandboxes.nested.container import DATA, FOLDER
from buildrunner.workspace.protocol import WORKSPACE

OPTIONS = "noatime,nobarrier,noinit_itable"
"""Mount options: a sandbox's data need not survive a crash of the machine."""

_INODE_BYTES = 256
_SPARE_BYTES = 64 << 20
_MKFS = ("-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode")
_EXTENDED = "nodiscard,lazy_itable_init=1,root_owner=0:0"
_PROGRAMS = f"{os.defpath}:/usr/sbin:/sbin"

# linux/loop.h
_CONTROL = "/dev/loop-control"
_ADD, _REMOVE = 0x4C80, 0x4C81
_CONFIGURE = 0x4C0A
_AUTOCLEAR = 4
_CONFIG = struct.Struct("=II 40x 12xI 160x 16x 64x")  # file, block size; flags
_DEVICES = "/sys/block"
_FIRST_NUMBER = 4096
_NUMBERS = (1 << 20) - _FIRST_NUMBER  # minor numbers have 20 bits
_TRIES = 20


@contextmanager
def own_disk(folders: Sequence[str], size_bytes: int, files: int) -> Iterator[str]:
    """Make a file system. Yields its device, which must be mounted by the end of the context.

    Args:
        folders: folders for the file; the first writable one is used.
        size_bytes: the limit of its data. The file takes disk space only for written data.
        files: the most files, folders and links.

    Raises:
        EngineError: this machine or user can't make one.
    """
    # Larger than the limits, so that a sandbox that exceeds them is noticed.
    files += files // 16 + 1000
    size = size_bytes + size_bytes // 16 + files * _INODE_BYTES + _SPARE_BYTES
    try:
        file = _nameless(folders)
        try:
            os.truncate(file, size)
            _format(file, files)
            device = _attached(file)
        finally:
            os.close(file)
    except OSError as error:
        raise EngineError(f"no file system of its own can be made: {error}") from error
    try:
        yield os.readlink(f"/proc/self/fd/{device}")
    finally:
        os.close(device)


def why_no_own_disk(folders: Sequence[str]) -> str:
    """Return why this process can make no file system; empty if it can."""
    try:
        with own_disk(folders, 1 << 20, 100):
            return ""
    except EngineError as error:
        return str(error)


def _nameless(folders: Sequence[str]) -> int:
    """Open a new file without a name."""
    for folder in folders:
        with suppress(OSError):
            return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    raise PermissionError(errno.EACCES, f"no file can be made in {' or '.join(folders)}")


def _format(file: int, files: int) -> None:
    program = shutil.which("mkfs.ext4", path=_PROGRAMS)
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "mkfs.ext4 (e2fsprogs) is not installed")
    argv = [program, *_MKFS, "-N", str(files), "-E", _EXTENDED, f"/proc/self/fd/{file}"]
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, pass_fds=(file,)
    )
    if done.returncode:
        raise OSError(done.stderr.decode("utf-8", "replace").strip())


def _attached(file: int) -> int:
    """Open a loop device for a file. The device is released when it is closed everywhere.

    Its number is new, so that the volume of an ended sandbox never leads to it.
    """
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        _remove_unused(control)
        for left in reversed(range(_TRIES)):
            number = _FIRST_NUMBER + secrets.randbelow(_NUMBERS)
            try:
                fcntl.ioctl(control, _ADD, number)
                device = os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                # Another process used it, or has just removed it as unused.
                if error.errno not in (errno.EEXIST, errno.ENOENT, errno.ENXIO) or not left:
                    raise
                continue
            try:
                fcntl.ioctl(device, _CONFIGURE, _CONFIG.pack(file, 0, _AUTOCLEAR))
            except OSError:
                os.close(device)
                raise
            return device
        raise AssertionError
    finally:
        os.close(control)


def _remove_unused(control: int) -> None:
    """Remove the loop devices of ended sandboxes."""
    for name in os.listdir(_DEVICES):
        number = name.removeprefix("loop")
        if number != name and int(number) >= _FIRST_NUMBER:
            with suppress(OSError):  # it is in use
                fcntl.ioctl(control, _REMOVE, int(number))


LEAST_FILES = 1_000_000
BYTES_PER_FILE = 16 << 10
"""A file system with ext4 reserves room for one file, folder or link per this many bytes."""

_LOOK_S = 1.0
_PAUSE_S = 5.0
_LONGEST_PAUSE_S = 30.0
_LONGEST_MEASURE_S = 240
_LEAST_FREE = 2 << 30  # of the machine's disk, which others need, too
_LEAST_SHARE = 20  # on a small disk, a twentieth of it instead
_MISSES = 12  # a minute, and longer if a measurement takes long
_WAIT_LIMIT_S = 600.0

# In a user namespace, steps can write to no other folders of the sandbox's disk; and they can write
# to deleted files, which `du` can't see.
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
    """Return the most files, folders and links that a sandbox may have."""
    return max(LEAST_FILES, limit_bytes // BYTES_PER_FILE)


class DiskWatch:
    """Measures the disk use of one sandbox, and the free space of the machine's disk.

    A pause between measurements ends early once the file system has lost half of the space that the
    sandbox may still use, and when the machine's disk gets full. The free space is checked every
    second. On a full disk, the sandboxes that have written most end first: each one ends that has
    written ten times of what is still free.

    Args:
        execute: runs a program in the sandbox, out of reach of steps; returns its output.
        limit_bytes: the most bytes that the sandbox may write.
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
        self._disk = os.path.dirname(folder)  # the machine's: the sandbox may have its own
        self._least_free = least_free(self._disk)
        self._alarm = self._least_free  # less free space is a reason to measure at once
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
        """Wait until it is time to measure. Returns False if ``closing`` was set."""
        until = time.monotonic() + pause_s
        free = free_bytes(self._folder)
        may_lose = max(self._limit - self._used, self._limit // 10) // 2
        while (left_s := until - time.monotonic()) > 0:
            if closing.wait(min(_LOOK_S, left_s)):
                return False
            if free - free_bytes(self._folder) > may_lose or free_bytes(self._disk) < self._alarm:
                break
        return not closing.is_set()

    def _measure(self) -> str:
        try:
            named, files, nameless, open_files = map(int, self._execute(self._measurement).split())
        except (EngineError, ValueError):
            self._misses += 1
            if self._misses < _MISSES and time.monotonic() - self._measured_at < _WAIT_LIMIT_S:
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
        left = free_bytes(self._disk)
        self._alarm = self._least_free if left >= self._least_free else left // 2
        if left < min(self._least_free, self._used // 10):
            return (
                f"the disk of the machine is full: {left / (1 << 20):.0f} MiB are free, and the "
                f"build has written {self._used / (1 << 20):,.0f} MiB to it"
            )
        return ""


def pause_after(took_s: float) -> float:
    """Return the pause after a measurement, in seconds.

    Measuring takes a twentieth of the time, and more if one measurement takes longer than the
    longest pause allows.
    """
    return min(max(_PAUSE_S, 20 * took_s), _LONGEST_PAUSE_S)


def free_bytes(folder: str) -> int:
    """Return the free space of a folder's file system; 0 if that is unknown.

    A folder that this user can't read counts as on the file system of its parent.
    """
    found = _file_system(folder)
    return found.f_bavail * found.f_frsize if found else 0


def least_free(folder: str) -> int:
    """Return how much of a folder's file system sandboxes leave free; 0 if its size is unknown."""
    found = _file_system(folder)
    return min(_LEAST_FREE, found.f_blocks * found.f_frsize // _LEAST_SHARE) if found else 0


def _file_system(folder: str) -> os.statvfs_result | None:
    try:
        return os.statvfs(folder)
    except PermissionError:
        return _file_system(os.path.dirname(folder))
    except OSError:
        return None
