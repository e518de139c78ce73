"""Reads a zip archive member by member, as tar_reader.py reads a tar."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO

import msgspec

from buildrunner.archives.members import (
    DIRECTORY,
    REGULAR,
    SYMBOLIC_LINK,
    DamagedArchive,
    Member,
    refused,
)
from buildrunner.errors import SourceError

_CHUNK_BYTES = 256 * 1024
_LINK_LIMIT = 4096
_IS_UTF8 = 0x800
_FROM_DOS, _FROM_UNIX, _FROM_MAC = 0, 3, 19

# All that `zipfile` is known to raise on bytes that are no zip.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(ValueError, RuntimeError, LookupError, ArithmeticError),
)


def zip_members(archive: BinaryIO) -> Iterator[tuple[Member, Iterable[bytes]]]:
    """Yield every member of a zip with its content, in the order of the zip's directory.

    Modes and links are known if the zip was packed on Unix. Names and times are those that unzip
    would restore.

    Args:
        archive: seekable.

    Raises:
        SourceError: the archive is damaged or encrypted; also while content is read.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            yield from _members(opened)
    except _DAMAGE as error:
        raise _unreadable(error) from error


def _members(archive: zipfile.ZipFile) -> Iterator[tuple[Member, Iterable[bytes]]]:
    for info in archive.infolist():
        name = _name(info)
        if info.flag_bits & 1:
            raise SourceError(f"the source archive is refused: {name!r} is encrypted")
        mode = info.external_attr >> 16  # zero unless it was packed on Unix
        member = Member(
            path=name.rstrip("/"),
            kind=REGULAR,
            mode=mode or 0o644,
            size=info.file_size,
            mtime_ns=_time(info) * 1_000_000_000,
        )
        if name.endswith("/"):
            yield (
                msgspec.structs.replace(member, kind=DIRECTORY, mode=mode or 0o755, size=0),
                (),
            )
        elif stat.S_ISLNK(mode):
            with archive.open(info) as opened:
                target = opened.read(_LINK_LIMIT + 1).decode("utf-8", "surrogateescape")
            yield (
                msgspec.structs.replace(member, kind=SYMBOLIC_LINK, size=0, link_target=target),
                (),
            )
        elif mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise refused(member, "is a device or pipe")
        else:
            yield member, _content(archive, info)


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    left = info.file_size
    try:
        with archive.open(info) as opened:
            while data := opened.read(min(_CHUNK_BYTES, left + 1)):
                left -= len(data)
                if left < 0:
                    break
                yield data
    except _DAMAGE as error:
        raise _unreadable(error) from error
    if left:
        raise DamagedArchive(f"{info.filename!r} has another size")


def _name(info: zipfile.ZipInfo) -> str:
    """The member's name, with ``/`` between folders.

    Source: unzip. A member that was packed on Unix has the bytes of its name in no known encoding,
    unless it says UTF-8: the bytes stay as they are. Some programs for Windows put backslashes
    between folders.
    """
    name = info.filename
    if info.create_system in (_FROM_UNIX, _FROM_MAC) and not info.flag_bits & _IS_UTF8:
        return os.fsdecode(name.encode("cp437"))  # from which `zipfile` has decoded it
    if info.create_system == _FROM_DOS and "/" not in name:
        return name.replace("\\", "/")
    return name


def _time(info: zipfile.ZipInfo) -> int:
    """Return seconds since the epoch. A zip has no time zone: UTC is assumed.

    Programs that don't record the time write zeros, also for month and day.
    """
    import calendar

    year, month, day, *clock = info.date_time
    return calendar.timegm((year, min(max(month, 1), 12), max(day, 1), *clock, 0, 0, 0))


def _unreadable(error: BaseException) -> SourceError:
    if isinstance(error, NotImplementedError):
        return SourceError(
            f"the source archive is a zip of a kind that is not read here: {error}",
            hint="pack it again with the compression deflate, as `zip -r` does",
        )
    return DamagedArchive(error)
