"""The workspace of a build that failed, kept for whoever goes on from one of its steps.

A workspace lives as long as its build. Of one that failed, ``/workspace`` and the named volumes are
copied out as archives, as the steps left them, before they are removed; a later build begins with
them in the place of its source (workspace_restored.py). Not the home folder: logins are in it.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from buildrunner.containers.engine_types import Mount
from buildrunner.engine.kept_folder import KeptFolder
from buildrunner.engine.step_container import volume_name
from buildrunner.engine.workspace_archive import create_carrier
from buildrunner.engine.workspace_protocol import WORKSPACE
from buildrunner.engine.workspace_restored import restore_volumes
from buildrunner.errors import EngineError

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Mapping, Sequence

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.engine.kept_folder import Keeping
    from buildrunner.engine.workspace_protocol import FetchReport, PreparedWorkspace, Workspace

_PATIENCE_S = 60.0  # nobody waits longer for the end of a build


class NotKept(EngineError):
    """A workspace is larger, or takes longer to copy, than it may."""


class KeptWorkspace:
    """A workspace that is copied out before it is removed, if its build failed. A `Workspace`.

    Args:
        workspace: does the work.
        keeping: where to.
        build_id: the build.
        failed: asked at the end: whether a step failed.
        volumes: asked at the end: the names of the build's volumes.
        restored: folder of the build whose volumes this one begins with; empty for none.
    """

    def __init__(
        self,
        workspace: Workspace,
        keeping: Keeping,
        build_id: str,
        *,
        failed: Callable[[], bool],
        volumes: Callable[[], Sequence[str]],
        restored: str = "",
    ) -> None:
        self._workspace = workspace
        self._keeping = keeping
        self._build_id = build_id
        self._failed = failed
        self._volumes = volumes
        self._restored = restored
        self._engine: ContainerEngine | None = None
        self._prepared: PreparedWorkspace | None = None
        self._labels: dict[str, str] = {}

    def prepare(
        self,
        engine: ContainerEngine,
        build_id: str,
        labels: Mapping[str, str],
        cancel: threading.Event,
        report: FetchReport | None = None,
    ) -> PreparedWorkspace:
        """See `Workspace.prepare`; named volumes of the build gone on from are filled, too."""
        prepared = self._workspace.prepare(engine, build_id, labels, cancel, report)
        if self._restored:
            restore_volumes(engine, build_id, labels, self._restored)
        self._engine, self._prepared, self._labels = engine, prepared, dict(labels)
        return prepared

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`."""
        return self._workspace.changed_on_host()

    def release(self) -> None:
        """See `Workspace.release`. That a copy can't be made keeps nothing from being removed."""
        try:
            if self._engine is not None and self._prepared is not None and self._failed():
                with suppress(EngineError, OSError):
                    self._keep(self._engine, self._prepared)
        finally:
            self._prepared = None
            self._workspace.release()

    def _keep(self, engine: ContainerEngine, prepared: PreparedWorkspace) -> None:
        folder = self._keeping.of(self._build_id)
        fresh = f"{folder}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        os.makedirs(fresh, mode=0o700)
        try:
            kept = KeptFolder(fresh)
            if prepared.provenance is not None:
                kept.write_provenance(prepared.provenance)
            size = self._copy_out(engine, prepared, kept)
            self._keeping.make_room(size, spared=fresh)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(fresh, folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise

    def _copy_out(
        self, engine: ContainerEngine, prepared: PreparedWorkspace, kept: KeptFolder
    ) -> int:
        limit = _Limit(self._keeping.limit_bytes // 2, time.monotonic() + _PATIENCE_S)
        self._copy(engine, prepared.mount(), kept.archive, limit)
        for name in self._volumes():
            volume = volume_name(self._build_id, f"volume-{name}")
            mount = Mount(source=volume, target=WORKSPACE)
            self._copy(engine, mount, kept.volume_archive(name), limit)
        return limit.taken

    def _copy(self, engine: ContainerEngine, mount: Mount, target: str, limit: _Limit) -> None:
        """Copy out what is mounted at ``/workspace``, with names as `fill_volume` takes them."""
        container = create_carrier(engine, (mount,), self._labels)
        try:
            private = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(private, "wb") as file, closing(_archive(engine, container)) as chunks:
                for chunk in chunks:
                    limit.take(len(chunk))
                    file.write(chunk)
        finally:
            engine.remove_container(container)


class _Limit:
    """How many bytes and seconds a copy may still take."""

    def __init__(self, most_bytes: int, until_s: float) -> None:
        self.taken = 0
        self._most_bytes = most_bytes
        self._until_s = until_s

    def take(self, count: int) -> None:
        self.taken += count
        if self.taken > self._most_bytes:
            raise NotKept(f"the workspace is larger than {self._most_bytes:,} bytes")
        if time.monotonic() > self._until_s:
            raise NotKept(f"it took longer than {_PATIENCE_S:g}s to copy the workspace")


def _archive(engine: ContainerEngine, container: str) -> Generator[bytes, None, None]:
    yield from engine.get_archive(container, WORKSPACE)
