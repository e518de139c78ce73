"""The seam between a running build and whoever fills ``/workspace``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

import msgspec

from buildrunner.containers.protocol import ContainerEngine, Mount
from buildrunner.sources.fetched_files import FetchReport
from buildrunner.spec.model.results import SourceProvenance

WORKSPACE = "/workspace"
"""Folder of the workspace in every step."""

BELOW = f"{WORKSPACE[1:]}/"
"""With what the names of a tar stream for the workspace begin."""


class PreparedWorkspace(msgspec.Struct, frozen=True, kw_only=True):
    """A workspace that is filled and can be mounted.

    Attributes:
        volume: name of the volume (or absolute path on the engine's machine when ``bind``) that
            every step gets at ``/workspace``.
        bind: ``volume`` is a path.
        files: files of the source in it; 0 without a source.
        size_bytes: their size.
        way: how it was filled: ``overlay``, ``direct``, ``archive``, ``empty``, ...
        log: lines for the build's log below ``FETCHSOURCE``, without newlines.
        provenance: exactly which source it is; None for a folder of this machine.
    """

    volume: str
    bind: bool = False
    files: int = 0
    size_bytes: int = 0
    way: str = "empty"
    log: tuple[str, ...] = ()
    provenance: SourceProvenance | None = None

    def mount(self, *, read_only: bool = False) -> Mount:
        """The mount that puts it where steps have it.

        Hosted, it is a folder of the machine: what an image has there is hidden, not copied in.
        """
        return Mount(
            source=self.volume,
            target=WORKSPACE,
            bind=self.bind,
            read_only=read_only,
            no_copy=not self.bind,
        )


class Preparation(msgspec.Struct, frozen=True):
    """The engine and the build that a workspace is prepared for.

    Attributes:
        engine: where the steps will run.
        build_id: the build; part of the name of all that is made.
        labels: what everything made on the engine must carry.
        cancel: set when the build ends early: give up soon, what was made is released.
        report: told of progress, where there is much to fetch.
    """

    engine: ContainerEngine
    build_id: str
    labels: Mapping[str, str]
    cancel: threading.Event
    report: FetchReport | None = None


class Workspace(Protocol):
    """One build's ``/workspace``: prepared once, released once."""

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """Make the volume and fill it with the source. Runs in a thread of its own.

        Raises:
            SourceError: the source can't be fetched, read or packed.
            EngineError: the engine refused.
        """
        ...

    def changed_on_host(self) -> tuple[str, ...]:
        """Paths of the source that changed outside the build since it was prepared.

        Asked once, after the last step and before `release`, to warn that the steps may have seen
        a mixture of old and new files. Empty where the steps work on a copy. Never raises.
        """
        ...

    def release(self) -> None:
        """Remove what `prepare` made, also after it failed or was cancelled half way.

        Called once, after the last container that mounts it is gone. Idempotent.
        """
        ...


class WrappedWorkspace:
    """A workspace that adds work to another one. Implements `Workspace` as that one does.

    Args:
        workspace: does everything that a subclass does not override.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        return self._workspace.prepare(wanted)

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`."""
        return self._workspace.changed_on_host()

    def release(self) -> None:
        """See `Workspace.release`."""
        self._workspace.release()


def volume_name(build_id: str, name: str) -> str:
    """The engine's name of a build's volume; builds that run at once must not share them."""
    return f"buildrunner-{build_id}-{name}"
