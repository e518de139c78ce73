"""The seam between buildrunner and whatever keeps objects in buckets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from buildrunner.errors import StorageError

Retried = Callable[[StorageError], None]
"""Told, from any thread, of an error that another try follows."""

SCHEME = "gs://"


class ObjectUrl(msgspec.Struct, frozen=True):
    """``gs://bucket/name#generation``.

    Attributes:
        bucket: the bucket's name.
        name: of the object, or a folder in the bucket; may be empty.
        generation: 0 for the newest.
    """

    bucket: str
    name: str = ""
    generation: int = 0

    @property
    def text(self) -> str:
        """The URL, with the generation where there is one."""
        suffix = f"#{self.generation}" if self.generation else ""
        return f"{SCHEME}{self.bucket}/{self.name}{suffix}"


class StoredObject(msgspec.Struct, frozen=True, kw_only=True):
    """One generation of an object, as the store describes it.

    Attributes:
        bucket, name, generation: which one; the generation is 0 where a store knows none.
        url: where it is, without the generation.
        size_bytes: its size.
        md5: base64 of the MD5 sum; empty when the store does not tell.
        crc32c: base64 of the big-endian CRC32C sum; empty when the store does not tell.
        gzip_encoded: its content was compressed on the way in (``Content-Encoding: gzip``); size
            and sums are of what is stored.
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
        """The URL with the generation, where the store knows one."""
        return f"{self.url}#{self.generation}" if self.generation else self.url

    @property
    def object_url(self) -> str:
        """``gs://BUCKET/NAME#GENERATION``, also where a folder stands for the bucket."""
        return ObjectUrl(self.bucket, self.name, self.generation).text


class Content(Protocol):
    """The content to store: as much of a file as a store needs."""

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes, none only at the end."""
        ...

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go on from there."""
        ...

    def tell(self) -> int:
        """Return the position of the next byte."""
        ...


class ObjectStore(Protocol):
    """Keeps objects. Every method may be called from any thread at the same time.

    Every failure is a `StorageError`. A call that may succeed later is retried for up to a minute,
    for some seconds if the server has never answered; ``retried`` is called each time.
    """

    def url_of(self, bucket: str, name: str) -> str:
        """Return the URL of an object, whether or not it exists."""
        ...

    def check_bucket(self, bucket: str, *, retried: Retried | None = None) -> None:
        """Raise StorageError (``missing``) for a bucket that does not exist.

        Credentials that may write objects may not always read buckets: then nothing is raised.
        """
        ...

    def find(
        self, bucket: str, name: str, generation: int = 0, *, retried: Retried | None = None
    ) -> StoredObject:
        """Describe an object, the newest generation unless one is given."""
        ...

    def read(self, found: StoredObject, offset: int, cancel: threading.Event) -> Iterator[bytes]:
        """Its bytes from ``offset`` to the end, in one try.

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
        """Store ``content`` (seekable, read from its start) under a name that may be taken.

        Readers see the old generation or the whole new one.
        """
        ...


def parse_object_url(url: str) -> ObjectUrl:
    """The parts of ``gs://bucket/name#generation``; a ``#`` before anything else is in the name.

    Raises:
        StorageError: it is no such URL.
    """
    bucket, _, name = url.removeprefix(SCHEME).partition("/")
    if not url.startswith(SCHEME) or not bucket:
        raise StorageError(
            f"{url} is not the address of an object", hint="it is of the form gs://BUCKET/OBJECT"
        )
    stem, mark, digits = name.rpartition("#")
    if mark and digits.isdecimal():
        return ObjectUrl(bucket, stem, int(digits))
    return ObjectUrl(bucket, name)
