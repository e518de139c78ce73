"""``/workspace`` of a build that starts empty or with a local folder.

`FolderWorkspace` takes the fastest way that is exact: the folder as a layer below the steps' own
files (workspace_overlay.py), or a copy sent as an archive (workspace_archive.py). Either way the
steps see the same files with the same modes and times, owned by root as on the hosted service, and
nothing they write reaches the folder. Each way is imported in the thread that prepares: the build's
main thread goes on meanwhile.
"""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Mapping

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.errors import SourceError
from buildrunner.sources.fetched_files import FetchReport
from buildrunner.sources.folder.local_folder import FolderSummary, LocalFolder
from buildrunner.workspace.overlay import OverlayVolume
from buildrunner.workspace.protocol import BELOW, PreparedWorkspace


def volume_name(build_id: str) -> str:
    """Name of the volume that holds a build's ``/workspace``."""
    return f"buildrunner-{build_id}-workspace"


class WorkspaceVolume:
    """The volume of one workspace, from `begin` or `create` to `remove`."""

    def __init__(self) -> None:
        self._engine: ContainerEngine | None = None
        self.name = ""
        """Its name, once it was begun."""

    def begin(self, engine: ContainerEngine, build_id: str) -> None:
        """From now on `remove` removes it, however far its creation comes."""
        self._engine, self.name = engine, volume_name(build_id)

    def create(self, engine: ContainerEngine, build_id: str, labels: Mapping[str, str]) -> str:
        """Create it, empty; its folder on the engine's machine."""
        from buildrunner.workspace.shared_files import lay_apart

        self.begin(engine, build_id)
        mount_point = engine.create_volume(self.name, labels)
        lay_apart(mount_point)
        return mount_point

    def hand_over(self) -> None:
        """Somebody else removes it."""
        self._engine = None

    def remove(self) -> None:
        """Remove it if it was begun. Idempotent."""
        if self._engine is not None:
            self._engine.remove_volume(self.name)
            self._engine = None


class EmptyWorkspace:
    """A workspace with nothing in it (``--no-source``). Implements `Workspace`."""

    def __init__(self) -> None:
        self._volume = WorkspaceVolume()

    def prepare(
        self,
        engine: ContainerEngine,
        build_id: str,
        labels: Mapping[str, str],
        cancel: threading.Event,  # noqa: ARG002  (a millisecond is soon enough)
        report: FetchReport | None = None,  # noqa: ARG002
    ) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        self._volume.create(engine, build_id, labels)
        return PreparedWorkspace(volume=self._volume.name)

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`: there is nothing that could change."""
        return ()

    def release(self) -> None:
        """See `Workspace.release`."""
        self._volume.remove()


class FolderWorkspace:
    """A workspace that starts with what is in a folder of this machine. Implements `Workspace`.

    Args:
        folder: the source.
        copy: always send a copy, even where the folder itself could be a layer.
    """

    def __init__(self, folder: LocalFolder, *, copy: bool = False) -> None:
        self._folder = folder
        self._copy = copy
        self._volume = WorkspaceVolume()
        self._overlay: OverlayVolume | None = None
        self._started_ns = 0

    def prepare(
        self,
        engine: ContainerEngine,
        build_id: str,
        labels: Mapping[str, str],
        cancel: threading.Event,
        report: FetchReport | None = None,  # noqa: ARG002  (nothing takes long)
    ) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        self._volume.begin(engine, build_id)
        name = self._volume.name
        self._started_ns = time.time_ns()
        summary = self._folder.scan(cancel)
        log = self._folder.describe(summary)
        way = "overlay"
        reason = self._layer(engine, name, labels, summary)
        if reason:
            from buildrunner.workspace.archive import fill_volume

            way = "archive"
            self._volume.create(engine, build_id, labels)
            fill_volume(engine, name, labels, self._folder.pack(cancel, root=BELOW))
            log += (f"Copied to the engine: {_printable(reason)}.",)
            log += tuple(f"WARNING: {warning}" for warning in self._folder.warnings)
        return PreparedWorkspace(
            volume=name,
            files=summary.files,
            size_bytes=summary.size_bytes,
            way=way,
            log=log,
        )

    def _layer(
        self,
        engine: ContainerEngine,
        name: str,
        labels: Mapping[str, str],
        summary: FolderSummary,
    ) -> str:
        """Make the folder a layer of the volume; why that can't be, or empty when it is done."""
        if self._copy:
            return "a copy was asked for"
        if summary.hard_links:
            return "files of the source have several names (hard links)"
        from buildrunner.workspace.overlay import OverlayImpossible, OverlayVolume

        overlay = OverlayVolume(engine, name, labels)
        try:
            overlay.create(
                self._folder.root,
                hidden=(entry.path for entry in summary.left_out),
                owners=summary.owners,
            )
        except OverlayImpossible as impossible:
            return str(impossible)
        self._overlay = overlay
        self._volume.hand_over()
        return ""

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`: some 8 ms for 1,000 files, nothing for a copy."""
        if self._overlay is None:
            return ()
        files: list[str] = []
        folders: list[str] = []
        try:
            for path, status in self._folder.entries():
                # The time of the last change of the inode can't be set back by anyone.
                if status.st_ctime_ns > self._started_ns:
                    (folders if stat.S_ISDIR(status.st_mode) else files).append(path)
        except (OSError, SourceError):  # it changed so much that it can't be read any more
            folders.append(self._folder.root)
        return tuple(map(_printable, files or (f"{path}/" for path in folders)))

    def release(self) -> None:
        """See `Workspace.release`."""
        if self._overlay is not None:
            self._overlay.remove()
            self._overlay = None
        self._volume.remove()


def _printable(text: str) -> str:
    """``text`` for a message: names of files may hold any bytes."""
    return text if text.isprintable() else repr(text)[1:-1]
