"""The store of each bucket: Cloud Storage, unless a folder was named in its place."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Mapping
from typing import Final

from buildrunner.errors import StorageError, UsageError
from buildrunner.spec.model.source import is_bucket_name
from buildrunner.storage.object_store import SCHEME, ObjectStore, ObjectUrl, parse_object_url

_FILE = "file://"
UPLOADS_BUCKET: Final = "buildrunner-sources"
"""The bucket of the sources that were uploaded to a server. No store has it: a build reads the one
archive that is its source (`sources.uploaded_source`), and writes nothing there."""
_OF_ONE_BUILD = re.compile(r"/[^/]*[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}.*")


class Stores:
    """The stores of one process. Thread-safe; nothing is imported before a store is asked for.

    Args:
        folders: ``gs://BUCKET`` or ``gs://BUCKET/PREFIX`` -> ``file:///ABSOLUTE/FOLDER``. The
            longest one that fits an object's name counts. ``file:///FOLDER`` -> the same lets
            builds write there by that name: a config alone can't.
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
        """The store for a ``gs://`` or ``file:///`` URL, and the place in it.

        Raises:
            StorageError: it is neither, or a folder where builds may not write.
        """
        if not url.startswith(_FILE):
            place = parse_object_url(url)
            return self.store_of(place.bucket, place.name), place
        folder = posixpath.normpath(url.removeprefix(_FILE)).lstrip("/")
        wanted = f"{_FILE}/{folder}".rstrip("/") + "/"
        for prefix, mapped in self._folders.items():
            if wanted.startswith(prefix) and url.startswith(f"{_FILE}/"):
                from buildrunner.storage.folder_store import FolderStore

                rest = wanted.removeprefix(prefix)
                return FolderStore(posixpath.join(mapped, rest).rstrip("/") or "/"), ObjectUrl("")
        # The folder of one build ($BUILD_ID) would let that one in, and no other.
        allowed = _OF_ONE_BUILD.sub("/", wanted).rstrip("/")
        raise StorageError(
            f"builds may not write to the folder {url}",
            unauthorized=True,
            hint=f'"{allowed}" = "{allowed}" under [storage.folders] lets them',
        )

    def written(self, url: str) -> tuple[ObjectStore, ObjectUrl]:
        """The store and place of an object by the URL under which a store says it is.

        A file is given only from a folder that stands for a bucket, or into which builds may write.

        Raises:
            StorageError: it is no such URL.
        """
        if not url.startswith(_FILE):
            place = parse_object_url(url)
            return self.store_of(place.bucket, place.name), place
        from urllib.parse import unquote

        from buildrunner.storage.folder_store import FolderStore

        name, _, generation = url.removeprefix(_FILE).partition("#")
        path = posixpath.normpath(unquote(name))
        for prefix, folder in self._folders.items():
            bucket = prefix.removeprefix(SCHEME).partition("/")[0]
            if prefix.startswith(SCHEME) and not self._may_use(bucket):
                continue
            inside = folder.rstrip("/") + "/"
            if path.startswith(inside):
                place = ObjectUrl("", path.removeprefix(inside), int(generation or 0))
                return FolderStore(folder), place
        raise StorageError(f"no folder of the settings holds {url}", unauthorized=True)

    def _may_use(self, bucket: str) -> bool:
        return self._buckets is None or bucket in self._buckets

    def store_of(self, bucket: str, name: str) -> ObjectStore:
        """The store that has, or would have, that object.

        Raises:
            StorageError: that is no name of a bucket, the bucket of a server's uploads, or a bucket
                that may not be used.
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
                from buildrunner.storage.folder_store import FolderStore

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
