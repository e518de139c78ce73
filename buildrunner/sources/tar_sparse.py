"""Sparse files of a tar stream, with their holes filled.

``tar --sparse`` writes them, and bsdtar without being asked. Where their pieces are is told in
headers (GNU's own format, and pax in its first two forms), or before their content (its third).

Source: GNU tar's manual, "Storing Sparse Files".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from buildrunner.sources.archive_member import DamagedArchive
from buildrunner.sources.tar_header import decimal, number
from buildrunner.sources.tar_stream import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Pieces = list[tuple[int, int]]
    """Offset and length of each, in the file."""

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
