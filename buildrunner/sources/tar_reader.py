"""Reads a tar stream member by member, trusting nothing in it.

`tarfile` reads an extended header into memory whatever size it claims, and its stream mode copies
every byte several times. Formats: ustar, pax, GNU (long names, large numbers), v7.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import msgspec

from buildrunner.errors import SourceError
from buildrunner.sources import tar_sparse
from buildrunner.sources.tar_stream import (
    BLOCK,
    DIRECTORY,
    HARD_LINK,
    REGULAR,
    SYMBOLIC_LINK,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Members = Iterable[tuple["Member", Iterable[bytes]]]
    """Members with their content, which is to be read before the next member is asked for."""

SPECIAL = {b"3": "a device", b"4": "a device", b"6": "a named pipe"}
"""Kinds of members that a workspace may hold and no source, and what they are."""

_OTHERS = {
    b"\x1f\x8b": "it is compressed with gzip twice",
    b"\xfd7zXZ\0": "it is compressed with xz; what is read is gzip",
    b"BZh": "it is compressed with bzip2; what is read is gzip",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; what is read is gzip",
    b"PK\3\4": "it is a zip, and its name does not end in .zip",
}
_HEADER_LIMIT = 1024 * 1024
_CHUNK_BYTES = 256 * 1024
_NANOSECONDS = 1_000_000_000
_KINDS = {
    b"0": REGULAR,
    b"\0": REGULAR,
    b"7": REGULAR,  # contiguous, which no system has ever made anything of
    b"1": HARD_LINK,
    b"2": SYMBOLIC_LINK,
    b"5": DIRECTORY,
    **{kind: kind for kind in SPECIAL},
}
_SPARSE = b"S"
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"


class Readable(Protocol):
    """What bytes are read from: a file, a decompressor, a response."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, none only at the end."""
        ...


class DamagedArchive(SourceError):
    """An archive that can't be read: it is not what was packed."""

    def __init__(self, why: object) -> None:
        super().__init__(f"the source archive is damaged: {why}")


def not_a_source(path: str, what: str) -> SourceError:
    """The error for a member that is no file, folder or link."""
    return SourceError(f"the source archive holds {what}, {path!r}, which can't be a source")


class Member(msgspec.Struct, frozen=True):
    """One entry of an archive, as it says of itself: not yet checked.

    Attributes:
        path: as stored, without trailing slashes; undecodable bytes as surrogates.
        kind: a constant of `tar_stream`, or one of `SPECIAL`.
        mode: all bits as stored.
        size: bytes of content; 0 unless it is a regular file.
        mtime_ns: time of last change.
        link_target: of a link.
    """

    path: str
    kind: bytes
    mode: int = 0o644
    size: int = 0
    mtime_ns: int = 0
    link_target: str = ""


class TarReader:
    """Walks through a tar stream: `members`, and for each of them at most once `content`.

    Args:
        stream: its bytes.
        needs_end: refuse a stream that ends behind a member, without the blocks of zeros that say
            that nothing is missing.
    """

    def __init__(self, stream: Readable, *, needs_end: bool = True) -> None:
        self._stream = stream
        self._needs_end = needs_end
        self._content_left = 0
        self._skip_left = 0
        self._sparse_size: int | None = None

    def members(self) -> Iterator[Member]:
        """Every member in order. Content that was not asked for is skipped.

        Raises:
            SourceError: it is no tar stream, it breaks off, or it holds what can't be a source.
        """
        records: dict[bytes, bytes] = {}
        shared: dict[bytes, bytes] = {}
        may_end = False
        while (block := self._next_header(may_end)) is not None:
            kind = block[156:157]
            size = _number(block[124:136])
            if kind in (_PAX, _PAX_GLOBAL):
                may_end = may_end and kind == _PAX_GLOBAL
                found = _pax_records(self._extended(size))
                (records if kind == _PAX else shared).update(found)
            elif kind in (_LONG_NAME, _LONG_LINK):
                may_end = False
                key = b"path" if kind == _LONG_NAME else b"linkpath"
                records[key] = self._extended(size).split(b"\0", 1)[0]
            else:
                known = shared | records
                member = _member(block, kind, size, known)
                records = {}
                may_end = not self._needs_end
                self._content_left = member.size
                self._skip_left = -member.size % BLOCK
                if member.kind == REGULAR and tar_sparse.is_known(known):
                    self._sparse_size = _decimal(known[b"GNU.sparse.realsize"])
                    member = msgspec.structs.replace(member, size=self._sparse_size)
                yield member

    def content(self) -> Iterator[bytes]:
        """The bytes of the member that was yielded last."""
        if self._sparse_size is None:
            yield from self._stored()
            return
        size, self._sparse_size = self._sparse_size, None
        try:
            yield from tar_sparse.expanded(self._stored_exactly, size)
        except tar_sparse.BadSparse as error:
            raise DamagedArchive("the map of a sparse file can't be read") from error

    def _stored_exactly(self, size: int) -> bytes:
        if size > self._content_left:
            raise tar_sparse.BadSparse
        self._content_left -= size
        return self._exactly(size)

    def _stored(self) -> Iterator[bytes]:
        while self._content_left:
            data = self._stream.read(min(self._content_left, _CHUNK_BYTES))
            if not data:
                raise DamagedArchive("it ends in the middle of a file")
            self._content_left -= len(data)
            yield data

    def _next_header(self, may_end: bool) -> bytes | None:
        self._sparse_size = None
        for _ in self._stored():
            pass
        if self._skip_left:
            self._exactly(self._skip_left)
            self._skip_left = 0
        block = self._at_most(BLOCK)
        if not block.strip(b"\0") and (may_end or len(block) == BLOCK):
            return None
        if len(block) < BLOCK:
            raise DamagedArchive("it breaks off")
        if not _sum_fits(block):
            raise DamagedArchive(_what_else(block))
        return block

    def _extended(self, size: int) -> bytes:
        if size > _HEADER_LIMIT:
            raise DamagedArchive(f"an extended header claims {size} bytes")
        data = self._exactly(size)
        self._exactly(-size % BLOCK)
        return data

    def _exactly(self, size: int) -> bytes:
        data = self._at_most(size)
        if len(data) < size:
            raise DamagedArchive("it breaks off")
        return data

    def _at_most(self, size: int) -> bytes:
        """Fewer bytes only at the end."""
        data = self._stream.read(size)
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        return data


