"""Decompresses streams that are not to be trusted, piece by piece."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator

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


class ChunkReader:
    """Reads from chunks as from a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._position = 0

    def read(self, size: int, /) -> bytes:
        """See `Readable.read`."""
        while self._position == len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return b""
            self._chunk, self._position = chunk, 0
        data = self._chunk[self._position : self._position + size]
        self._position += len(data)
        return data


def gunzipped(stream: Readable) -> Readable:
    """What a stream holds: decompressed when it begins as gzip does, else as it is.

    Raises:
        SourceError: it is empty, or (while it is read) damaged.
    """
    first = stream.read(_CHUNK_BYTES)
    while 0 < len(first) < len(_MAGIC) and (more := stream.read(1)):
        first += more
    if not first:
        raise SourceError("the source archive is empty")
    chunks = itertools.chain((first,), iter(lambda: stream.read(_CHUNK_BYTES), b""))
    return ChunkReader(_gunzip(chunks) if first.startswith(_MAGIC) else chunks)


def without_encoding(stored: Counted, limits: ArchiveLimits) -> Readable:
    """The content of an object that is stored with ``Content-Encoding: gzip``.

    One layer is undone, whatever is within, and nothing where it was never put on. What comes out
    counts as the content of an archive does: what is within it may be one of its own.

    Source: ``gsutil cp``, with which hosted builds fetch; ``gsutil cp -Z`` puts it on.
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


def _gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress one or more gzip members, which zeros may separate; their sums are checked."""
    state = None
    for chunk in chunks:
        data = chunk
        while data:
            if state is None:
                data = data.lstrip(b"\0")
                if not data:
                    break
                state = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                yield state.decompress(data, _CHUNK_BYTES)
            except zlib.error as error:
                raise DamagedArchive(error) from error
            data = state.unconsumed_tail
            if state.eof:
                data = state.unused_data
                state = None
    if state is not None:
        raise DamagedArchive("it breaks off")
