"""What stands in the headers of a tar stream: numbers, times, extended records, its checksum."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

import msgspec

from buildrunner.archives.members import SPECIAL, DamagedArchive, Member, Readable
from buildrunner.archives.tar_writer import (
    BLOCK,
    DIRECTORY,
    HARD_LINK,
    REGULAR,
    SYMBOLIC_LINK,
)

Pieces = list[tuple[int, int]]
"""Offset and length of each, in the file."""


_OTHERS = {
    b"\x1f\x8b": "it is compressed with gzip twice",
    b"\xfd7zXZ\0": "it is compressed with xz; what is read is gzip",
    b"BZh": "it is compressed with bzip2; what is read is gzip",
    b"\x28\xb5\x2f\xfd": "it is compressed with zstd; what is read is gzip",
    b"PK\3\4": "it is a zip, and its name does not end in .zip",
}
_NANOSECONDS = 1_000_000_000
_SPARSE_MAP = b"GNU.sparse.map"
_SPARSE_NUMBERS = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")


def check_sum(block: bytes) -> None:
    """Refuse a block that is no header, and say what it may be instead."""
    try:
        stored = number(block[148:156])
    except DamagedArchive:
        stored = -1
    if stored != sum(block[:148]) + sum(block[156:]) + 8 * ord(" "):
        raise DamagedArchive(_what_else(block))


def _what_else(block: bytes) -> str:
    """What begins with a block that is no header."""
    for magic, what in _OTHERS.items():
        if block.startswith(magic):
            return what
    return "a header's checksum is wrong"


def text(field: bytes) -> bytes:
    """What stands in a field before its first zero."""
    return field.split(b"\0", 1)[0]


def number(field: bytes) -> int:
    """Octal digits, or a binary number when the first bit is set (GNU)."""
    if field[0] & 0x80:
        if field[0] == 0xFF:
            return int.from_bytes(field, signed=True)
        return int.from_bytes(bytes((field[0] & 0x7F,)) + field[1:])
    digits = text(field).strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise DamagedArchive("a header holds a number that is none") from None


def size_of(block: bytes) -> int:
    """How many bytes follow a header, by its own word."""
    size = number(block[124:136])
    if size < 0:
        raise DamagedArchive("a header holds a size below zero")
    return size


def decimal(digits: bytes) -> int:
    """A number of an extended record."""
    if not digits.isdigit() or len(digits) > 20:
        raise DamagedArchive("a header holds a number that is none")
    return int(digits)


def mtime_of(block: bytes, records: dict[bytes, bytes]) -> int:
    """Time of last change in nanoseconds."""
    exact = records.get(b"mtime")
    if exact is None:
        return number(block[136:148]) * _NANOSECONDS
    whole, _, fraction = exact.partition(b".")
    sign = -1 if whole.startswith(b"-") else 1
    seconds = decimal(whole.removeprefix(b"-") or b"0")
    return sign * (seconds * _NANOSECONDS + decimal(fraction[:9].ljust(9, b"0")))


def pax_records(data: bytes) -> dict[bytes, bytes]:
    """``LENGTH KEY=VALUE`` and a newline, again and again.

    The only keys that come several times are those of a sparse file's map in its first form: they
    become the map of its second.
    """
    records: dict[bytes, bytes] = {}
    while data.strip(b"\0"):
        digits, space, _ = data[:24].partition(b" ")
        length = decimal(digits) if space else 0
        record = data[:length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or record[-1:] != b"\n" or len(record) != length:
            raise DamagedArchive("an extended header can't be read")
        if key in _SPARSE_NUMBERS:
            known = records.get(_SPARSE_MAP)
            key, value = _SPARSE_MAP, value if known is None else known + b"," + value
        records[key] = value
        data = data[length:]
    return records


KIND = b"S"
"""The type of a sparse file in GNU's own format."""

_ZEROS = bytes(256 * 1024)
_MOST_PIECES = 100_000
_DIGITS = 20
_NUMBER = 12
_IN_HEADER = (386, 4)  # where numbers begin, and how many pieces they tell of
_IN_EXTENSION = (0, 21)


class BadSparse(DamagedArchive):
    """A map of pieces that can't be read, or leads out of the file."""

    def __init__(self) -> None:
        super().__init__("the map of a sparse file can't be read")


class SparseFile(msgspec.Struct, frozen=True):
    """What headers tell of a sparse file.

    Attributes:
        size: with its holes.
        pieces: what is not a hole; None: the content begins with a list of it.
    """

    size: int
    pieces: Pieces | None


def sparse_file(
    block: bytes, records: Mapping[bytes, bytes], read: Callable[[int], bytes]
) -> SparseFile | None:
    """What a member's headers tell of its holes; None for a file that is as it is stored.

    Args:
        block: its header.
        records: its extended records.
        read: what follows the header: exactly as many bytes as are asked for, or an error.

    Raises:
        BadSparse: that is not to be understood.
    """
    if block[156:157] == KIND:
        return SparseFile(number(block[483:495]), _pieces_in_headers(block, read))
    map_ = records.get(b"GNU.sparse.map")
    if map_ is not None and b"GNU.sparse.size" in records:
        numbers = [decimal(one) for one in map_.split(b",")] if map_ else []
        return SparseFile(decimal(records[b"GNU.sparse.size"]), _paired(numbers))
    if records.get(b"GNU.sparse.major") == b"1" and b"GNU.sparse.realsize" in records:
        return SparseFile(decimal(records[b"GNU.sparse.realsize"]), None)
    if any(key.startswith(b"GNU.sparse.") for key in records):
        raise BadSparse
    return None


