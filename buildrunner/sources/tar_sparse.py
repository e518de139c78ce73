"""Sparse files of a tar stream, with their holes filled: bsdtar packs files with holes so.

Source: GNU tar's manual, "PAX Format, Version 1.0". The older formats (type ``S``, 0.0 and 0.1) are
written by ``tar --sparse`` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.sources.tar_stream import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_ZEROS = bytes(256 * 1024)
_MOST_PIECES = 100_000
_DIGITS = 20


class BadSparse(ValueError):
    """A map of pieces that can't be read."""


def is_known(records: Mapping[bytes, bytes]) -> bool:
    """Whether extended records tell of a sparse file of the format that is known here."""
    return (
        records.get(b"GNU.sparse.major") == b"1"
        and records.get(b"GNU.sparse.minor") == b"0"
        and b"GNU.sparse.name" in records
        and b"GNU.sparse.realsize" in records
    )


def expanded(read: Callable[[int], bytes], size: int) -> Iterator[bytes]:
    """The content of a sparse file.

    Args:
        read: the stored bytes: exactly as many as are asked for, or an error.
        size: of the file.

    Raises:
        BadSparse: the map is none, or leads out of the file.
    """
    position = 0
    for offset, length in _pieces(read):
        if offset < position or offset + length > size:
            raise BadSparse
        yield from _hole(offset - position)
        position = offset + length
        while length:
            data = read(min(length, len(_ZEROS)))
            length -= len(data)
            yield data
    yield from _hole(size - position)


def _hole(size: int) -> Iterator[bytes]:
    while size:
        zeros = _ZEROS[: min(size, len(_ZEROS))]
        size -= len(zeros)
        yield zeros


def _pieces(read: Callable[[int], bytes]) -> list[tuple[int, int]]:
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
    return list(zip(numbers[1::2], numbers[2::2], strict=True))
