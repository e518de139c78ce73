"""Folders of this machine that stand for buckets, for people without any."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator

from buildrunner.errors import StorageError
from buildrunner.storage.object_store import Content, Retried, StoredObject

_PIECE_BYTES = 256 * 1024


class FolderStore:
    """Implements `ObjectStore` for the objects of one bucket below one prefix.

    The generation of an object is the time of its last change in microseconds; older generations
    are gone.

    Args:
        folder: absolute path; made by the first write.
        prefix: start of the names it stands for: empty, or with a slash at the end.
    """

    def __init__(self, folder: str, prefix: str = "") -> None:
        self._folder = folder
        self._prefix = prefix

    def url_of(self, bucket: str, name: str) -> str:  # noqa: ARG002  (it has one only)
        """See `ObjectStore.url_of`."""
        from urllib.parse import quote

        rest = name.removeprefix(self._prefix)
        return f"file://{quote(os.path.join(self._folder, rest))}"

    def check_bucket(self, bucket: str, *, retried: Retried | None = None) -> None:
        """See `ObjectStore.check_bucket`: a folder that is not there yet can be made."""

    def find(
        self,
        bucket: str,
        name: str,
        generation: int = 0,
        *,
        retried: Retried | None = None,  # noqa: ARG002  (a disk is not asked twice)
    ) -> StoredObject:
        """See `ObjectStore.find`."""
        url = self.url_of(bucket, name)
        try:
            status = os.stat(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            raise StorageError(f"there is no object {url}", missing=True) from None
        except OSError as error:
            raise _failed(url, error) from error
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(f"{url} is not a file", missing=True)
        found = _described(bucket, name, url, status)
        if generation not in (0, found.generation):
            raise StorageError(f"there is no generation {generation} of {url}", missing=True)
        return found

    def read(self, found: StoredObject, offset: int, cancel: threading.Event) -> Iterator[bytes]:
        """See `ObjectStore.read`."""
        try:
            with open(self._path(found.name), "rb") as file:
                now = _described(found.bucket, found.name, found.url, os.fstat(file.fileno()))
                if now.generation != found.generation:
                    raise StorageError(f"{found.url} has changed meanwhile", missing=True)
                file.seek(offset)
                while data := file.read(_PIECE_BYTES):
                    if cancel.is_set():
                        raise StorageError("the transfer was stopped")
                    yield data
        except OSError as error:
            raise _failed(found.url, error) from error

    def write(
        self,
        bucket: str,
        name: str,
        content: Content,
        size_bytes: int,  # noqa: ARG002  (the content ends by itself)
        *,
        content_type: str,  # noqa: ARG002  (files have none)
        retried: Retried | None = None,  # noqa: ARG002  (see above)
    ) -> StoredObject:
        """See `ObjectStore.write`: the file takes its name when it is whole."""
        import hashlib
        import tempfile
        from base64 import b64encode

        path = self._path(name)
        url = self.url_of(bucket, name)
        digest = hashlib.md5(usedforsecurity=False)
        content.seek(0)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as file:
                try:
                    while data := content.read(_PIECE_BYTES):
                        digest.update(data)
                        file.write(data)
                    file.flush()
                    os.fchmod(file.fileno(), 0o644)
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
                status = os.fstat(file.fileno())
        except OSError as error:
            raise _failed(url, error) from error
        md5 = b64encode(digest.digest()).decode()
        return _described(bucket, name, url, status, md5=md5)

    def _path(self, name: str) -> str:
        rest = name.removeprefix(self._prefix)
        if "\0" in rest or any(part in ("", ".", "..") for part in rest.split("/")):
            raise StorageError(f"{name!r} can't be the name of a file")
        return os.path.join(self._folder, rest)


def _described(
    bucket: str, name: str, url: str, status: os.stat_result, *, md5: str = ""
) -> StoredObject:
    return StoredObject(
        bucket=bucket,
        name=name,
        generation=status.st_mtime_ns // 1000,
        url=url,
        size_bytes=status.st_size,
        md5=md5,
    )


def _failed(url: str, error: OSError) -> StorageError:
    denied = isinstance(error, PermissionError)
    return StorageError(f"{url}: {error.strerror or error}", unauthorized=denied)
