"""Reads a tar stream from front to back with `tarfile`, and trusts no header of it.

`tarfile` reads extended headers and maps of sparse files whole, and it takes a damaged header for
the end of the archive. `_BoundedStream` limits how much the headers of one member may hold.
`_Header` refuses a damaged header.
"""

from __future__ import annotations

import decimal
import re
import tarfile
from collections.abc import Iterator
from typing import Self, cast

from buildrunner.archives.members import (
    DIRECTORY,
    HARD_LINK,
    REGULAR,
    SPECIAL,
    SYMBOLIC_LINK,
    DamagedArchive,
    Member,
    Readable,
)
from buildrunner.archives.tar_writer import BLOCK

_HEADER_BYTES = 1024 * 1024
_ALL_HEADERS_BYTES = 4 * _HEADER_BYTES
_LONGEST_NUMBER = 1_000
_LATEST_SECOND = 10**18
_NANOSECONDS = 1_000_000_000
_CHUNK_BYTES = 256 * 1024
_LISTED = b"D"
_LABEL = b"V"
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_KINDS = {
    **dict.fromkeys(tarfile.REGULAR_TYPES, REGULAR),
    tarfile.LNKTYPE: HARD_LINK,
    tarfile.SYMTYPE: SYMBOLIC_LINK,
    tarfile.DIRTYPE: DIRECTORY,
    _LISTED: DIRECTORY,  # in incremental archives; the content is a list of names
    **{kind: kind for kind in SPECIAL},
}
_OTHERS = {
    b"\x1f\x8b": "it is compressed with gzip twice",
    b"\xfd7zXZ\0": "it is compressed with xz; what is read is gzip",
    b"BZh": "it is compressed with bzip2; what is read is gzip",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; what is read is gzip",
    b"PK\3\4": "it is a zip, and its name does not end in .zip",
}


class TarReader:
    """Iterates over a tar stream: `members`, and for each of them at most once `content`.

    Args:
        stream: the bytes of the archive.
        needs_end: refuse a stream that ends after a member without the blocks of zeros that mark
            a complete archive.
    """

    def __init__(self, stream: Readable, *, needs_end: bool = True) -> None:
        self._stream = _BoundedStream(stream)
        self._needs_end = needs_end
        self._tar: tarfile.TarFile | None = None
        self._current: tarfile.TarInfo | None = None

    def members(self) -> Iterator[Member]:
        """Yield every member in order. Content that the caller does not read is skipped.

        Raises:
            SourceError: the stream is no tar archive, it breaks off, or it holds a member of an
                unknown type.
        """
        while (info := self._next()) is not None:
            if info.type == _LABEL:  # the name of the archive itself
                continue
            member = _member(info)
            self._current = info if member.kind == REGULAR else None
            yield member
        if self._needs_end and self._stream.ended:
            raise DamagedArchive("it breaks off")

    def _next(self) -> tarfile.TarInfo | None:
        self._stream.header_bytes_left = _ALL_HEADERS_BYTES
        try:
            if self._tar is None:
                self._tar = tarfile.TarFile(
                    fileobj=self._stream,  # type: ignore[arg-type]  # all that `tarfile` uses
                    tarinfo=_Header,
                    encoding="utf-8",
                    errors="surrogateescape",
                )
            info = self._tar.next()
        except tarfile.TarError as error:
            raise DamagedArchive("it breaks off") from error
        except (UnicodeError, RecursionError) as error:
            raise DamagedArchive("an extended header can't be read") from error
        except (ValueError, LookupError) as error:
            raise BadSparse from error
        self._tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
        self._stream.header_bytes_left = None
        return info

    def content(self) -> Iterator[bytes]:
        """Yield the bytes of the member that was yielded last."""
        info, self._current = self._current, None
        if info is None or self._tar is None:
            return
        if info.sparse is None:
            yield from self._stream.chunks(info.size)
            return
        try:
            with self._tar.extractfile(info) as file:  # type: ignore[union-attr]  # a file has one
                while data := file.read(_CHUNK_BYTES):
                    yield data
        except tarfile.TarError as error:
            raise DamagedArchive("it ends in the middle of a file") from error


class BadSparse(DamagedArchive):
    """The map of a sparse file can't be read, or leads out of the file."""

    def __init__(self) -> None:
        super().__init__("the map of a sparse file can't be read")


