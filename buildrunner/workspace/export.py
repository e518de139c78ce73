"""Copies the workspace of a build to a folder of this machine when the build ends.

Source: ``--write-workspace`` of the local builder, which also copies after a failure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Final

from buildrunner.archives.members import ArchiveLimits, DamagedArchive, Guard, MemberError
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.errors import EngineError, SourceError
from buildrunner.workspace.files import workspace_members
from buildrunner.workspace.protocol import (
    WORKSPACE,
    Preparation,
    PreparedWorkspace,
    Workspace,
    WrappedWorkspace,
)
from buildrunner.workspace.tree_writer import write_tree
from buildrunner.workspace.volume import create_copy_container

NO_WORKSPACE: Final = "the build ended before it had one"
_NO_LIMITS: Final = ArchiveLimits(members=sys.maxsize, size_bytes=sys.maxsize)


class _Stopped(Exception):
    """Raised when the user has stopped the build."""


class ExportedWorkspace(WrappedWorkspace):
    """A workspace that is copied before it is removed. Implements `Workspace`.

    The copy belongs to the user who runs this process. Modes, times, hard links and symbolic links
    are kept, wherever a link leads; set-id bits are not. Devices, pipes and sockets are left out.

    Args:
        workspace: the workspace to copy.
        folder: an existing, empty folder.
        stopped: returns whether the user has stopped the build: then copying ends.

    Attributes:
        error: why the copy is missing or incomplete; empty for a complete copy.
        files: number of copied files and links.
        size_bytes: total size of the files.
        left_out: paths of devices, pipes and sockets.
    """

    def __init__(self, workspace: Workspace, folder: str, stopped: Callable[[], bool]) -> None:
        super().__init__(workspace)
        self._folder = folder
        self._stopped = stopped
        self._engine: ContainerEngine | None = None
        self._prepared: PreparedWorkspace | None = None
        self._labels: dict[str, str] = {}
        self.error = NO_WORKSPACE
        self.files = 0
        self.size_bytes = 0
        self.left_out: list[str] = []

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        prepared = self._workspace.prepare(wanted)
        self._engine, self._prepared, self._labels = wanted.engine, prepared, dict(wanted.labels)
        return prepared

    def release(self) -> None:
        """See `Workspace.release`. The workspace is removed even if the copy fails."""
        try:
            if self._engine is not None and self._prepared is not None:
                self.error = self._exported(self._engine, self._prepared)
        finally:
            self._prepared = None
            self._workspace.release()

    def _exported(self, engine: ContainerEngine, prepared: PreparedWorkspace) -> str:
        """Copy the workspace; return the error, or an empty string."""
        try:
            container = create_copy_container(
                engine, (prepared.mount(read_only=True),), self._labels
            )
            try:
                with closing(self._archive(engine, container)) as chunks:
                    self._unpack(chunks)
            finally:
                engine.remove_container(container)
        except _Stopped:
            return "the build was cancelled"
        except OSError as error:
            return f"{error.filename or self._folder}: {error.strerror or error}"
        except DamagedArchive as error:
            return f"the engine's copy of the workspace is damaged: {error.why}"
        except MemberError as error:
            return f"{self._folder}/{error.path}: {error.why}"
        except SourceError as error:
            return str(error)
        except EngineError as error:
            return f"the engine does not give the workspace: {error}"
        return ""

    def _archive(self, engine: ContainerEngine, container: str) -> Generator[bytes, None, None]:
        for chunk in engine.get_archive(container, WORKSPACE):
            if self._stopped():
                raise _Stopped
            yield chunk

    def _unpack(self, chunks: Iterator[bytes]) -> None:
        guard = Guard(_NO_LIMITS)
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            write_tree(folder, workspace_members(chunks, guard, self.left_out))
        finally:
            self.files, self.size_bytes = guard.files, guard.size_bytes
            os.close(folder)
