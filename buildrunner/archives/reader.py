"""An archive as the source of a build. Its content is not trusted.

`safe_members` reads the members of a ``.tar``, ``.tar.gz`` or ``.zip``. Unpacking them cannot write
outside the workspace:

* no absolute path, no ``..``, nothing written through a link of the archive;
* symbolic links stay as they are, wherever they point; hard links are to files or symbolic links
  that came before;
* no devices or pipes; set-id bits are dropped;
* everything belongs to root;
* limits on the number of members, the bytes, and how far they expand.

A member that breaks a rule raises a `SourceError` of one sentence, and ends the reading. So does an
archive that ends within a member, or within its gzip. An archive that ends between two members is
complete, as for GNU tar and the hosted service.

Source: buildrunner alone refuses such members; the hosted service's fetcher unpacks them as root.
"""

from __future__ import annotations

import io
import itertools
import threading
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from buildrunner.archives.members import (
    ArchiveLimits,
    DamagedArchive,
    Guard,
    Member,
    Members,
    Readable,
)
from buildrunner.archives.tar_reader import TarReader
from buildrunner.errors import SourceError

_CHUNK_BYTES = 256 * 1024


def safe_members(
    archive: BinaryIO,
    name: str,
    *,
    limits: ArchiveLimits | None = None,
    cancel: threading.Event | None = None,
    guard: Guard | None = None,
    encoded: bool = False,
) -> Iterator[tuple[Member, Iterable[bytes]]]:
    """Yield the archive's members with their content, safe to unpack as root.

    Memory grows with the names of files and links alone. A zip must be seekable, since its
    directory is at the end. A tar is read once from front to back.

    Args:
        archive: the archive's bytes.
        name: its file name: ``.zip`` is a zip, all else a tar, compressed with gzip or not.
        limits: the largest content that is accepted.
        cancel: ends the reading with an error.
        guard: checks the members instead of a new guard with ``limits``. The caller reads its
            counts.
        encoded: the object was stored with ``Content-Encoding: gzip``. The caller has decoded a
            zip.

    Raises:
        SourceError: the archive is damaged or refused, or the build was cancelled.

    Source: hosted builds distinguish zip from tar by the suffix of the object.
    """
    guard = guard or Guard(limits or ArchiveLimits())
    counted = Counted(archive)
    if name.endswith(".zip"):
        from buildrunner.archives.zip_reader import zip_members

        yield from _admitted(zip_members(archive), guard, _size_of(archive), cancel)
    else:
        stream = gunzipped(without_encoding(counted, guard.limits) if encoded else counted)
        reader = TarReader(stream, needs_end=False)  # GNU tar accepts a missing end, too
        members = ((member, reader.content()) for member in reader.members())
        yield from _admitted(members, guard, counted, cancel)
        while data := stream.read(_CHUNK_BYTES):  # read to the end, where the checksum is
            guard.count(data, counted.count)


def _size_of(archive: BinaryIO) -> Counted:
    counted = Counted(archive)
    position = archive.tell()
    counted.count = archive.seek(0, 2)
    archive.seek(position)
    return counted


def _admitted(
    members: Members, guard: Guard, archive: Counted, cancel: threading.Event | None
) -> Iterator[tuple[Member, Iterable[bytes]]]:
    for found, content in members:
        _go_on(cancel)
        member = guard.admit(found)
        if member is not None:
            yield member, _within_limits(content, guard, archive, cancel)


def _within_limits(
    content: Iterable[bytes], guard: Guard, archive: Counted, cancel: threading.Event | None
) -> Iterator[bytes]:
    for data in content:
        _go_on(cancel)
        guard.count(data, archive.count)
        yield data


def _go_on(cancel: threading.Event | None) -> None:
    if cancel is not None and cancel.is_set():
        raise SourceError("unpacking the source was stopped")


_MAGIC = b"\x1f\x8b"


class Counted:
    """A stream that counts what was read from it.

    Attributes:
        count: bytes so far.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.count = 0

    def read(self, size: int, /) -> bytes:
        """See `Readable.read`."""
        data = self._stream.read(size)
        self.count += len(data)
        return data


class _RawChunks(io.RawIOBase):
    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        data = self._left[: len(buffer)]
        buffer[: len(data)] = data
        self._left = self._left[len(data) :]
        return len(data)


def chunk_reader(chunks: Iterator[bytes]) -> io.BufferedReader:
    """Return a file that reads from chunks of any size."""
    return io.BufferedReader(_RawChunks(chunks), _CHUNK_BYTES)


def gunzipped(stream: Readable) -> io.BufferedReader:
    """Return the stream, decompressed if it begins as gzip does.

    Raises:
        SourceError: the stream is empty, or (while it is read) damaged.
    """
    first = stream.read(_CHUNK_BYTES)
    while 0 < len(first) < len(_MAGIC) and (more := stream.read(1)):
        first += more
    if not first:
        raise SourceError("the source archive is empty")
    chunks = itertools.chain((first,), iter(lambda: stream.read(_CHUNK_BYTES), b""))
    return chunk_reader(_gunzip(chunks) if first.startswith(_MAGIC) else chunks)


def without_encoding(stored: Counted, limits: ArchiveLimits) -> Readable:
    """Return the content of an object that is stored with ``Content-Encoding: gzip``.

    One layer of gzip is removed, whatever it holds. An object that is not compressed is returned
    unchanged. The limits of an archive hold for the result, which may be an archive with limits of
    its own.

    Source: ``gsutil cp``, with which hosted builds fetch; ``gsutil cp -Z`` compresses.
    """
    return _Bounded(gunzipped(stored), stored, Guard(limits))


class _Bounded:
    def __init__(self, stream: Readable, stored: Counted, guard: Guard) -> None:
        self._stream = stream
        self._stored = stored
        self._guard = guard

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._guard.count(data, self._stored.count)
        return data


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Decompress gzip members, which zeros may separate, and check their sums.

    `gzip.GzipFile` does the same from pieces of 8 KiB and takes twice as long.
    """
    member = None
    for chunk in chunks:
        data = chunk
        while data:
            if member is None:
                data = data.lstrip(b"\0")
                if not data:
                    break
                member = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                yield member.decompress(data, _CHUNK_BYTES)
            except zlib.error as error:
                raise DamagedArchive(error) from error
            data = member.unconsumed_tail
            if member.eof:
                data, member = member.unused_data, None
    if member is not None:
        raise DamagedArchive("it breaks off")
