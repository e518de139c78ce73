"""A list of files in buckets as the source of a build (``source.storageSourceManifest``).

Source: semantics 7.5 and gcs-fetcher: a JSON object of path -> ``{sourceUrl, sha1sum}``; files are
fetched several at a time, checked, and always have mode 0555.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any, BinaryIO
from urllib.parse import unquote

import msgspec

from buildrunner.archives.members import (
    REGULAR,
    ArchiveLimits,
    DamagedArchive,
    Guard,
    Member,
    Members,
)
from buildrunner.errors import SourceError, StorageError
from buildrunner.retry import LONGEST_WAIT_S, backoff
from buildrunner.sources.bucket.archive import (
    HASHLIB_NAMES,
    BucketSource,
    check_size,
    content_of,
    human_size,
    read_on,
)
from buildrunner.sources.fetched_files import FetchedFiles, FetchReport, no_room
from buildrunner.spec.model.results import FileHashes, Hash, HashType, SourceProvenance
from buildrunner.spec.model.source import StorageSourceManifest
from buildrunner.storage.object_store import (
    SCHEME,
    ObjectReader,
    ObjectUrl,
    StoredObject,
    parse_object_url,
)
from buildrunner.storage.parallel import in_parallel
from buildrunner.storage.stores import Stores

_MODE = 0o555
_MANIFEST_LIMIT = 256 * 1024 * 1024
_SPOOL_BYTES = 1024 * 1024
_PIECE_BYTES = 256 * 1024
_TRIES = 3
_HOSTS = ("https://storage.googleapis.com/", "http://storage.googleapis.com/")


class ManifestEntry(msgspec.Struct, frozen=True):
    """One file of a manifest.

    Attributes:
        path: the file's path in the workspace.
        url: the object with the file's content.
        sha1: hexadecimal digest of the content; empty if the content is not checked.
    """

    path: str
    url: ObjectUrl
    sha1: str


class _Fetched(msgspec.Struct, frozen=True):
    content: BinaryIO
    size_bytes: int
    hashes: tuple[Hash, ...]


class StorageManifest(BucketSource):
    """``source.storageSourceManifest``: a list of files.

    Args:
        source: the manifest's object; generation 0 is the newest.
        stores: finds the stores of the manifest and its files.
        hashes: hash types for ``sourceProvenance.fileHashes``.
        limits: limits of all files together.
        wait_s: the first pause before a retry; it doubles.
    """

    def __init__(
        self,
        source: StorageSourceManifest,
        stores: Stores,
        *,
        hashes: Sequence[HashType] = (),
        limits: ArchiveLimits | None = None,
        wait_s: float = 0.1,
    ) -> None:
        super().__init__(source, hashes)
        self._limits = limits or ArchiveLimits()
        self._source = source
        self._stores = stores
        self._wait_s = wait_s

    def _fetch(
        self,
        unpack: Callable[[Members], None],
        cancel: threading.Event,
        report: FetchReport,
    ) -> FetchedFiles:
        source = self._source
        report.line(f"Fetching manifest {self._url.text}")
        store = self._stores.store_of(source.bucket, source.object)
        found = self._find(store, cancel, report)
        if found.size_bytes > _MANIFEST_LIMIT:
            raise SourceError(f"{found.url} is too large for a manifest: {found.size_bytes} bytes")
        reader = ObjectReader(store, found, cancel=cancel, wait_s=self._wait_s)
        text = _text(reader, self._limits)
        entries = parse_manifest(text, found.url)
        report.line(f"Processing {len(entries)} files of {found.object_url}.")
        guard = Guard(self._limits)
        hashes: dict[str, FileHashes] = {}
        unpack(self._members(entries, found.url, guard, hashes, cancel, report))
        report.line(f"Fetched {guard.files} files, {guard.size_bytes} bytes.")
        return FetchedFiles(
            files=guard.files,
            size_bytes=guard.size_bytes,
            provenance=SourceProvenance(
                resolved_storage_source_manifest=msgspec.structs.replace(
                    source, generation=found.generation
                ),
                file_hashes=hashes,
            ),
        )

    def _members(
        self,
        entries: Sequence[ManifestEntry],
        manifest_url: str,
        guard: Guard,
        hashes: dict[str, FileHashes],
        cancel: threading.Event,
        report: FetchReport,
    ) -> Iterator[tuple[Member, Iterable[bytes]]]:
        members = [_admitted(entry, guard) for entry in entries]
        total = _Total(self._limits)
        jobs = [partial(self._fetch_file, entry, total, cancel) for entry in entries]
        fetching = in_parallel(jobs, cancel=cancel, discard=lambda one: one.content.close())
        with closing(fetching):
            for member, fetched in zip(members, fetching, strict=True):
                size = fetched.size_bytes
                with fetched.content as content:
                    yield msgspec.structs.replace(member, size=size), _content(content, size, guard)
                guard.size_bytes += size
                if fetched.hashes:
                    hashes[member.path] = FileHashes(file_hash=fetched.hashes)
                report.moved(manifest_url, guard.size_bytes, 0)

    def _fetch_file(self, entry: ManifestEntry, total: _Total, cancel: threading.Event) -> _Fetched:
        tries = 0
        while True:
            tries += 1
            try:
                return self._fetch_once(entry, total, cancel)
            except StorageError as error:
                if not error.corrupt or tries == _TRIES:
                    raise
                cancel.wait(backoff(tries, self._wait_s, LONGEST_WAIT_S))

    def _fetch_once(self, entry: ManifestEntry, total: _Total, cancel: threading.Event) -> _Fetched:
        url = entry.url
        store = self._stores.store_of(url.bucket, url.name)
        found = store.find(url.bucket, url.name, url.generation)
        check_size(found, self._limits)
        reader = ObjectReader(store, found, cancel=cancel, wait_s=self._wait_s)
        sums = {
            name: hashlib.new(name, usedforsecurity=False)
            for name in ("sha1", *(HASHLIB_NAMES[one] for one in self._hashes))
        }
        content: Any = tempfile.SpooledTemporaryFile(  # noqa: SIM115  (the caller closes it)
            _SPOOL_BYTES, prefix="buildrunner-source-"
        )
        taken = 0
        try:
            for data in _pieces(reader, self._limits):
                taken += len(data)
                total.add(len(data))
                content.write(data)
                for one in sums.values():
                    one.update(data)
            _check_sum(entry, found, sums["sha1"].hexdigest())
            size = content.tell()
            content.seek(0)
        except OSError as error:
            _let_go(content)
            raise no_room(f"{entry.path} can't be kept while it is unpacked", error) from error
        except BaseException:
            _let_go(content)
            total.add(-taken)  # another try may follow
            raise
        hashes = tuple(
            Hash(type=one, value=sums[HASHLIB_NAMES[one]].digest()) for one in self._hashes
        )
        return _Fetched(content, size, hashes)


class _Total:
    """Counts the content of all files while it arrives: several are fetched at a time."""

    def __init__(self, limits: ArchiveLimits) -> None:
        self._most = limits.size_bytes
        self._count = 0
        self._lock = threading.Lock()

    def add(self, size_bytes: int) -> None:
        """Add bytes that will be kept; a negative number if they are not kept any more.

        Raises:
            SourceError: there are more than the source may have.
        """
        with self._lock:
            self._count += size_bytes
            is_over = size_bytes > 0 and self._count > self._most
        if is_over:
            raise SourceError(
                f"the files of the manifest have more than the {human_size(self._most)} that a "
                "source may have"
            )


def _let_go(content: BinaryIO) -> None:
    """Close a file and ignore errors: a full disk may refuse data that is not needed any more."""
    with suppress(OSError):
        content.close()


def _pieces(reader: ObjectReader, limits: ArchiveLimits) -> Iterator[bytes]:
    """Yield an object's content. Source: gcs-fetcher's client decodes a ``Content-Encoding``."""
    content = content_of(reader, limits)
    try:
        while data := content.read(_PIECE_BYTES):
            yield data
    except DamagedArchive as error:
        read_on(reader)
        raise SourceError(
            f"{reader.found.object_url} has the Content-Encoding gzip, but its gzip is damaged"
        ) from error


def _text(reader: ObjectReader, limits: ArchiveLimits) -> bytes:
    text = bytearray()
    for data in _pieces(reader, limits):
        text += data
        if len(text) > _MANIFEST_LIMIT:
            raise SourceError(f"{reader.found.url} is too large for a manifest")
    return bytes(text)


def _content(content: BinaryIO, size_bytes: int, guard: Guard) -> Iterator[bytes]:
    while data := content.read(_PIECE_BYTES):
        guard.count(data, guard.size_bytes + size_bytes)
        yield data


def parse_manifest(text: bytes, name: str) -> list[ManifestEntry]:
    """Return the files of a manifest, in order.

    Raises:
        SourceError: the text is not a manifest.
    """
    try:
        document: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"the manifest {name} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise SourceError(f"the manifest {name} is not a JSON object of paths")
    return [_entry(path, entry, name) for path, entry in document.items()]


def _entry(path: str, entry: object, name: str) -> ManifestEntry:
    fields: dict[str, Any] = entry if isinstance(entry, dict) else {}
    url, sha1 = fields.get("sourceUrl"), fields.get("sha1sum", "")
    if not isinstance(url, str) or not isinstance(sha1, str):
        raise SourceError(
            f"the manifest {name} is damaged: {path!r} has no sourceUrl or no sha1sum that is text"
        )
    for host in _HOSTS:
        if url.startswith(host):
            url = SCHEME + unquote(url.removeprefix(host))
    try:
        return ManifestEntry(path, parse_object_url(url), sha1.lower())
    except StorageError as error:
        raise SourceError(
            f"the manifest {name} is damaged: the sourceUrl of {path!r}, {url!r}, is not an object",
            hint="it is of the form gs://BUCKET/OBJECT or https://storage.googleapis.com/...",
        ) from error


def _check_sum(entry: ManifestEntry, found: StoredObject, sha1: str) -> None:
    if entry.sha1 and sha1 != entry.sha1:
        raise StorageError(
            f"{found.object_url} has the SHA-1 sum {sha1}, but the manifest says {entry.sha1}",
            corrupt=True,
        )


def _admitted(entry: ManifestEntry, guard: Guard) -> Member:
    member = guard.admit(Member(path=entry.path, kind=REGULAR, mode=_MODE))
    if member is None:
        raise SourceError(f"the manifest names {entry.path!r}, which is the workspace itself")
    return member
