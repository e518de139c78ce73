"""Streams under an archive: bytes counted, chunks read as a file, gzip undone."""

from __future__ import annotations

import io
import itertools
import zlib
from collections.abc import Iterator
from typing import Any

from buildrunner.archives.members import DamagedArchive, Readable
from buildrunner.archives.rules import ArchiveLimits, Guard
from buildrunner.errors import SourceError

_CHUNK_BYTES = 256 * 1024
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

    One layer of gzip is undone, whatever is within, and none if the object is not compressed. The
    limits of an archive hold for the result, which may be an archive with limits of its own.

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
