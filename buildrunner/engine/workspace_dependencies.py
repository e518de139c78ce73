"""``Build.dependencies``: other repositories beside the source in ``/workspace``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from buildrunner.engine.workspace_archive import fill_volume

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.engine.workspace_protocol import FetchReport, PreparedWorkspace, Workspace


class PlacedSource(Protocol):
    """Something that is fetched into a folder below ``/workspace``."""

    def place(
        self,
        unpack: Callable[[Iterable[bytes]], None],
        *,
        cancel: threading.Event,
        line: Callable[[str], None],
    ) -> None:
        """Fetch it and hand it on, in the calling thread.

        Args:
            unpack: takes the files as a tar stream, as `fill_volume` does.
            cancel: give up soon once it is set.
            line: takes lines for the log.

        Raises:
            SourceError: one sentence.
            EngineError: what ``unpack`` raised.
        """
        ...


class DependentWorkspace:
    """A workspace, and what the build depends on in it. Implements `Workspace`.

    Args:
        workspace: with the source.
        dependencies: in the order of the build; a later one writes over an earlier one.
    """

    def __init__(self, workspace: Workspace, dependencies: Sequence[PlacedSource]) -> None:
        self._workspace = workspace
        self._dependencies = dependencies

    def prepare(
        self,
        engine: ContainerEngine,
        build_id: str,
        labels: Mapping[str, str],
        cancel: threading.Event,
        report: FetchReport | None = None,
    ) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        prepared = self._workspace.prepare(engine, build_id, labels, cancel, report)
        lines: list[str] = []

        def unpack(tar: Iterable[bytes]) -> None:
            fill_volume(engine, prepared.volume, labels, tar)

        for dependency in self._dependencies:
            dependency.place(unpack, cancel=cancel, line=report.line if report else lines.append)
        return replace(prepared, log=(*prepared.log, *lines))

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`."""
        return self._workspace.changed_on_host()

    def release(self) -> None:
        """See `Workspace.release`."""
        self._workspace.release()
