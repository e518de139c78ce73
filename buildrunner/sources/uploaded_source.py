"""The one uploaded archive that a build may read: its own source.

A build never gets a store for the bucket of uploads. It gets this read-only view of one archive of
its own project, and what is read must have the SHA-256 sum that the archive is named by.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from buildrunner.errors import StorageError
from buildrunner.storage.folder_store import FolderStore
from buildrunner.storage.stores import UPLOADS_BUCKET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from buildrunner.spec.model_source import StorageSource
    from buildrunner.storage.object_store import Content, Retried, StoredObject

ARCHIVES: Final = "archives"
ENDINGS: Final = (".tar.gz", ".tgz", ".tar", ".zip")
_SUM: Final = "[0-9a-f]{64}"


def is_upload_of(project: str, name: str) -> bool:
    """Return whether ``name`` can be an uploaded archive of ``project``.

    Only `SourceUploads` makes such names, so that a name never leads anywhere else.
    """
    endings = "|".join(map(re.escape, ENDINGS))
    pattern = f"{re.escape(project)}/{ARCHIVES}/{_SUM}(?:{endings})"
    return re.fullmatch(pattern, name) is not None


def blob_name(project: str, sha256: str) -> str:
    """Return where the file with that sum lies below the folder of uploads."""
    return f"{project}/blobs/{sha256[:2]}/{sha256}"


class UploadedSource:
    """Implements `ObjectStore` for the archive that a build names as its source.

    Args:
        folder: the server's folder of uploads; empty where there is no server.
        project: the project of the build.
        source: what the build names.
    """

    def __init__(self, folder: str, project: str, source: StorageSource) -> None:
        self._folder = folder
        self._project = project
        self._name = source.object
        self._store = FolderStore(folder)

    def url_of(self, bucket: str, name: str) -> str:
        """See `ObjectStore.url_of`."""
        return f"gs://{bucket}/{name}"

    def check_bucket(self, bucket: str, *, retried: Retried | None = None) -> None:
        """See `ObjectStore.check_bucket`: the bucket is always there."""

    def find(
        self, bucket: str, name: str, generation: int = 0, *, retried: Retried | None = None
    ) -> StoredObject:
        """See `ObjectStore.find`."""
        url = self.url_of(bucket, name)
        own = name == self._name and is_upload_of(self._project, name)
        if bucket != UPLOADS_BUCKET or not self._folder or not own:
            raise StorageError(
                f"{url} was not uploaded for this build's project, {self._project}",
                unauthorized=True,
            )
        found = self._store.find(bucket, name, generation, retried=retried)
        found = replace(found, url=url)
        if not found.size_bytes:  # of an empty object nothing is read
            list(self.read(found, 0, threading.Event()))
        return found

    def read(self, found: StoredObject, offset: int, cancel: threading.Event) -> Iterator[bytes]:
        """See `ObjectStore.read`. A damaged archive is removed, so that it can be sent again.

        Raises:
            StorageError: it can't be read, or its sum is not that of its name.
        """
        digest = hashlib.sha256()
        for piece in self._store.read(found, offset, cancel):
            digest.update(piece)
            yield piece
        named = os.path.basename(found.name).partition(".")[0]
        if offset == 0 and digest.hexdigest() != named:
            for name in (found.name, blob_name(self._project, named)):
                with suppress(OSError):
                    os.unlink(os.path.join(self._folder, name))
            raise StorageError(
                f"{found.url} is not what was uploaded: its SHA-256 sum is {digest.hexdigest()}",
                hint="submit again, which uploads it again",
            )

    def write(
        self,
        bucket: str,
        name: str,
        content: Content,  # noqa: ARG002
        size_bytes: int,  # noqa: ARG002
        *,
        content_type: str,  # noqa: ARG002
        retried: Retried | None = None,  # noqa: ARG002
    ) -> StoredObject:
        """See `ObjectStore.write`: a build changes no uploads.

        Raises:
            StorageError: always.
        """
        raise StorageError(f"{self.url_of(bucket, name)} can't be written", unauthorized=True)
