"""An archive from somewhere else as the source of a build: what is in it is not to be trusted.

`safe_members` takes a ``.tar``, ``.tar.gz`` or ``.zip`` apart into members that can't get outside
the workspace, however they are unpacked:

* no absolute path, no ``..``, nothing written through a link of the archive;
* links point inside the workspace, hard links at files that came before;
* no devices, pipes, sparse files; set-id bits are dropped;
* everything belongs to root;
* limits on the number of members, the bytes, and how far they expand.

Whatever breaks a rule is a `SourceError` of one sentence, and nothing comes after it.

Source: the rule of refusing is ours; the hosted service's fetcher unpacks as root without it.
"""

from __future__ import annotations

import itertools
import zlib
from typing import TYPE_CHECKING, BinaryIO

from buildrunner.errors import SourceError
from buildrunner.sources.archive_rules import ArchiveLimits, Guard
from buildrunner.sources.tar_reader import DamagedArchive, Member, Readable, TarReader

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterable, Iterator

    from buildrunner.sources.tar_reader import Members

_CHUNK_BYTES = 256 * 1024


class _Counted:
    """A stream that counts what was read from it."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.count = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self.count += len(data)
        return data


def safe_members(
    archive: BinaryIO,
    name: str,
    *,
    limits: ArchiveLimits | None = None,
    cancel: threading.Event | None = None,
    guard: Guard | None = None,
) -> Iterator[tuple[Member, Iterable[bytes]]]:
    """The archive's members with their content, safe to unpack as root.

    Memory is constant, but for the names of files and links. A zip must be seekable, for its
    directory is at the end; everything else is read once from front to back.

    Args:
        archive: the archive's bytes.
        name: its file name: ``.zip`` is a zip, all else a tar, compressed with gzip or not.
        limits: how much it may hold.
        cancel: ends it with an error.
        guard: checks the members, in place of one with ``limits``; its counts are for who gave it.

    Raises:
        SourceError: it is damaged or refused, or the build was cancelled.

    Source: hosted builds tell zip from tar by the object's suffix.
    """
    guard = guard or Guard(limits or ArchiveLimits())
    counted = _Counted(archive)
    if name.endswith(".zip"):
        from buildrunner.sources.zip_reader import zip_members

        yield from _admitted(zip_members(archive), guard, _size_of(archive), cancel)
    else:
        stream = _decompressed(counted)
        reader = TarReader(stream)
        members = ((member, reader.content()) for member in reader.members())
        yield from _admitted(members, guard, counted, cancel)
        while data := stream.read(_CHUNK_BYTES):  # to the end, where the sum is
            guard.count(data, counted.count)


def _size_of(archive: BinaryIO) -> _Counted:
    counted = _Counted(archive)
    position = archive.tell()
    counted.count = archive.seek(0, 2)
    archive.seek(position)
    return counted


def _admitted(
    members: Members, guard: Guard, archive: _Counted, cancel: threading.Event | None
) -> Iterator[tuple[Member, Iterable[bytes]]]:
    for found, content in members:
        _go_on(cancel)
        member = guard.admit(found)
        if member is not None:
            yield member, _within_limits(content, guard, archive, cancel)


def _within_limits(
    content: Iterable[bytes], guard: Guard, archive: _Counted, cancel: threading.Event | None
) -> Iterator[bytes]:
    for data in content:
        _go_on(cancel)
        guard.count(data, archive.count)
        yield data


def _go_on(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise SourceError("unpacking the source was stopped")


# --- gzip ----------------------------------------------------------------------------------------


def _gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress one or more gzip members, which zeros may separate; their sums are checked."""
    state = None
    for chunk in chunks:
        data = chunk
        while data:
            if state is None:
                data = data.lstrip(b"\0")
                state = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                yield state.decompress(data, _CHUNK_BYTES)
            except zlib.error as error:
                raise DamagedArchive(error) from error
            data = state.unconsumed_tail
            if state.eof:
                data = state.unused_data.lstrip(b"\0")
                state = None
    if state is not None:
        raise DamagedArchive("it breaks off")


class _ChunkReader:
    """Reads from chunks as from a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._position = 0

    def read(self, size: int, /) -> bytes:
        while self._position == len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._chunk, self._position = chunk, 0
        data = self._chunk[self._position : self._position + size]
        self._position += len(data)
        return data


def _decompressed(stream: Readable) -> Readable:
    first = stream.read(_CHUNK_BYTES)
    if not first:
        raise SourceError("the source archive is empty")
    chunks = itertools.chain((first,), iter(lambda: stream.read(_CHUNK_BYTES), b""))
    return _ChunkReader(_gunzip(chunks) if first.startswith(b"\x1f\x8b") else chunks)