def expanded(read: Callable[[int], bytes], sparse: SparseFile) -> Iterator[bytes]:
    """The content of a sparse file.

    Args:
        read: the stored bytes: exactly as many as are asked for, or an error.
        sparse: what the headers tell of it.

    Raises:
        BadSparse: the map is none, or leads out of the file.
    """
    if sparse.size < 0:
        raise BadSparse
    position = 0
    pieces = _pieces_before_content(read) if sparse.pieces is None else sparse.pieces
    for offset, length in pieces:
        if offset < position or length < 0 or offset + length > sparse.size:
            raise BadSparse
        yield from _hole(offset - position)
        position = offset + length
        while length:
            data = read(min(length, len(_ZEROS)))
            length -= len(data)
            yield data
    yield from _hole(sparse.size - position)


def _hole(size: int) -> Iterator[bytes]:
    while size:
        zeros = _ZEROS[: min(size, len(_ZEROS))]
        size -= len(zeros)
        yield zeros


def _pieces_in_headers(block: bytes, read: Callable[[int], bytes]) -> Pieces:
    """Numbers in the header; then blocks full of them, as long as the last one says so."""
    numbers = _numbers(block, *_IN_HEADER)
    more = block[482]
    while more:
        block = read(BLOCK)
        numbers += _numbers(block, *_IN_EXTENSION)
        more = block[504]
        if len(numbers) > 2 * _MOST_PIECES:
            raise BadSparse
    return _paired(numbers)


def _numbers(block: bytes, begin: int, pieces: int) -> list[int]:
    fields = (block[at : at + _NUMBER] for at in range(begin, begin + pieces * 24, _NUMBER))
    return [number(field) for field in fields if field[0]]


def _pieces_before_content(read: Callable[[int], bytes]) -> Pieces:
    """Decimal numbers, a line each: how many pieces, then offset and length of each.

    They fill up whole blocks.
    """
    numbers: list[int] = []
    wanted = 1
    rest = b""
    while len(numbers) < wanted:
        lines = (rest + read(BLOCK)).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if not line.isdigit() or len(line) > _DIGITS:
                raise BadSparse
            numbers.append(int(line))
            if len(numbers) == 1:
                wanted = 1 + 2 * numbers[0]
            if len(numbers) == wanted:
                break
        if wanted > 2 * _MOST_PIECES or len(rest) > BLOCK:
            raise BadSparse
    return _paired(numbers[1:])


def _paired(numbers: list[int]) -> Pieces:
    if len(numbers) % 2:
        raise BadSparse
    return list(zip(numbers[::2], numbers[1::2], strict=True))


_HEADER_LIMIT = 1024 * 1024
_CHUNK_BYTES = 256 * 1024
_LISTED = b"D"
_KINDS = {
    b"0": REGULAR,
    b"\0": REGULAR,
    b"7": REGULAR,  # contiguous, which no system has ever made anything of
    KIND: REGULAR,
    b"1": HARD_LINK,
    b"2": SYMBOLIC_LINK,
    b"5": DIRECTORY,
    _LISTED: DIRECTORY,  # of incremental archives: its content is a list of what it held
    **{kind: kind for kind in SPECIAL},
}
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_LABEL = b"V"  # the name of the archive itself


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
        self._sparse: SparseFile | None = None

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
            size = size_of(block)
            if kind in (_PAX, _PAX_GLOBAL):
                may_end = may_end and kind == _PAX_GLOBAL
                found = pax_records(self._extended(size))
                (records if kind == _PAX else shared).update(found)
            elif kind in (_LONG_NAME, _LONG_LINK):
                may_end = False
                key = b"path" if kind == _LONG_NAME else b"linkpath"
                records[key] = text(self._extended(size))
            elif kind != _LABEL:
                member = self._begun(block, kind, size, shared | records)
                records = {}
                may_end = not self._needs_end
                yield member

    def _begun(self, block: bytes, kind: bytes, size: int, records: dict[bytes, bytes]) -> Member:
        """The member of a header, whose content comes next."""
        member = _member(block, kind, size, records)
        sparse = None
        if member.kind == REGULAR:
            sparse = sparse_file(block, records, self._exactly)
        if kind == _LISTED:
            self._content_left = size
            for _ in self._stored():
                pass
        self._content_left = member.size
        self._skip_left = -(size if kind == _LISTED else member.size) % BLOCK
        self._sparse = sparse
        if sparse is None:
            return member
        return msgspec.structs.replace(member, size=sparse.size)

    def content(self) -> Iterator[bytes]:
        """The bytes of the member that was yielded last."""
        if self._sparse is None:
            yield from self._stored()
            return
        sparse, self._sparse = self._sparse, None
        yield from expanded(self._stored_exactly, sparse)

    def _stored_exactly(self, size: int) -> bytes:
        if size > self._content_left:
            raise BadSparse
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
        self._sparse = None
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
        check_sum(block)
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
    name = text(block[:100])
    if block[257:263] == b"ustar\0" and block[345] != 0:
        name = text(block[345:500]) + b"/" + name
    # Of a sparse file, the header's own name is an invented one, cut to fit.
    name = records.get(b"GNU.sparse.name", records.get(b"path", name))
    path = os.fsdecode(name.rstrip(b"/"))
    known = _KINDS.get(kind)
    if known is None:
        raise DamagedArchive(f"{path!r} is of the unknown type {kind!r}")
    if known == REGULAR and name.endswith(b"/"):  # how v7 wrote folders
        known = DIRECTORY
    if b"size" in records:
        size = decimal(records[b"size"])
    return Member(
        path=path,
        kind=known,
        mode=number(block[100:108]),
        size=size if known == REGULAR else 0,
        mtime_ns=mtime_of(block, records),
        link_target=os.fsdecode(records.get(b"linkpath", text(block[157:257]))),
    )
