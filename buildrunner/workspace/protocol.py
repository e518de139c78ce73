"""The interface between a running build and the sources that fill ``/workspace``."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Protocol

import msgspec

from buildrunner.containers.protocol import ContainerEngine, Mount
from buildrunner.sources.fetched_files import FetchReport
from buildrunner.spec.model.results import SourceProvenance

WORKSPACE = "/workspace"
"""Path of the workspace in every step."""

BELOW = f"{WORKSPACE[1:]}/"
"""Prefix of the names in a tar stream for the workspace."""


class PreparedWorkspace(msgspec.Struct, frozen=True, kw_only=True):
    """A filled workspace, which can be mounted.

    Attributes:
        volume: name of the volume (or absolute path on the engine's machine if ``bind``) that
            every step gets at ``/workspace``.
        bind: whether ``volume`` is a path.
        files: number of files of the source; 0 without a source.
        size_bytes: size of these files.
        way: method of filling it: ``overlay``, ``direct``, ``archive``, ``empty``, ...
        log: lines for the build's log below ``FETCHSOURCE``, without newlines.
        provenance: the exact source; None for a folder of this machine.
    """

    volume: str
    bind: bool = False
    files: int = 0
    size_bytes: int = 0
    way: str = "empty"
    log: tuple[str, ...] = ()
    provenance: SourceProvenance | None = None

    def mount(self, *, read_only: bool = False) -> Mount:
        """Return the mount of the workspace in steps.

        On the hosted service it is a folder of the machine, so an image's files at that path are
        hidden, and not copied into it.
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
        engine: the engine that will run the steps.
        build_id: the build; part of the names of all resources.
        labels: labels of all resources on the engine.
        cancel: set when the build ends early: stop soon; the resources are released.
        report: receives the progress of long fetches.
    """

    engine: ContainerEngine
    build_id: str
    labels: Mapping[str, str]
    cancel: threading.Event
    report: FetchReport | None = None


class Workspace(Protocol):
    """One build's ``/workspace``: prepared once, released once."""

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """Create the volume and fill it with the source. Runs in its own thread.

        Raises:
            SourceError: the source can't be fetched, read or packed.
            EngineError: the engine refused.
        """
        ...

    def changed_on_host(self) -> tuple[str, ...]:
        """Return the paths of the source that changed outside the build since it was prepared.

        Called once, after the last step and before `release`, to warn that the steps may have seen
        a mixture of old and new files. Empty if the steps work on a copy. Never raises.
        """
        ...

    def release(self) -> None:
        """Remove the resources of `prepare`, also after it failed or was cancelled.

        Called once, after the last container that mounts it was removed. Idempotent.
        """
        ...


class WrappedWorkspace:
    """A workspace that adds work to another one. Implements `Workspace` by delegation.

    Args:
        workspace: the workspace that methods delegate to unless overridden.
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
    """Return the engine's name of a build's volume; concurrent builds must not share volumes."""
    return f"buildrunner-{build_id}-{name}"
