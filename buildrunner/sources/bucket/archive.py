"""An archive in a bucket as the source of a build.

Source: semantics 7.6. An object whose name ends with ``.zip`` is read as a zip. The generation is
looked up once, and everything is read from it, even if the object is replaced meanwhile. Digests
are of the stored bytes. ``Content-Encoding: gzip`` is decoded, as gsutil does.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import BinaryIO

import msgspec

from buildrunner.archives.members import (
    ArchiveLimits,
    DamagedArchive,
    Guard,
    Member,
    Members,
    Readable,
)
from buildrunner.archives.reader import Counted, safe_members, without_encoding
from buildrunner.errors import SourceError, StorageError
from buildrunner.sources.fetched_files import FetchedFiles, FetchReport, no_room, scratch_file
from buildrunner.spec.model.results import FileHashes, Hash, HashType, SourceProvenance
from buildrunner.spec.model.source import StorageSource, StorageSourceManifest
from buildrunner.storage.object_store import ObjectReader, ObjectStore, ObjectUrl, StoredObject
from buildrunner.storage.parallel import interruptible

_PIECE_BYTES = 256 * 1024
_TRIES_WHEN_CORRUPT = 2
_NOT_KEPT = "the source archive can't be kept while it is unpacked"

HASHLIB_NAMES = {HashType.SHA256: "sha256", HashType.MD5: "md5", HashType.SHA512: "sha512"}
"""The types of ``sourceProvenanceHash`` that a file can have, with hashlib's names for them."""


class BucketSource(ABC):
    """A source that an object of a bucket names. Implements `FetchedSource`.

    Args:
        source: the object; generation 0 is the newest.
        hashes: hash types for ``sourceProvenance.fileHashes``.
    """

    def __init__(
        self, source: StorageSource | StorageSourceManifest, hashes: Sequence[HashType]
    ) -> None:
        self._url = ObjectUrl(source.bucket, source.object, source.generation)
        self._hashes = tuple(one for one in dict.fromkeys(hashes) if one in HASHLIB_NAMES)

    def fetch(
        self,
        unpack: Callable[[Members], None],
        *,
        cancel: threading.Event,
        report: FetchReport,
    ) -> FetchedFiles:
        """See `FetchedSource.fetch`."""
        try:
            return self._fetch(unpack, cancel, report)
        except StorageError as error:
            raise SourceError(f"the source can't be fetched: {error}", hint=error.hint) from error

    @abstractmethod
    def _fetch(
        self, unpack: Callable[[Members], None], cancel: threading.Event, report: FetchReport
    ) -> FetchedFiles: ...

    def _find(
        self, store: ObjectStore, cancel: threading.Event, report: FetchReport
    ) -> StoredObject:
        """Look up the object. Every later read uses the found generation."""
        url = self._url
        find = partial(
            store.find,
            url.bucket,
            url.name,
            url.generation,
            retried=lambda error: report.line(f"Trying again: {error}"),
        )
        return interruptible(find, cancel)