class _Header(tarfile.TarInfo):
    """A header that is checked before `tarfile` follows it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        # The end. GNU tar also accepts an incomplete block of zeros as the end.
        if not buf.strip(b"\0"):
            return super().frombuf(buf if len(buf) == BLOCK else b"", encoding, errors)
        if len(buf) < BLOCK:
            raise DamagedArchive("it breaks off")
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            raise DamagedArchive(_damage(buf)) from error
        if info.size < 0:
            raise DamagedArchive("a header holds a size below zero")
        if info.type in _EXTENDED and info.size > _HEADER_BYTES:
            raise DamagedArchive(f"an extended header claims {info.size} bytes")
        if buf[257:263] != b"ustar\0":  # GNU's own format has times where ustar has a prefix
            info.name = bytes(buf[:100]).split(b"\0", 1)[0].decode(encoding, errors)
        return info


class _BoundedStream:
    """A stream that `tarfile` can seek forward in.

    Attributes:
        header_bytes_left: how many bytes may be read before the next member is known. None while
            content is read.
        ended: a read reached the end of the stream.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._position = 0
        self.header_bytes_left: int | None = None
        self.ended = False

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:  # content was read that belongs to no member
            raise BadSparse
        for _ in self.chunks(position - self._position):
            pass

    def read(self, size: int) -> bytes:
        """Return fewer bytes only at the end."""
        if self.header_bytes_left is not None:
            self.header_bytes_left -= size
            if self.header_bytes_left < 0:
                raise DamagedArchive(
                    f"the headers of one member take more than {_ALL_HEADERS_BYTES >> 20} MiB"
                )
        data = self._stream.read(size)
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        self._position += len(data)
        self.ended = self.ended or len(data) < size
        if self.header_bytes_left is not None and size > BLOCK:
            _check_numbers(data)
        return data

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the next ``size`` bytes."""
        while size:
            data = self._stream.read(min(size, _CHUNK_BYTES))
            if not data:
                raise DamagedArchive("it ends in the middle of a file")
            size -= len(data)
            self._position += len(data)
            yield data


def _check_numbers(data: bytes) -> None:
    """Refuse long runs of digits: `tarfile` of Python before 3.11.10 takes quadratic time for them.

    Source: CVE-2024-6232.
    """
    if any(len(run) > _LONGEST_NUMBER for run in re.findall(rb"\d+", data)):
        raise DamagedArchive("an extended header can't be read")


def _damage(block: bytes | bytearray) -> str:
    """Return the reason why a block is no header."""
    for magic, what in _OTHERS.items():
        if block.startswith(magic):
            return what
    return "a header's checksum is wrong"


def _member(info: tarfile.TarInfo) -> Member:
    kind = _KINDS.get(info.type)
    if kind is None:
        raise DamagedArchive(f"{info.name!r} is of the unknown type {info.type!r}")
    _check_sparse(info)
    if kind == REGULAR and info.name.endswith("/"):  # tar of Unix v7 marked folders like this
        kind = DIRECTORY
    if kind == REGULAR and info.size < 0:
        raise DamagedArchive("a header holds a size below zero")
    return Member(
        path=info.name.rstrip("/"),
        kind=kind,
        mode=info.mode,
        size=info.size if kind == REGULAR else 0,
        mtime_ns=_mtime_ns(info),
        link_target=info.linkname,
        owner=(info.uid, info.gid),
    )


def _check_sparse(info: tarfile.TarInfo) -> None:
    """Check that the pieces of a sparse file lie in order within the file."""
    if info.sparse is None:
        if any(key.startswith("GNU.sparse.") for key in info.pax_headers):
            raise BadSparse
        return
    if info.size < 0:
        raise BadSparse
    position = 0
    for offset, length in cast("list[tuple[int, int]]", info.sparse):
        if offset == length == 0:  # an unused field
            continue
        is_end = length == 0 and offset == info.size
        if offset < position or (length <= 0 and not is_end) or offset + length > info.size:
            raise BadSparse
        position = offset + length


def _mtime_ns(info: tarfile.TarInfo) -> int:
    """Return the time of last change to the nanosecond, which `tarfile` rounds."""
    exact = info.pax_headers.get("mtime")
    if exact is None:
        return int(info.mtime) * _NANOSECONDS
    try:
        seconds = decimal.Decimal(exact)
        if abs(seconds) < _LATEST_SECOND:
            return int(seconds * _NANOSECONDS)
    except ArithmeticError:
        pass
    raise DamagedArchive("a header holds a number that is none")
