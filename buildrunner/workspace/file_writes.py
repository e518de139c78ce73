"""How tree_writer.py makes one file of a member, and what it says when that can't be done."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from buildrunner.archives.members import Member
from buildrunner.errors import SourceError

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_LAST_INSTANT_NS = 2**63 - 1
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)
"""What the kernel says of a way through something that is no folder, or a link."""


def new_file(folder: int, name: str) -> int:
    """Make a file where nothing is; a descriptor to write to it."""
    return os.open(name, _NEW_FILE, 0o600, dir_fd=folder)


def write_file(folder: int, name: str, member: Member, data: bytes) -> None:
    """Make a file with all that is in it."""
    with writing(member):
        file = new_file(folder, name)
        try:
            _write(file, data, 0)
            set_mode_and_time(file, member)
        finally:
            os.close(file)


def write_piece(file: int, member: Member, data: bytes, offset: int) -> None:
    """Write a part of a file that is open."""
    with writing(member):
        _write(file, data, offset)


def _write(file: int, data: bytes, offset: int) -> None:
    written = os.pwrite(file, data, offset) if data else 0
    while written < len(data):
        written += os.pwrite(file, memoryview(data)[written:], offset + written)


def set_mode_and_time(file: int, member: Member) -> None:
    """What comes last, when all is written."""
    os.fchmod(file, member.mode)
    set_time(file, member)


def set_time(place: int, member: Member) -> None:
    """Set the time of a file or folder."""
    instant = file_time(member)
    os.utime(place, ns=(instant, instant))


def file_time(member: Member) -> int:
    """The time of a file or folder. What is no time for the engine is the epoch, as there."""
    return member.mtime_ns if 0 <= member.mtime_ns <= _LAST_INSTANT_NS else 0


def set_time_of_link(folder: int, name: str, member: Member) -> None:
    """Set the time of a symbolic link, which may be before the epoch."""
    instant = member.mtime_ns if abs(member.mtime_ns) <= _LAST_INSTANT_NS else 0
    os.utime(name, ns=(instant, instant), dir_fd=folder, follow_symlinks=False)


@contextmanager
def writing(member: Member) -> Iterator[None]:
    """Turn what the kernel refuses within into a `SourceError` about the member."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        if error.errno in _NO_ROOM:
            raise no_room(f"{member.path!r}: {reason}") from error
        if error.errno in NO_FOLDER:
            reason = "lies below what is no folder"
        raise SourceError(f"the source can't be unpacked: {member.path!r}: {reason}") from error


def no_room(reason: object) -> SourceError:
    """The error for a full disk."""
    return SourceError(
        f"the source can't be unpacked: the engine's disk is full ({reason})",
        hint="`buildrunner doctor` tells what takes space",
    )
