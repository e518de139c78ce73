"""Files that a source fetches, for whoever places them in a workspace."""

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
        provenance: exactly which source it was, where that can be said.
    """

    files: int
    size_bytes: int
    provenance: SourceProvenance | None = None


class FetchedSource(Protocol):
    """Something that has to be fetched."""

    def fetch(
        self,
        unpack: Callable[[Members], None],
        *,
        cancel: threading.Event,
        report: FetchReport,
    ) -> FetchedFiles:
        """Fetch it, in the calling thread.

        Args:
            unpack: takes folders, files and links, safe to unpack as root. When called again, all
                that was unpacked before is gone. Errors of the members are raised.
            cancel: give up soon once it is set.
            report: told of progress.

        Raises:
            SourceError: one sentence.
            EngineError: what ``unpack`` raised.
        """
        ...


class FetchReport(Protocol):
    """Takes what there is to tell while a source is fetched. Any thread may call it."""

    def line(self, text: str) -> None:
        """A line for the build's log, below ``FETCHSOURCE``."""
        ...

    def moved(self, name: str, current_bytes: int, total_bytes: int) -> None:
        """Report how many bytes of an item have arrived."""
        ...


@contextmanager
def scratch_file() -> Iterator[BinaryIO]:
    """A file in the system's folder for such (``TMPDIR``), open for the block.

    Raises:
        SourceError: none can be made.
    """
    try:
        file = tempfile.TemporaryFile(prefix="buildrunner-source-")  # noqa: SIM115  (see below)
    except OSError as error:
        raise no_room("a temporary file can't be made", error) from error
    try:
        yield file
    finally:
        # A disk that is full refuses once more what is not written yet: nobody needs it any more.
        with suppress(OSError):
            file.close()


def no_room(what: str, error: OSError) -> SourceError:
    """The error for a file of this kind that can't be made or written to."""
    return SourceError(
        f"{what}: {os.strerror(error.errno or 0)}", hint="TMPDIR names a folder with more room"
    )