def _member(block: bytes, kind: bytes, size: int, records: dict[bytes, bytes]) -> Member:
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = _text(block[345:500]) + b"/" + name
    name = records.get(b"path", name)
    path = os.fsdecode(name.rstrip(b"/"))
    if tar_sparse.is_known(records):
        path = os.fsdecode(records[b"GNU.sparse.name"].rstrip(b"/"))
    elif kind == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in records):
        raise not_a_source(path, "a sparse file")
    known = _KINDS.get(kind)
    if known is None:
        raise DamagedArchive(f"{path!r} is of the unknown type {kind!r}")
    if known == REGULAR and name.endswith(b"/"):  # how v7 wrote folders
        known = DIRECTORY
    if b"size" in records:
        size = _decimal(records[b"size"])
    return Member(
        path=path,
        kind=known,
        mode=_number(block[100:108]),
        size=size if known == REGULAR else 0,
        mtime_ns=_mtime(block, records),
        link_target=os.fsdecode(records.get(b"linkpath", _text(block[157:257]))),
    )


def _sum_fits(block: bytes) -> bool:
    try:
        stored = _number(block[148:156])
    except DamagedArchive:
        return False
    return stored == sum(block[:148]) + sum(block[156:]) + 8 * ord(" ")


def _what_else(block: bytes) -> str:
    """What begins with a block that is no header."""
    for magic, what in _OTHERS.items():
        if block.startswith(magic):
            return what
    return "a header's checksum is wrong"


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _number(field: bytes) -> int:
    """Octal digits, or a binary number when the first bit is set (GNU)."""
    if field[0] & 0x80:
        if field[0] == 0xFF:
            return int.from_bytes(field, signed=True)
        return int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:])
    digits = _text(field).strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise DamagedArchive("a header holds a number that is none") from None


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise DamagedArchive("a header holds a number that is none")
    return int(text)


def _mtime(block: bytes, records: dict[bytes, bytes]) -> int:
    text = records.get(b"mtime")
    if text is None:
        return _number(block[136:148]) * _NANOSECONDS
    whole, _, fraction = text.partition(b".")
    sign = -1 if whole.startswith(b"-") else 1
    seconds = _decimal(whole.removeprefix(b"-") or b"0")
    return sign * (seconds * _NANOSECONDS + _decimal(fraction[:9].ljust(9, b"0")))


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """``LENGTH KEY=VALUE`` and a newline, again and again."""
    records: dict[bytes, bytes] = {}
    while data.strip(b"\0"):
        digits, space, _ = data[:24].partition(b" ")
        length = _decimal(digits) if space else 0
        record = data[:length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or record[-1:] != b"\n" or len(record) != length:
            raise DamagedArchive("an extended header can't be read")
        records[key] = value
        data = data[length:]
    return records
