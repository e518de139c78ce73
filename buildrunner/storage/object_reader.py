"""Reads an object as one stream, whatever happens to the connections that carry it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from buildrunner.errors import StorageError
from buildrunner.retry import backoff
from buildrunner.storage.object_store import Content, ObjectStore, StoredObject

_TRIES = 6
_LONGEST_WAIT_S = 8.0
_STEP_BYTES = 1024 * 1024


class ObjectReader:
    """One generation of an object, from front to back, in constant memory. For one thread.

    A connection that breaks is followed by another from where it broke off. At the end the
    object's own checksum is compared with what was read.

    Args:
        store: who has it.
        found: which object.
        cancel: ends reading with an error.
        hashes: names of hashlib's sums to compute on the way.
        moved: told how many bytes were read so far, now and then.
        retried: told of every error that another try follows.
        wait_s: the pause before the second try; it doubles.
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
        """At most ``size`` bytes (all that is left when negative), none only at the end.

        Raises:
            StorageError: it can't be had, or not as it was stored.
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
    """The sum that the store knows of an object: CRC32C, else MD5, else none."""

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
        """Take more of the content."""
        if self._sum is not None:
            self._sum.update(data)

    def fits(self) -> bool:
        """Whether what was taken is what is stored; true where the store does not tell."""
        from base64 import b64encode

        return self._sum is None or b64encode(self._sum.digest()).decode() == self._expected


def has_arrived(content: Content, size_bytes: int, stored: StoredObject) -> bool:
    """Whether an object is what was sent, by its size and sum; reads the content once more."""
    if stored.size_bytes != size_bytes:
        return False
    checksum = ObjectChecksum(stored)
    content.seek(0)
    while data := content.read(_PIECE_BYTES):
        checksum.update(data)
    return checksum.fits()
