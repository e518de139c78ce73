"""The protocol of stores that keep objects in buckets, and the reader of one object.

`ObjectReader` reads an object as one stream, also across broken connections.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import msgspec

from buildrunner.errors import StorageError
from buildrunner.retry import backoff

Retried = Callable[[StorageError], None]
"""Called, from any thread, with each error that will be retried."""

SCHEME = "gs://"


class ObjectUrl(msgspec.Struct, frozen=True):
    """``gs://bucket/name#generation``.

    Attributes:
        bucket: the bucket's name.
        name: name of the object, or a folder in the bucket; may be empty.
        generation: 0 for the newest.
    """

    bucket: str
    name: str = ""
    generation: int = 0

    @property
    def text(self) -> str:
        """Return the URL, with the generation if there is one."""
        suffix = f"#{self.generation}" if self.generation else ""
        return f"{SCHEME}{self.bucket}/{self.name}{suffix}"


class StoredObject(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of an object.

    Attributes:
        bucket, name, generation: its identity; generation 0 if the store has none.
        url: its URL, without the generation.
        size_bytes: its size.
        md5: base64 of the MD5 digest; empty if unknown.
        crc32c: base64 of the big-endian CRC32C; empty if unknown.
        gzip_encoded: its content is stored compressed (``Content-Encoding: gzip``); size and
            digests are of the stored bytes.
    """

    bucket: str
    name: str
    generation: int
    url: str
    size_bytes: int
    md5: str = ""
    crc32c: str = ""
    gzip_encoded: bool = False

    @property
    def pinned_url(self) -> str:
        """Return the URL with the generation, if the store has one."""
        return f"{self.url}#{self.generation}" if self.generation else self.url

    @property
    def object_url(self) -> str:
        """Return ``gs://BUCKET/NAME#GENERATION``, also if a folder replaces the bucket."""
        return ObjectUrl(self.bucket, self.name, self.generation).text


class Content(Protocol):
    """The content to store: the file methods that a store needs."""

    def read(self, size: int = -1, /) -> bytes:
        """Return at most ``size`` bytes; an empty result only at the end."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a position, and return it."""
        ...

    def tell(self) -> int:
        """Return the position of the next byte."""
        ...


class ObjectStore(Protocol):
    """Stores objects. Every method may be called from any thread concurrently.

    Every failure is a `StorageError`. A call that may succeed later is retried for up to a minute,
    for some seconds if the server has never answered; ``retried`` is called each time.
    """

    def url_of(self, bucket: str, name: str) -> str:
        """Return the URL of an object, whether or not it exists."""
        ...

    def check_bucket(self, bucket: str, *, retried: Retried | None = None) -> None:
        """Raise StorageError (``missing``) for a bucket that does not exist.

        Nothing is raised if the credentials may not read the bucket: they may still be allowed to
        write objects.
        """
        ...

    def find(
        self, bucket: str, name: str, generation: int = 0, *, retried: Retried | None = None
    ) -> StoredObject:
        """Describe an object, the newest generation unless one is given."""
        ...

    def read(self, found: StoredObject, offset: int, cancel: threading.Event) -> Iterator[bytes]:
        """Yield the bytes of an object from ``offset`` to the end, in one try.

        Ends early with an error, at the latest a second after ``cancel`` was set.
        """
        ...

    def write(
        self,
        bucket: str,
        name: str,
        content: Content,
        size_bytes: int,
        *,
        content_type: str,
        retried: Retried | None = None,
    ) -> StoredObject:
        """Store ``content`` (seekable, read from its start), perhaps over an existing object.

        Readers see either the old generation or the complete new one.
        """
        ...


def parse_object_url(url: str) -> ObjectUrl:
    """Parse ``gs://bucket/name#generation``; a ``#`` before anything else belongs to the name.

    Raises:
        StorageError: the text is no such URL.
    """
    bucket, _, name = url.removeprefix(SCHEME).partition("/")
    if not url.startswith(SCHEME) or not bucket:
        raise StorageError(
            f"{url} is not the address of an object", hint="it is of the form gs://BUCKET/OBJECT"
        )
    return ObjectUrl(bucket, *split_generation(name))


def split_generation(name: str) -> tuple[str, int]:
    """Split ``NAME#GENERATION``. The generation is 0 if the name does not end with a number.

    A generation has 64 bits. A longer number is a part of the name.
    """
    stem, mark, digits = name.rpartition("#")
    if mark and digits.isascii() and digits.isdecimal() and len(digits) < _GENERATION_DIGITS:
        return stem, int(digits)
    return name, 0


_GENERATION_DIGITS = 20
_TRIES = 6
_LONGEST_WAIT_S = 8.0
_STEP_BYTES = 1024 * 1024