class StorageArchive(BucketSource):
    """``source.storageSource``: an archive.

    Args:
        source: the object; generation 0 is the newest.
        store: the store of the object's bucket.
        hashes: hash types for ``sourceProvenance.fileHashes``.
        limits: limits of the archive's content.
        wait_s: the first pause before a retry; it doubles.
    """

    def __init__(
        self,
        source: StorageSource,
        store: ObjectStore,
        *,
        hashes: Sequence[HashType] = (),
        limits: ArchiveLimits | None = None,
        wait_s: float = 0.5,
    ) -> None:
        super().__init__(source, hashes)
        self._source = source
        self._store = store
        self._limits = limits or ArchiveLimits()
        self._wait_s = wait_s

    def _fetch(
        self,
        unpack: Callable[[Members], None],
        cancel: threading.Event,
        report: FetchReport,
    ) -> FetchedFiles:
        source = self._source
        report.line(f"Fetching storage object: {self._url.text}")
        found = self._find(self._store, cancel, report)
        check_size(found, self._limits)
        report.line(f"Copying {found.object_url}...")
        guard, reader = self._unpack(found, unpack, cancel, report)
        size = human_size(found.size_bytes)
        report.line(f"/ [1 files][{size:>9}/{size:>9}]")
        report.line(f"Operation completed over 1 objects/{size}.")
        return FetchedFiles(
            files=guard.files,
            size_bytes=guard.size_bytes,
            provenance=SourceProvenance(
                resolved_storage_source=msgspec.structs.replace(
                    source, generation=found.generation
                ),
                file_hashes=self._file_hashes(found, reader),
            ),
        )

    def _unpack(
        self,
        found: StoredObject,
        unpack: Callable[[Members], None],
        cancel: threading.Event,
        report: FetchReport,
    ) -> tuple[Guard, ObjectReader]:
        """Unpack the archive. Retry once if the received bytes differ from the stored ones."""
        tries_left = _TRIES_WHEN_CORRUPT
        while True:
            tries_left -= 1
            reader = self._reader(found, cancel, report)
            guard = Guard(self._limits)
            try:
                unpack(self._unpacked(reader, guard, cancel))
            except StorageError as error:
                if not error.corrupt or not tries_left:
                    raise
                report.line(f"Trying again: {error}")
            else:
                return guard, reader

    def _reader(
        self, found: StoredObject, cancel: threading.Event, report: FetchReport
    ) -> ObjectReader:
        return ObjectReader(
            self._store,
            found,
            cancel=cancel,
            hashes=[HASHLIB_NAMES[one] for one in self._hashes],
            moved=lambda count: report.moved(found.url, count, found.size_bytes),
            retried=lambda error: report.line(f"Trying again: {error}"),
            wait_s=self._wait_s,
        )

    def _unpacked(
        self, reader: ObjectReader, guard: Guard, cancel: threading.Event
    ) -> Iterator[tuple[Member, Iterable[bytes]]]:
        name, encoded = self._source.object, reader.found.gzip_encoded
        try:
            if not name.endswith(".zip"):
                yield from safe_members(
                    reader,  # type: ignore[arg-type]
                    name,
                    guard=guard,
                    cancel=cancel,
                    encoded=encoded,
                )
                return
            # A zip's directory is at its end, so all of it must be downloaded first.
            with scratch_file() as file:
                _copy(content_of(reader, guard.limits), file)
                file.seek(0)
                yield from safe_members(file, name, guard=guard, cancel=cancel)
        except DamagedArchive:
            read_on(reader)
            raise

    def _file_hashes(self, found: StoredObject, reader: ObjectReader) -> dict[str, FileHashes]:
        """Return one entry, for the archive itself. Source: semantics 1.6."""
        if not self._hashes:
            return {}
        hashes = tuple(
            Hash(type=one, value=reader.digest(HASHLIB_NAMES[one])) for one in self._hashes
        )
        return {found.object_url: FileHashes(file_hash=hashes)}


def check_size(found: StoredObject, limits: ArchiveLimits) -> None:
    """Refuse an object by its stored size, before any of it is read.

    Raises:
        SourceError: it is larger than the content of a source may be.
    """
    if found.size_bytes > limits.size_bytes:
        raise SourceError(
            f"{found.object_url} has {human_size(found.size_bytes)}, and a source may have "
            f"{human_size(limits.size_bytes)}"
        )


def content_of(reader: ObjectReader, limits: ArchiveLimits) -> Readable:
    """Return an object's content, with ``Content-Encoding: gzip`` decoded.

    Raises:
        SourceError: the object is damaged or expands too far.
    """
    found = reader.found
    if not found.gzip_encoded or not found.size_bytes:
        return reader
    return without_encoding(Counted(reader), limits)


def human_size(size_bytes: int) -> str:
    """Format a size like gsutil: ``5.1 KiB``."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def read_on(reader: ObjectReader) -> None:
    """Read to the end, where the checksum shows whether the received bytes are the stored ones.

    Raises:
        StorageError: the received bytes differ from the stored ones.
    """
    while reader.read(_PIECE_BYTES):
        pass


def _copy(content: Readable, file: BinaryIO) -> None:
    while data := content.read(_PIECE_BYTES):
        try:
            file.write(data)
        except OSError as error:
            raise no_room(_NOT_KEPT, error) from error
    try:
        file.flush()
    except OSError as error:
        raise no_room(_NOT_KEPT, error) from error
