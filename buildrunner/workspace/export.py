"""The workspace of a build, copied to a folder of this machine when the build ends.

Source: ``--write-workspace`` of the local builder, which copies after a failure, too.
"""

from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from typing import Final, cast

from buildrunner.archives.streams import chunk_reader
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.errors import EngineError
from buildrunner.sources.fetched_files import FetchReport
from buildrunner.workspace.archive import create_carrier
from buildrunner.workspace.protocol import WORKSPACE, PreparedWorkspace, Workspace

NO_WORKSPACE: Final = "the build ended before it had one"


class _Stopped(Exception):
    """The person does not want to wait for the copy."""


class ExportedWorkspace:
    """A workspace that is copied out before it is removed. A `Workspace`.

    The copy belongs to the user who runs this process. Modes, times, hard links and symbolic links
    are kept, wherever a link leads; set-id bits are not. Devices, pipes and sockets are left out.

    Args:
        workspace: does the work.
        folder: an existing, empty folder.
        stopped: whether the person wants the build to stop: then nothing more is copied.

    Attributes:
        error: why the copy is missing or incomplete; empty when all of it is there.
        files: regular files and links that were copied.
        size_bytes: content of the files.
        left_out: paths of what is no file, folder or link.
    """

    def __init__(self, workspace: Workspace, folder: str, stopped: Callable[[], bool]) -> None:
        self._workspace = workspace
        self._folder = folder
        self._stopped = stopped
        self._engine: ContainerEngine | None = None
        self._prepared: PreparedWorkspace | None = None
        self._labels: dict[str, str] = {}
        self.error = NO_WORKSPACE
        self.files = 0
        self.size_bytes = 0
        self.left_out: list[str] = []

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
        self._engine, self._prepared, self._labels = engine, prepared, dict(labels)
        return prepared

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`."""
        return self._workspace.changed_on_host()

    def release(self) -> None:
        """See `Workspace.release`. That a copy can't be made keeps nothing from being removed."""
        try:
            if self._engine is not None and self._prepared is not None:
                self.error = self._exported(self._engine, self._prepared)
        finally:
            self._prepared = None
            self._workspace.release()

    def _exported(self, engine: ContainerEngine, prepared: PreparedWorkspace) -> str:
        """Copy; why that was not possible, or empty."""
        try:
            container = create_carrier(engine, (prepared.mount(read_only=True),), self._labels)
            try:
                with closing(self._archive(engine, container)) as chunks:
                    self._unpack(chunks)
            finally:
                engine.remove_container(container)
        except _Stopped:
            return "the build was cancelled"
        except OSError as error:
            return f"{error.filename or self._folder}: {error.strerror or error}"
        except tarfile.TarError as error:
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
        stream = chunk_reader(chunks)
        with tarfile.open(fileobj=stream, mode="r|", errorlevel=1) as tar:
            tar.extractall(self._folder, filter=self._admitted)  # noqa: S202  (it is filtered)

    def _admitted(self, member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        """The member as it is written; None leaves it out."""
        path = _inner_path(member.name)
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            self.left_out.append(path)
            return None
        target = _inner_path(member.linkname) if member.islnk() else member.linkname
        inside = member.replace(
            name=path or ".",
            linkname=target,
            mode=member.mode & 0o777,
            uid=cast("int", None),
            gid=cast("int", None),
            uname=cast("str", None),
            gname=cast("str", None),
            deep=False,
        )
        # Whatever the engine sends, nothing is written outside of the folder, or through a link.
        _check_place(inside, folder)
        if member.islnk():
            _check_place(inside.replace(name=target, deep=False), folder)
        if not member.isdir():
            self.files += 1
            self.size_bytes += member.size
        return inside


def _check_place(member: tarfile.TarInfo, folder: str) -> None:
    """Refuse a member that lies outside of the folder.

    The filter resolves links as far as the system lets it. What it can't resolve is refused here:
    links that lead to a path of more than 4 KiB lead anywhere else in the end (CVE-2025-4517).

    Raises:
        OSError: the place can't be resolved.
        tarfile.FilterError: it is outside.
    """
    place = os.path.join(folder, member.name)
    os.path.realpath(place if os.path.lexists(place) else os.path.dirname(place), strict=True)
    tarfile.tar_filter(member, folder)


def _inner_path(name: str) -> str:
    """A member's path in the workspace: the engine puts the folder's own name before it."""
    return name.partition("/")[2].strip("/")
