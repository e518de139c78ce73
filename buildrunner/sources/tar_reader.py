"""Reads a tar stream member by member, trusting nothing in it.

`tarfile` reads an extended header into memory whatever size it claims, and its stream mode copies
every byte several times. Formats: ustar, pax, GNU (long names, large numbers), v7.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from buildrunner.sources import tar_sparse
from buildrunner.sources.archive_member import SPECIAL, DamagedArchive, Member
from buildrunner.sources.tar_header import (
    check_sum,
    decimal,
    mtime_of,
    number,
    pax_records,
    size_of,
    text,
)
from buildrunner.sources.tar_stream import (
    BLOCK,
    DIRECTORY,
    HARD_LINK,
    REGULAR,
    SYMBOLIC_LINK,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildrunner.sources.archive_member import Readable
    from buildrunner.sources.tar_sparse import SparseFile

_HEADER_LIMIT = 1024 * 1024
_CHUNK_BYTES = 256 * 1024
_LISTED = b"D"
_KINDS = {
    b"0": REGULAR,
    b"\0": REGULAR,
    b"7": REGULAR,  # contiguous, which no system has ever made anything of
    tar_sparse.KIND: REGULAR,
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
            sparse = tar_sparse.sparse_file(block, records, self._exactly)
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
        yield from tar_sparse.expanded(self._stored_exactly, sparse)

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
