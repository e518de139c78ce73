"""Reads a zip archive member by member, as tar_reader.py reads a tar."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from buildrunner.errors import SourceError
from buildrunner.sources import tar_stream
from buildrunner.sources.archive_rules import refused
from buildrunner.sources.tar_reader import DamagedArchive, Member

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_CHUNK_BYTES = 256 * 1024
_LINK_LIMIT = 4096

# All that `zipfile` is known to raise on bytes that are no zip.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
    *(ValueError, RuntimeError, LookupError, ArithmeticError),
)


def zip_members(archive: BinaryIO) -> Iterator[tuple[Member, Iterable[bytes]]]:
    """Every member of a zip with its content, in the order of the zip's directory.

    Modes and links are known when it was packed on Unix.

    Args:
        archive: seekable.

    Raises:
        SourceError: it is damaged or encrypted; also while content is read.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            yield from _members(opened)
    except _DAMAGE as error:
        raise DamagedArchive(error) from error


def _members(archive: zipfile.ZipFile) -> Iterator[tuple[Member, Iterable[bytes]]]:
    for info in archive.infolist():
        if info.flag_bits & 1:
            raise SourceError(f"the source archive is refused: {info.filename!r} is encrypted")
        mode = info.external_attr >> 16  # zero unless it was packed on Unix
        member = Member(
            path=info.filename.rstrip("/"),
            kind=tar_stream.REGULAR,
            mode=mode or 0o644,
            size=info.file_size,
            mtime_ns=_time(info) * 1_000_000_000,
        )
        if info.is_dir():
            yield (
                msgspec.structs.replace(
                    member, kind=tar_stream.DIRECTORY, mode=mode or 0o755, size=0
                ),
                (),
            )
        elif stat.S_ISLNK(mode):
            with archive.open(info) as opened:
                target = opened.read(_LINK_LIMIT + 1).decode("utf-8", "surrogateescape")
            yield (
                msgspec.structs.replace(
                    member, kind=tar_stream.SYMBOLIC_LINK, size=0, link_target=target
                ),
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
        raise DamagedArchive(error) from error
    if left:
        raise DamagedArchive(f"{info.filename!r} has another size")


def _time(info: zipfile.ZipInfo) -> int:
    """Seconds since the epoch. A zip knows no time zone: UTC is taken."""
    import calendar

    return calendar.timegm((*info.date_time, 0, 0, 0))
