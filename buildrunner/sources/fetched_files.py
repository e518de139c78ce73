"""Files that a source fetches, for whoever places them in a workspace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from buildrunner.archives.members import Members
from buildrunner.spec.model.results import SourceProvenance


class FetchedFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What was fetched.

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
                that was unpacked before is gone. What the members raise comes out of it.
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
        """How much of something has arrived."""
        ...
