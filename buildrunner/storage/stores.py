"""The store of each bucket: Cloud Storage, or a folder of this machine in its place."""

from __future__ import annotations

import os
import posixpath
import re
import stat
import threading
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from buildrunner.errors import StorageError, UsageError
from buildrunner.spec.model.source import is_bucket_name
from buildrunner.storage.object_store import (
    SCHEME,
    Content,
    ObjectStore,
    ObjectUrl,
    Retried,
    StoredObject,
    parse_object_url,
    split_generation,
)

_FILE = "file://"
UPLOADS_BUCKET: Final = "buildrunner-sources"
"""The bucket of sources that were uploaded to a server. No store has it: a build reads only the
archive of its own source (`sources.uploads`), and writes nothing there."""
_OF_ONE_BUILD = re.compile(r"/[^/]*[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}.*")


class Stores:
    """The stores of one process. Thread-safe; nothing is imported before the first use of a store.

    Args:
        folders: ``gs://BUCKET`` or ``gs://BUCKET/PREFIX`` -> ``file:///ABSOLUTE/FOLDER``. The
            longest match of an object's name counts. ``file:///FOLDER`` -> the same lets
            builds write there under that name, which a config alone does not permit.
        buckets: names of the buckets that may be used; None for all.

    Raises:
        UsageError: an entry has another form.
    """

    def __init__(self, folders: Mapping[str, str], buckets: Collection[str] | None = None) -> None:
        self._buckets = None if buckets is None else frozenset(buckets)
        entries = [_checked(entry) for entry in folders.items()]
        entries.sort(key=lambda entry: len(entry[0]), reverse=True)
        self._folders = dict(entries)
        self._google: ObjectStore | None = None

    def place(self, url: str) -> tuple[ObjectStore, ObjectUrl]:
        """Return the store for a ``gs://`` or ``file:///`` URL, and the place in it.

        Raises:
            StorageError: the URL is neither, or a folder where builds may not write.
        """
        if not url.startswith(_FILE):
            place = parse_object_url(url)
            return self.store_of(place.bucket, place.name), place
        folder = posixpath.normpath(url.removeprefix(_FILE)).lstrip("/")
        wanted = f"{_FILE}/{folder}".rstrip("/") + "/"
        for prefix, mapped in self._folders.items():
            if wanted.startswith(prefix) and url.startswith(f"{_FILE}/"):
                rest = wanted.removeprefix(prefix)
                return FolderStore(posixpath.join(mapped, rest).rstrip("/") or "/"), ObjectUrl("")
        # A folder with $BUILD_ID would permit only that build.
        allowed = _OF_ONE_BUILD.sub("/", wanted).rstrip("/")
        raise StorageError(
            f"builds may not write to the folder {url}",
            unauthorized=True,
            hint=f'"{allowed}" = "{allowed}" under [storage.folders] lets them',
        )

    def written(self, url: str) -> tuple[ObjectStore, ObjectUrl]:
        """Return store and place of an object by the URL that a store returned for it.

        A file must be in a folder that replaces a bucket, or into which builds may write.

        Raises:
            StorageError: the URL is invalid, or names no file in such a folder.
        """
        if not url.startswith(_FILE):
            place = parse_object_url(url)
            return self.store_of(place.bucket, place.name), place
        from urllib.parse import unquote

        name, generation = split_generation(url.removeprefix(_FILE))
        path = posixpath.normpath(unquote(name))
        for prefix, folder in self._folders.items():
            bucket = prefix.removeprefix(SCHEME).partition("/")[0]
            if prefix.startswith(SCHEME) and not self._may_use(bucket):
                continue
            inside = folder.rstrip("/") + "/"
            if path.startswith(inside):
                place = ObjectUrl("", path.removeprefix(inside), generation)
                return FolderStore(folder), place
        raise StorageError(f"no folder of the settings holds {url}", unauthorized=True)

    def _may_use(self, bucket: str) -> bool:
        return self._buckets is None or bucket in self._buckets

    def store_of(self, bucket: str, name: str) -> ObjectStore:
        """Return the store for that object.

        Raises:
            StorageError: the bucket's name is invalid, or the bucket is that of a server's uploads,
                or the bucket may not be used.
        """
        if not is_bucket_name(bucket):
            raise StorageError(
                f"{bucket!r} is not the name of a bucket",
                hint="a name has 3 to 222 small letters, digits, -, _ and .",
            )
        if bucket == UPLOADS_BUCKET:
            raise StorageError(
                f"{SCHEME}{bucket} has the sources that were uploaded to a server: a build reads "
                "its own source there, and nothing else",
                unauthorized=True,
                hint="name another bucket",
            )
        if self._buckets is not None and not self._may_use(bucket):
            allowed = ", ".join(sorted(self._buckets)) or "none"
            raise StorageError(
                f"this build may not use the bucket {SCHEME}{bucket}",
                unauthorized=True,
                hint=f"it may use: {allowed}",
            )
        wanted = f"{SCHEME}{bucket}/{name}/"
        for prefix, folder in self._folders.items():
            if wanted.startswith(prefix):
                return FolderStore(folder, prefix.removeprefix(SCHEME).partition("/")[2])
        if self._google is None:
            from buildrunner.storage.gcs import GoogleStore

            self._google = GoogleStore()
        return self._google


def _checked(entry: tuple[str, str]) -> tuple[str, str]:
    url, place = entry
    folder = place.removeprefix(_FILE)
    is_bucket = url.startswith(SCHEME) and url.removeprefix(SCHEME).strip("/")
    if not is_bucket and not url.startswith(f"{_FILE}/"):
        raise UsageError(
            f"{url} is not a bucket", hint="a place of objects is gs://BUCKET or gs://BUCKET/PREFIX"
        )
    if not place.startswith(_FILE) or not folder.startswith("/"):
        raise UsageError(f"{place} is not a place for {url}", hint="it is file:///ABSOLUTE/FOLDER")
    return (f"{_FILE}/" if url == f"{_FILE}/" else f"{url.rstrip('/')}/"), folder.rstrip("/") or "/"


_PIECE_BYTES = 256 * 1024


class FolderStore:
    """Implements `ObjectStore` for the objects of one bucket below one prefix.

    The generation of an object is its modification time in microseconds; older generations
    are not kept.

    Args:
        folder: absolute path; created by the first write.
        prefix: prefix of its objects' names: empty, or with a slash at the end.
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
        """See `ObjectStore.check_bucket`: a missing folder can be created."""

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
        """See `ObjectStore.write`: the file gets its name when it is complete."""
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
