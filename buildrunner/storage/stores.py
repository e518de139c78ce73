"""Which store has which bucket: Cloud Storage, unless a folder was named in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.errors import UsageError
from buildrunner.storage.object_store import SCHEME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.storage.object_store import ObjectStore


class Stores:
    """The stores of one process. Thread-safe; nothing is imported before a store is asked for.

    Args:
        folders: ``gs://BUCKET`` or ``gs://BUCKET/PREFIX`` -> ``file:///ABSOLUTE/FOLDER``. The
            longest one that fits an object's name counts.

    Raises:
        UsageError: an entry has another form.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        self._folders = dict(sorted(map(_checked, folders.items()), key=_length, reverse=True))
        self._google: ObjectStore | None = None

    def store_of(self, bucket: str, name: str) -> ObjectStore:
        """The store that has, or would have, that object."""
        wanted = f"{bucket}/{name}"
        for place, folder in self._folders.items():
            if f"{wanted}/".startswith(place):
                from buildrunner.storage.folder_store import FolderStore

                return FolderStore(folder, place.partition("/")[2])
        if self._google is None:
            from buildrunner.storage.gcs_client import GoogleStore

            self._google = GoogleStore()
        return self._google


def _checked(entry: tuple[str, str]) -> tuple[str, str]:
    url, place = entry
    folder = place.removeprefix("file://")
    if not url.startswith(SCHEME) or not url.removeprefix(SCHEME).strip("/"):
        raise UsageError(
            f"{url} is not a bucket", hint="a place of objects is gs://BUCKET or gs://BUCKET/PREFIX"
        )
    if not place.startswith("file://") or not folder.startswith("/"):
        raise UsageError(f"{place} is not a place for {url}", hint="it is file:///ABSOLUTE/FOLDER")
    return url.removeprefix(SCHEME).rstrip("/") + "/", folder.rstrip("/") or "/"


def _length(entry: tuple[str, str]) -> int:
    return len(entry[0])
