"""``/workspace`` of a build whose source is fetched from somewhere and unpacked."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

import msgspec

from buildrunner.engine.shared_files import FilesNotShared, open_volume
from buildrunner.engine.workspace import WorkspaceVolume, volume_name
from buildrunner.engine.workspace_protocol import BELOW, FetchReport, PreparedWorkspace
from buildrunner.errors import EngineError
from buildrunner.spec.model_results import SourceProvenance

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.sources.archive_member import Members


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


class FetchedWorkspace:
    """A workspace with what is fetched. Implements `Workspace`.

    It is a plain volume. Where the engine's volumes are folders of this machine, and we are root,
    the files are written into it from here, several at a time (tree_writer.py); else they are sent
    to the engine as a tar stream (workspace_archive.py), which makes the same of them.

    Args:
        source: what to fetch.
        send: always send it to the engine.
    """

    def __init__(self, source: FetchedSource, *, send: bool = False) -> None:
        self._source = source
        self._send = send
        self._volume = WorkspaceVolume()

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
        way = ""

        def unpack(members: Members) -> None:
            nonlocal way
            self.release()
            mount_point = self._volume.create(engine, build_id, labels)
            try:
                folder = -1 if self._send else open_volume(engine.info(), name, mount_point)
            except FilesNotShared:
                folder = -1
            if folder < 0:
                way = "archive"
                _send(engine, name, labels, members)
            else:
                way = "direct"
                _write(folder, members)

        fetched = self._source.fetch(unpack, cancel=cancel, report=report or _Silent())
        return PreparedWorkspace(
            volume=name,
            files=fetched.files,
            size_bytes=fetched.size_bytes,
            way=way,
            provenance=fetched.provenance,
        )

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`: it is a copy."""
        return ()

    def release(self) -> None:
        """See `Workspace.release`."""
        self._volume.remove()


def _send(
    engine: ContainerEngine, volume: str, labels: Mapping[str, str], members: Members
) -> None:
    from buildrunner.engine.file_writes import no_room
    from buildrunner.engine.workspace_archive import fill_volume
    from buildrunner.sources.tar_stream import pack

    try:
        fill_volume(engine, volume, labels, pack(members, below=BELOW))
    except EngineError as error:
        if "no space left" in str(error).lower():
            raise no_room(error) from error
        raise


def _write(folder: int, members: Members) -> None:
    from buildrunner.engine.tree_writer import write_tree

    try:
        write_tree(folder, members)
        if os.fstat(folder).st_nlink == 0:  # no container holds the volume yet
            raise EngineError(
                "the volume of /workspace was removed while the source was unpacked into it",
                hint="`docker volume prune` removes what no container uses at that moment",
            )
    finally:
        os.close(folder)


class _Silent:
    def line(self, text: str) -> None:
        """See `FetchReport.line`."""

    def moved(self, name: str, current_bytes: int, total_bytes: int) -> None:
        """See `FetchReport.moved`."""