class ObjectReader:
    """Reads one generation of an object sequentially, in constant memory. For one thread.

    If a connection breaks, a new one continues from the same position. At the end the object's
    checksum is verified.

    Args:
        store: the store of the object.
        found: the object.
        cancel: ends the reading with an error.
        hashes: hashlib's names of the digests to compute.
        moved: called periodically with the number of bytes read so far.
        retried: called with each error that will be retried.
        wait_s: the first pause before a retry; it doubles.
    """

    def __init__(
        self,
        store: ObjectStore,
        found: StoredObject,
        *,
        cancel: threading.Event,
        hashes: Iterable[str] = (),
        moved: Callable[[int], None] | None = None,
        retried: Callable[[StorageError], None] | None = None,
        wait_s: float = 0.5,
    ) -> None:
        import hashlib

        self.found = found
        self._store = store
        self._cancel = cancel
        self._moved = moved
        self._retried = retried
        self._wait_s = wait_s
        self._hashes = {name: hashlib.new(name, usedforsecurity=False) for name in hashes}
        self._sum = ObjectChecksum(found)
        self._pieces = self._resumed()
        self._piece = b""
        self._position = 0
        self._count = self._reported = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return at most ``size`` bytes (negative: the whole rest); an empty result at the end.

        Raises:
            StorageError: the object can't be read, or is damaged.
        """
        if size < 0:
            rest = self._piece[self._position :] + b"".join(self._pieces)
            self._piece, self._position = b"", 0
            return rest
        if self._position == len(self._piece):
            self._piece, self._position = next(self._pieces, b""), 0
        data = self._piece[self._position : self._position + size]
        self._position += len(data)
        return data

    def digest(self, name: str) -> bytes:
        """Return one of the requested checksums, after the whole object is read."""
        digest: bytes = self._hashes[name].digest()
        return digest

    def _resumed(self) -> Iterator[bytes]:
        failures = 0
        while self._count < self.found.size_bytes:
            before = self._count
            try:
                yield from self._one_try()
            except StorageError as error:
                failures = failures + 1 if self._count == before else 1
                if not error.transient or failures == _TRIES or self._cancel.is_set():
                    raise
                if self._retried:
                    self._retried(error)
                wait_s = backoff(failures, self._wait_s, _LONGEST_WAIT_S)
                self._cancel.wait(max(wait_s, error.retry_after_s))
        if not self._sum.fits():
            raise self._wrong("its checksum is not that of the object")

    def _one_try(self) -> Iterator[bytes]:
        size = self.found.size_bytes
        for piece in self._store.read(self.found, self._count, self._cancel):
            self._count += len(piece)
            if self._count > size:
                raise self._wrong(f"it is longer than the {size} bytes it should have")
            self._take(piece)
            yield piece
        if self._count < size:
            raise StorageError(
                f"{self.found.url}: the server broke off after {self._count} of {size} bytes",
                transient=True,
            )

    def _take(self, piece: bytes) -> None:
        self._sum.update(piece)
        for each in self._hashes.values():
            each.update(piece)
        if self._moved and self._count >= min(self.found.size_bytes, self._reported + _STEP_BYTES):
            self._reported = self._count
            self._moved(self._count)

    def _wrong(self, why: str) -> StorageError:
        return StorageError(
            f"{self.found.url} was not received as it is stored: {why}", corrupt=True
        )


_PIECE_BYTES = 256 * 1024


class ObjectChecksum:
    """The checksum of an object in the store: CRC32C, else MD5, else none."""

    def __init__(self, found: StoredObject) -> None:
        self._expected = found.crc32c or found.md5
        self._sum: Any = None
        if found.crc32c:
            import google_crc32c

            self._sum = google_crc32c.Checksum()  # type: ignore[no-untyped-call]
        elif found.md5:
            import hashlib

            self._sum = hashlib.md5(usedforsecurity=False)

    def update(self, data: bytes) -> None:
        """Add the next bytes of the content."""
        if self._sum is not None:
            self._sum.update(data)

    def fits(self) -> bool:
        """Return whether the content matches the stored checksum; true without a checksum."""
        from base64 import b64encode

        return self._sum is None or b64encode(self._sum.digest()).decode() == self._expected


def has_arrived(content: Content, size_bytes: int, stored: StoredObject) -> bool:
    """Return whether an object equals the sent content, by size and digest.

    Reads the content again.
    """
    if stored.size_bytes != size_bytes:
        return False
    checksum = ObjectChecksum(stored)
    content.seek(0)
    while data := content.read(_PIECE_BYTES):
        checksum.update(data)
    return checksum.fits()
