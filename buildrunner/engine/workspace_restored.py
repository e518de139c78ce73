"""A workspace that begins as the steps of a build that failed left it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from buildrunner.engine import step_container
from buildrunner.engine.kept_folder import KeptFolder, pieces
from buildrunner.engine.shared_files import lay_apart
from buildrunner.engine.workspace import WorkspaceVolume
from buildrunner.engine.workspace_archive import fill_volume
from buildrunner.engine.workspace_protocol import PreparedWorkspace
from buildrunner.errors import SourceError

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.engine.workspace_protocol import FetchReport


class RestoredWorkspace:
    """A workspace that begins as another build left its own. A `Workspace`.

    Args:
        folder: what is kept of that build.
        build_id: that build.
    """

    def __init__(self, folder: str, build_id: str) -> None:
        self._folder = KeptFolder(folder)
        self._from = build_id
        self._volume = WorkspaceVolume()

    def prepare(
        self,
        engine: ContainerEngine,
        build_id: str,
        labels: Mapping[str, str],
        cancel: threading.Event,  # noqa: ARG002  (a copy on one machine)
        report: FetchReport | None = None,  # noqa: ARG002
    ) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        try:
            size = os.path.getsize(self._folder.archive)
        except OSError as error:
            raise SourceError(
                f"the workspace of build {self._from} is no longer kept",
                hint="run the whole build again",
            ) from error
        self._volume.create(engine, build_id, labels)
        name = self._volume.name
        fill_volume(engine, name, labels, pieces(self._folder.archive))
        return PreparedWorkspace(
            volume=name,
            size_bytes=size,
            way="kept",
            log=(f"The workspace is that of build {self._from}, as its steps left it.",),
            provenance=self._folder.provenance(),
        )

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`: it is a copy."""
        return ()

    def release(self) -> None:
        """See `Workspace.release`."""
        self._volume.remove()


def restore_volumes(
    engine: ContainerEngine, build_id: str, labels: Mapping[str, str], folder: str
) -> None:
    """Make the named volumes of a build as those of another one were left.

    Args:
        engine: where.
        build_id: the build that begins.
        labels: what the volumes carry.
        folder: what is kept of the other one.
    """
    kept = KeptFolder(folder)
    for name in kept.volumes():
        volume = step_container.volume_name(build_id, f"volume-{name}")
        lay_apart(engine.create_volume(volume, labels))
        fill_volume(engine, volume, labels, pieces(kept.volume_archive(name)))
