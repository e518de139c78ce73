"""Uploads a source to a bucket before its build, as gcloud does (``--gcs-source-staging-dir``)."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import BinaryIO

from buildrunner.errors import SourceError, StorageError
from buildrunner.sources.bucket.archive import human_size
from buildrunner.sources.fetched_files import no_room, scratch_file
from buildrunner.sources.local_folder import LocalFolder
from buildrunner.spec.model.source import StorageSource
from buildrunner.storage.object_store import ObjectUrl
from buildrunner.storage.stores import Stores

_LEVEL = 6
_TYPE = "application/gzip"


class Staging:
    """A folder of a bucket for uploaded sources.

    Args:
        stores: finds the store of the bucket.
        place: the folder.
        now: the time for the objects' names.
        token: 32 hexadecimal digits that make the names unique.
        say: takes messages for the user.
        bar: opens a progress bar for a number of bytes. The function that it yields takes the
            number of bytes that were read since the last call.
    """

    def __init__(
        self,
        stores: Stores,
        place: ObjectUrl,
        *,
        now: datetime,
        token: str,
        say: Callable[[str], None],
        bar: Callable[[int], AbstractContextManager[Callable[[int], object]]],
    ) -> None:
        folder = place.name.rstrip("/")
        self._stem = f"{folder}/" if folder else ""
        self._stem += f"{now.timestamp():.6f}-{token}"
        self._bucket = place.bucket
        self._stores = stores
        self._say = say
        self._bar = bar

    def stage_folder(self, folder: LocalFolder, shown: str) -> StorageSource:
        """Pack and upload a folder. Returns its object.

        Args:
            folder: the source.
            shown: the folder's name on the command line.

        Raises:
            SourceError: the folder can't be read, packed or uploaded.
        """
        summary = folder.scan()
        self._say(
            f"Creating temporary archive of {summary.files} file(s) totalling "
            f"{human_size(summary.size_bytes)} before compression."
        )
        if summary.left_out and folder.rules.origin == "generated defaults":
            self._say("Some files were not included in the source upload.")
        name = f"{self._stem}.tgz"
        with scratch_file() as file:
            try:
                with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=_LEVEL) as packed:
                    for piece in folder.pack():
                        packed.write(piece)
                file.flush()
            except OSError as error:
                raise no_room("the source can't be packed", error) from error
            for warning in folder.warnings:
                self._say(f"warning: {warning}")
            self._say(f"Uploading tarball of [{shown}] to [gs://{self._bucket}/{name}]")
            return self._store(name, file, _TYPE)

    def stage_file(self, path: str) -> StorageSource:
        """Upload an archive unchanged. Returns its object.

        Raises:
            SourceError: the archive can't be read or uploaded.
        """
        ending = ".zip" if path.endswith(".zip") else ".tar" if path.endswith(".tar") else ".tgz"
        name = f"{self._stem}{ending}"
        self._say(f"Uploading local file [{path}] to [gs://{self._bucket}/{name}].")
        try:
            with open(path, "rb") as file:
                return self._store(name, file, "application/octet-stream")
        except OSError as error:
            raise SourceError(f"{path} can't be read: {error.strerror or error}") from error

    def _store(self, name: str, content: BinaryIO, kind: str) -> StorageSource:
        size = content.seek(0, os.SEEK_END)
        content.seek(0)
        try:
            store = self._stores.store_of(self._bucket, name)
            with self._bar(size) as moved:
                stored = store.write(
                    self._bucket,
                    name,
                    _Watched(content, moved),
                    size,
                    content_type=kind,
                    retried=lambda error: self._say(f"Trying again: {error}"),
                )
        except StorageError as error:
            raise SourceError(f"the source can't be uploaded: {error}", hint=error.hint) from error
        return StorageSource(bucket=stored.bucket, object=stored.name, generation=stored.generation)


class _Watched:
    """A file that reports the number of bytes read; after a seek back, the number is negative."""

    def __init__(self, file: BinaryIO, moved: Callable[[int], object]) -> None:
        self._file = file
        self._moved = moved
        self._reported = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        at = self._file.tell()
        self._moved(at - self._reported)
        self._reported = at
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
