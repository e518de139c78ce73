"""An archive on this machine as the source of a build (``submit source.tgz``)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from io import BufferedReader

from buildrunner.archives.members import Members
from buildrunner.archives.reader import safe_members
from buildrunner.archives.rules import ArchiveLimits, Guard
from buildrunner.errors import SourceError
from buildrunner.sources.fetched_files import FetchedFiles, FetchReport
from buildrunner.sources.folder.local_folder import format_size
from buildrunner.spec.model.results import FileHashes, Hash, HashType, SourceProvenance


class LocalArchive:
    """A ``.tgz``, ``.tar.gz``, ``.tar`` or ``.zip`` file. Implements `FetchedSource`.

    Args:
        path: of the file.
        hashes: ``sourceProvenanceHash``: which hashes of it the Build gets.
    """

    def __init__(self, path: str, hashes: Sequence[HashType] = ()) -> None:
        self._path = path
        self._hashes = tuple(dict.fromkeys(hashes))

    def fetch(
        self,
        unpack: Callable[[Members], None],
        *,
        cancel: threading.Event,
        report: FetchReport,
    ) -> FetchedFiles:
        """See `FetchedSource.fetch`."""
        guard = Guard(ArchiveLimits())
        try:
            with open(self._path, "rb") as file:
                size = format_size(os.fstat(file.fileno()).st_size)
                report.line(f"Source: {self._path} ({size})")
                unpack(safe_members(file, self._path, guard=guard, cancel=cancel))
                provenance = self._provenance(file)
        except OSError as error:
            reason = error.strerror or error
            raise SourceError(f"the source {self._path} can't be read: {reason}") from error
        return FetchedFiles(files=guard.files, size_bytes=guard.size_bytes, provenance=provenance)

    def _provenance(self, file: BufferedReader) -> SourceProvenance | None:
        """One entry, for the archive itself. Source: semantics 1.6."""
        if not self._hashes:
            return None
        import hashlib

        from buildrunner.sources.bucket.archive import HASHLIB_NAMES

        hashes = []
        for one in self._hashes:
            if one not in HASHLIB_NAMES:
                continue
            file.seek(0)
            digest = hashlib.file_digest(file, HASHLIB_NAMES[one]).digest()
            hashes.append(Hash(type=one, value=digest))
        return SourceProvenance(file_hashes={self._path: FileHashes(file_hash=tuple(hashes))})
