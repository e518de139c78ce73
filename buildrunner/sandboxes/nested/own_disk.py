"""A file system of its own for a sandbox, in a file without a name: the kernel keeps its limit.

Files that no walk finds (deleted ones that a process holds, or that are on their way through a
socket) take room there all the same. The file is on a loop device that clears itself: its space is
free again once the engine has unmounted it, whoever dies meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from buildrunner.errors import EngineError

OPTIONS = "noatime,nobarrier,noinit_itable"
"""Mount options: nothing of a sandbox is needed after a crash of the machine."""

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
    """Make a file system; give the device, which a mount has to hold by the end of the context.

    Args:
        folders: where the file may be; the first one that can be written to counts.
        size_bytes: the limit of its data. The file takes as much of the disk as is written.
        files: the limit of files, folders and links.

    Raises:
        EngineError: this machine or user can't have one.
    """
    # Beyond the limits, so that a sandbox can be seen to exceed them.
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
    """Open a loop device for a file. It is the file's until all have closed it.

    Its number is new: the engine finds nothing by the volume of a sandbox that has ended.
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
                # Another process had it, or has just removed it as unused.
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
    """Remove the loop devices that sandboxes have left."""
    for name in os.listdir(_DEVICES):
        number = name.removeprefix("loop")
        if number != name and int(number) >= _FIRST_NUMBER:
            with suppress(OSError):  # it is in use
                fcntl.ioctl(control, _REMOVE, int(number))
