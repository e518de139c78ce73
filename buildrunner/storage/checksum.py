"""Whether bytes are those of a stored object."""

from __future__ import annotations

from typing import Any

from buildrunner.storage.object_store import Content, StoredObject

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
