"""``/workspace`` of a build whose source is fetched from somewhere and unpacked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from buildrunner.engine.workspace import volume_name
from buildrunner.engine.workspace_archive import fill_volume
from buildrunner.engine.workspace_protocol import FetchReport, PreparedWorkspace
from buildrunner.errors import EngineError, SourceError
from buildrunner.spec.model_results import SourceProvenance

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine


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
        unpack: Callable[[Iterable[bytes]], None],
        *,
        cancel: threading.Event,
        report: FetchReport,
    ) -> FetchedFiles:
        """Fetch it, in the calling thread.

        Args:
            unpack: takes the files as a tar stream, safe to unpack as root. When called again, all
                that was unpacked before is gone. What the stream raises comes out of it.
            cancel: give up soon once it is set.
            report: told of progress.

        Raises:
            SourceError: one sentence.
            EngineError: what ``unpack`` raised.
        """
        ...


class FetchedWorkspace:
    """A workspace with what is fetched. Implements `Workspace`."""

    def __init__(self, source: FetchedSource) -> None:
        self._source = source
        self._made: tuple[ContainerEngine, str] | None = None

    def prepare(
        self,
        engine: ContainerEngine,
        build_id: str,
        labels: Mapping[str, str],
        cancel: threading.Event,
        report: FetchReport | None = None,
    ) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        name = volume_name(build_id)

        def unpack(tar: Iterable[bytes]) -> None:
            self.release()
            self._made = (engine, name)
            engine.create_volume(name, labels)
            try:
                fill_volume(engine, name, labels, tar)
            except EngineError as error:
                if "no space left" in str(error).lower():
                    raise SourceError(
                        f"the source can't be unpacked: the engine's disk is full ({error})",
                        hint="`buildrunner doctor` tells what takes space",
                    ) from error
                raise

        fetched = self._source.fetch(unpack, cancel=cancel, report=report or _Silent())
        return PreparedWorkspace(
            volume=name,
            files=fetched.files,
            size_bytes=fetched.size_bytes,
            way="archive",
            provenance=fetched.provenance,
        )

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`: it is a copy."""
        return ()

    def release(self) -> None:
        """See `Workspace.release`."""
        if self._made is not None:
            engine, name = self._made
            engine.remove_volume(name)
            self._made = None


class _Silent:
    def line(self, text: str) -> None:
        """See `FetchReport.line`."""

    def moved(self, name: str, current_bytes: int, total_bytes: int) -> None:
        """See `FetchReport.moved`."""
