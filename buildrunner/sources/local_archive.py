"""An archive on this machine as the source of a build (``submit source.tgz``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from buildrunner.engine.workspace_fetched import FetchedFiles
from buildrunner.errors import SourceError
from buildrunner.sources.archive import safe_tar
from buildrunner.sources.archive_rules import ArchiveLimits, Guard
from buildrunner.sources.local_folder import format_size

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable

    from buildrunner.engine.workspace_protocol import FetchReport


class LocalArchive:
    """A ``.tgz``, ``.tar.gz``, ``.tar`` or ``.zip`` file. Implements `FetchedSource`."""

    def __init__(self, path: str) -> None:
        self._path = path

    def fetch(
        self,
        unpack: Callable[[Iterable[bytes]], None],
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
                unpack(safe_tar(file, self._path, guard=guard, cancel=cancel))
        except OSError as error:
            reason = error.strerror or error
            raise SourceError(f"the source {self._path} can't be read: {reason}") from error
        return FetchedFiles(files=guard.files, size_bytes=guard.size_bytes)
