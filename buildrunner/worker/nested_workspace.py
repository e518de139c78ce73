"""``/workspace`` of a build in a nested sandbox: a volume of the host engine.

It is filled on the host, by the same code and as fast as anywhere, and mounted at ``/workspace`` of
the nested engine's own file system. Steps get that folder, so that ``docker run -v
/workspace:/workspace`` in a step means what it means on the hosted service.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from buildrunner.engine.workspace import volume_name
from buildrunner.engine.workspace_archive import WORKSPACE

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine, EngineInfo
    from buildrunner.engine.workspace_protocol import FetchReport, PreparedWorkspace, Workspace


class NestedWorkspace:
    """Implements `Workspace`.

    Args:
        source: fills it.
        filler: the host engine, for the source.
        labels: for what is made on the host engine.
        prepared: told when the volume is there with all its mounts need, whatever came of it.
    """

    def __init__(
        self,
        source: Workspace,
        filler: ContainerEngine,
        labels: Mapping[str, str],
        prepared: Callable[[], None],
    ) -> None:
        self._source = source
        self._filler = filler
        self._labels = dict(labels)
        self._prepared = prepared

    def __getattr__(self, name: str) -> Any:
        """What some sources have besides the protocol."""
        return getattr(self._source, name)

    def prepare(
        self,
        engine: ContainerEngine,  # noqa: ARG002  (its /workspace is filled from outside)
        build_id: str,
        labels: Mapping[str, str],
        cancel: threading.Event,
        report: FetchReport | None = None,
    ) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        try:
            prepared = self._source.prepare(
                self._filler, build_id, {**labels, **self._labels}, cancel, report
            )
        finally:
            self._prepared()
        return replace(prepared, volume=WORKSPACE, bind=True)

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`."""
        return self._source.changed_on_host()

    def release(self) -> None:
        """See `Workspace.release`: the volume goes with the sandbox."""


class WorkspaceFiller:
    """The host engine for whoever fills a workspace: it may be mounted already.

    Args:
        host: the host engine.
        build_id: the build.
        mounted: whether a sandbox has the volume mounted.
        clear: empties the mounted volume.
    """

    def __init__(
        self,
        host: ContainerEngine,
        build_id: str,
        mounted: Callable[[], bool],
        clear: Callable[[], None],
    ) -> None:
        self._host = host
        self._volume = volume_name(build_id)
        self._mounted = mounted
        self._clear = clear

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    def info(self) -> EngineInfo:
        """See `ContainerEngine.info`. Layers can't be put below what is mounted already."""
        info = self._host.info()
        return replace(info, local=False) if self._mounted() else info

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """See `Resources.create_volume`."""
        if name == self._volume and self._mounted():
            self._clear()
            options = None
        return self._host.create_volume(name, labels, options=options)

    def remove_volume(self, name: str) -> None:
        """See `Resources.remove_volume`: a mounted one is only emptied."""
        if name == self._volume and self._mounted():
            self._clear()
        else:
            self._host.remove_volume(name)
