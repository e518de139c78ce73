"""Kept workspaces on their way between a worker and its server.

A workspace is sent as one gzip stream of records: a number of bytes (four bytes, little-endian),
and these bytes. A file is a record with its name, records with its content, and an empty record. An
empty record in place of a name ends the stream. So a worker sends an archive while it comes from
the engine, before its size is known, and needs no space for a copy.

The server takes the stream in pieces, each with the offset at which it continues the copy. The
piece at offset 0 begins anew.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import BinaryIO

from buildrunner.archives.members import DamagedArchive, Readable
from buildrunner.archives.reader import chunk_reader, gunzipped
from buildrunner.errors import SourceError
from buildrunner.file_trees import remove_tree
from buildrunner.workspace.kept import ARCHIVE, PROVENANCE, Keeping, KeptFiles, KeptFolder

PIECE_BYTES = 8 << 20
"""The most bytes in one piece that a worker sends."""

_LENGTH = struct.Struct("<I")
_RECORD_BYTES = 16 << 20
_READ_BYTES = 1 << 20
_NAME = re.compile(
    r"checked-(workspace|volume-[A-Za-z0-9][A-Za-z0-9_.-]{0,199})\.tar|provenance\.json"
)
_ARRIVING = "arriving.gz"


class Packer:
    """Implements `KeptFiles`: packs the files into the pieces of a stream. `close` ends it.

    Args:
        send: receives each piece, and whether it is the last one.
    """

    def __init__(self, send: Callable[[bytes, bool], object]) -> None:
        self._send = send
        self._gzip = zlib.compressobj(1, wbits=zlib.MAX_WBITS | 16)
        self._buffer = bytearray()

    @contextmanager
    def file(self, name: str) -> Iterator[Callable[[bytes], object]]:
        """See `KeptFiles.file`."""
        self._record(name.encode())
        yield self._write
        self._record(b"")

    def close(self) -> None:
        """Send the end of the stream."""
        self._record(b"")
        self._buffer += self._gzip.flush()
        self._send(bytes(self._buffer), True)

    def _write(self, data: bytes) -> None:
        if data:  # an empty record would end the file
            self._record(data)

    def _record(self, data: bytes) -> None:
        self._buffer += self._gzip.compress(_LENGTH.pack(len(data)) + data)
        if len(self._buffer) >= PIECE_BYTES:
            piece, self._buffer = bytes(self._buffer), bytearray()
            self._send(piece, False)


def packed(folder: KeptFolder) -> Iterator[bytes] | None:
    """Return the stream of a workspace, which may be deleted meanwhile; None if it is not kept."""
    with ExitStack() as stack:
        try:
            files = {
                name: stack.enter_context(open(os.path.join(folder.path, name), "rb"))
                for name in sorted(os.listdir(folder.path))
                if _NAME.fullmatch(name)
            }
        except FileNotFoundError:
            return None
        return _stream(files, stack.pop_all()) if ARCHIVE in files else None


def _stream(files: Mapping[str, BinaryIO], opened: ExitStack) -> Iterator[bytes]:
    pieces: list[bytes] = []
    packer = Packer(lambda piece, _: pieces.append(piece))
    with opened:
        for name, file in files.items():
            with packer.file(name) as write:
                while data := file.read(_READ_BYTES):
                    write(data)
                    yield from pieces
                    pieces.clear()
        packer.close()
        yield from pieces


def unpack(chunks: Iterator[bytes], target: KeptFiles, limit_bytes: int) -> None:
    """Store the files of a stream. Their archives are not checked: see `RestoredWorkspace`.

    Args:
        chunks: the stream, in pieces of any size.
        target: takes the files.
        limit_bytes: the most bytes of all files.

    Raises:
        SourceError: the stream is damaged, has another file, or is larger than the limit.
    """
    stream = gunzipped(chunk_reader(chunks))
    names = set()
    left = limit_bytes
    while name := _record(stream).decode("ascii", "replace"):
        if name in names or not _NAME.fullmatch(name):
            raise DamagedArchive(f"a kept workspace has no file {name[:100]!r} here")
        names.add(name)
        with target.file(name) as write:
            while data := _record(stream):
                left -= len(data)
                if left < 0:
                    raise too_large(limit_bytes)
                write(data)
    if stream.read(1) or ARCHIVE not in names:  # reads up to the sum at the end
        raise DamagedArchive("this is no kept workspace")


def _record(stream: Readable) -> bytes:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise DamagedArchive("it breaks off")
    (size,) = _LENGTH.unpack(head)
    if size > _RECORD_BYTES:
        raise DamagedArchive(f"a record has {size:,} bytes")
    data = stream.read(size)
    if len(data) < size:
        raise DamagedArchive("it breaks off")
    return data


class Arriving:
    """The kept workspace of a build that a worker sends to its server in pieces.

    Args:
        keeping: the server's store.
        build_id: the build.
    """

    def __init__(self, keeping: Keeping, build_id: str) -> None:
        self._keeping = keeping
        self._build_id = build_id
        self._folder = keeping.of(build_id)
        self._path = os.path.join(self._folder, _ARRIVING)

    def take(self, offset: int, piece: bytes, *, last: bool, provenance: bytes) -> int:
        """Append a piece if it continues the copy, or begin anew at offset 0.

        Args:
            offset: bytes of the copy, according to the worker.
            piece: the piece.
            last: the workspace has arrived: keep it.
            provenance: the origin of its source, as JSON, which the server knows; empty for none.

        Returns:
            Bytes of the copy after that; those before if the piece does not continue it.

        Raises:
            SourceError: the workspace is too large, or see `unpack`.
            OSError: it can't be written.
        """
        end = offset + len(piece)
        if end > self._keeping.most_of_one:
            raise too_large(self._keeping.most_of_one)
        if offset and not os.path.exists(self._path) and self._keeping.has(self._build_id):
            return end  # the last piece was sent twice
        size = self._append(offset, piece)
        if last and size == end:
            self._keep(provenance)
        return size

    def _append(self, offset: int, piece: bytes) -> int:
        if not offset:
            remove_tree(self._folder)
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._keeping.make_room(offset + len(piece), spared=self._folder)
        with open(self._path, "ab") as file:
            if file.tell() == offset:
                file.write(piece)
            return file.tell()

    def _keep(self, provenance: bytes) -> None:
        with open(self._path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not os.path.exists(self._path):  # the worker sent the last piece again meanwhile
                return
            try:
                self._unpack(file, provenance)
            except (SourceError, OSError):
                remove_tree(self._folder)
                raise

    def _unpack(self, file: BinaryIO, provenance: bytes) -> None:
        with self._keeping.filled(self._build_id) as kept:
            unpack(iter(lambda: file.read(_READ_BYTES), b""), kept, self._keeping.most_of_one)
            os.unlink(self._path)  # it must not count beside its content
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(kept.path, PROVENANCE))
            if provenance:
                with kept.file(PROVENANCE) as write:
                    write(provenance)


def too_large(limit_bytes: int) -> SourceError:
    """Return the error for a workspace that is larger than one may be."""
    return SourceError(f"the workspace is larger than {limit_bytes:,} bytes")
