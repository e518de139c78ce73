"""Files that a source fetches, to be placed in a workspace."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Protocol

import msgspec

from buildrunner.archives.members import Members
from buildrunner.errors import SourceError
from buildrunner.spec.model.results import SourceProvenance


class FetchedFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a fetch.

    Attributes:
        files: files and links.
        size_bytes: content of the files.
        provenance: the exact source, if known.
    """

    files: int
    size_bytes: int
    provenance: SourceProvenance | None = None


class FetchedSource(Protocol):
    """A source that must be fetched."""

    def fetch(
        self,
        unpack: Callable[[Members], None],
        *,
        cancel: threading.Event,
        report: FetchReport,
    ) -> FetchedFiles:
        """Fetch the source, in the calling thread.

        Args:
            unpack: unpacks folders, files and links, which are safe to unpack as root. A second
                call first removes everything that the first call unpacked. An error raised by the
                members passes through ``unpack``.
            cancel: when set, the fetch stops soon.
            report: receives the progress.

        Raises:
            SourceError: the source can't be fetched. The message is one sentence.
            EngineError: an error of ``unpack``.
        """
        ...


class FetchReport(Protocol):
    """Receives the progress of a fetch. Any thread may call it."""

    def line(self, text: str) -> None:
        """Report a line for the build's log, below ``FETCHSOURCE``."""
        ...

    def moved(self, name: str, current_bytes: int, total_bytes: int) -> None:
        """Report how many bytes of an item have arrived."""
        ...


@contextmanager
def scratch_file() -> Iterator[BinaryIO]:
    """Open a temporary file (in ``TMPDIR``) for the block.

    Raises:
        SourceError: the file can't be created.
    """
    try:
        file = tempfile.TemporaryFile(prefix="buildrunner-source-")  # noqa: SIM115  (see below)
    except OSError as error:
        raise no_room("a temporary file can't be made", error) from error
    try:
        yield file
    finally:
        # A full disk refuses the buffered data again. That data is not needed any more.
        with suppress(OSError):
            file.close()


def no_room(what: str, error: OSError) -> SourceError:
    """Return the error for a temporary file that can't be created or written."""
    return SourceError(
        f"{what}: {os.strerror(error.errno or 0)}", hint="TMPDIR names a folder with more room"
    )
