"""Workspaces that outlive the process of a build, or the build itself.

If the process dies, the next one finds the workspace by a note of the first (`NotedWorkspace`,
`ResumedWorkspace`).

The workspace of a build that failed or deployed is kept for builds that start from its steps. For
that, ``/workspace`` and the named volumes are copied as archives, as the steps left them, before
they are removed. A later build begins with them instead of its source. The home folder is not
copied, since it holds logins.

The archives come from the engine of the build, which steps can replace, and the machine's engine
unpacks them for the later build. So each archive is read member by member, and a new archive is
stored: plain files, folders and links below ``/workspace``, without compression or holes. A worker
may have sent the archive, so the same is done before it is unpacked.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    closing,
    contextmanager,
    nullcontext,
    suppress,
)
from typing import Any, Protocol

import msgspec
from msgspec.structs import asdict, replace

from buildrunner.archives.members import ArchiveLimits, Guard
from buildrunner.archives.tar_writer import pack
from buildrunner.containers.protocol import ContainerEngine, Mount
from buildrunner.errors import EngineError, SourceError, StoreError
from buildrunner.file_trees import remove_tree
from buildrunner.spec.model.results import SourceProvenance
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.writing import encode_message
from buildrunner.workspace.files import workspace_members
from buildrunner.workspace.protocol import (
    BELOW,
    WORKSPACE,
    Preparation,
    PreparedWorkspace,
    Workspace,
    WrappedWorkspace,
    volume_name,
)
from buildrunner.workspace.shared_files import lay_apart
from buildrunner.workspace.volume import WorkspaceVolume, create_copy_container, fill_volume


def encode_prepared(prepared: PreparedWorkspace) -> bytes:
    """Return a prepared workspace as JSON, for `decode_prepared` of a later process."""
    fields = asdict(replace(prepared, provenance=None, log=()))
    if prepared.provenance is not None:
        fields["provenance"] = encode_message(prepared.provenance)
    return msgspec.json.encode(fields)


def decode_prepared(data: bytes) -> PreparedWorkspace:
    """Decode the JSON of `encode_prepared`, without the log lines, which are written already."""
    fields = msgspec.json.decode(data, type=dict)
    provenance = fields.pop("provenance")
    if provenance is not None:
        provenance = decode_message(SourceProvenance, provenance).value
    return PreparedWorkspace(**{**fields, "log": (), "provenance": provenance})


class NotedWorkspace(WrappedWorkspace):
    """A workspace that is noted once prepared, before the first step. Implements `Workspace`.

    Args:
        workspace: does the work.
        note: stores the data for a later process; its exceptions end the build.
    """

    def __init__(self, workspace: Workspace, note: Callable[[PreparedWorkspace], None]) -> None:
        super().__init__(workspace)
        self._note = note

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        prepared = self._workspace.prepare(wanted)
        self._note(prepared)
        return prepared


class ResumedWorkspace:
    """The workspace that an earlier process prepared. Implements `Workspace`.

    Its volume is removed with all else that carries the build's label.

    Args:
        prepared: the workspace that `NotedWorkspace` noted.
    """

    def __init__(self, prepared: PreparedWorkspace) -> None:
        self._prepared = prepared

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:  # noqa: ARG002
        """See `Workspace.prepare`."""
        return self._prepared

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`: this is not known any more."""
        return ()

    def release(self) -> None:
        """See `Workspace.release`."""


_WAIT_LIMIT_S = 60.0  # the end of a build is not delayed longer
_GRACE_S = 5.0  # for a copy to notice that its time is over, and to remove its files
_UNCOUNTED = ArchiveLimits(size_bytes=sys.maxsize)  # `_Limit` counts what is written


class NotKept(EngineError):
    """Raised if a workspace is larger, or takes longer to copy, than allowed."""


class KeptWorkspace(WrappedWorkspace):
    """A workspace that is kept before it is removed, if wanted. Implements `Workspace`.

    Args:
        workspace: does the work.
        keeping: the store of kept workspaces.
        build_id: the build.
        wanted: called at the end: returns whether a step failed or deployed.
        volumes: called at the end: returns the names of the build's volumes.
        restored: the build whose volumes are restored; empty for none.
    """

    def __init__(
        self,
        workspace: Workspace,
        keeping: WorkspaceStore,
        build_id: str,
        *,
        wanted: Callable[[], bool],
        volumes: Callable[[], Sequence[str]],
        restored: str = "",
    ) -> None:
        super().__init__(workspace)
        self._keeping = keeping
        self._build_id = build_id
        self._wanted = wanted
        self._volumes = volumes
        self._restored = restored
        self._engine: ContainerEngine | None = None
        self._prepared: PreparedWorkspace | None = None
        self._labels: dict[str, str] = {}
        self._copy_container = ""

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """See `Workspace.prepare`; named volumes are filled from those of the earlier build."""
        with self._fetched(wanted.cancel):
            prepared = self._workspace.prepare(wanted)
            if self._restored:
                folder = self._keeping.of(self._restored)
                restore_volumes(wanted.engine, wanted.build_id, wanted.labels, folder)
        self._engine, self._prepared, self._labels = wanted.engine, prepared, dict(wanted.labels)
        return prepared

    def _fetched(self, cancel: threading.Event) -> AbstractContextManager[object]:
        return self._keeping.fetched(self._restored, cancel) if self._restored else nullcontext()

    def release(self) -> None:
        """See `Workspace.release`. The workspace is removed even if the copy fails."""
        try:
            if self._engine is not None and self._prepared is not None and self._wanted():
                # An engine that stops sending delays the copy, but not the build's end.
                copying = threading.Thread(
                    target=self._try_keep, args=(self._engine, self._prepared), daemon=True
                )
                copying.start()
                copying.join(_WAIT_LIMIT_S + _GRACE_S)
                if copying.is_alive() and self._copy_container:
                    with suppress(EngineError):
                        self._engine.remove_container(self._copy_container)
        finally:
            self._prepared = None
            self._workspace.release()

    def _try_keep(self, engine: ContainerEngine, prepared: PreparedWorkspace) -> None:
        with (
            suppress(EngineError, SourceError, StoreError, OSError),
            self._keeping.filled(self._build_id) as kept,
        ):
            if prepared.provenance is not None:
                with kept.file(PROVENANCE) as write:
                    write(msgspec.json.encode(encode_message(prepared.provenance)))
            self._copy_out(engine, prepared, kept)

    def _copy_out(
        self, engine: ContainerEngine, prepared: PreparedWorkspace, kept: KeptFiles
    ) -> None:
        limit = _Limit(self._keeping.most_of_one, time.monotonic() + _WAIT_LIMIT_S)
        self._copy(engine, prepared.mount(), kept.file(ARCHIVE), limit)
        for name in self._volumes():
            volume = volume_name(self._build_id, f"volume-{name}")
            mount = Mount(source=volume, target=WORKSPACE)
            self._copy(engine, mount, kept.file(_volume_archive(name)), limit)

    def _copy(self, engine: ContainerEngine, mount: Mount, target: OpenFile, limit: _Limit) -> None:
        """Copy the content of a mount at ``/workspace`` to an archive for `fill_volume`."""
        self._copy_container = container = create_copy_container(engine, (mount,), self._labels)
        try:
            with target as write, closing(_archive(engine, container, limit)) as chunks:
                for piece in checked(chunks):
                    limit.take(len(piece))
                    write(piece)
        finally:
            engine.remove_container(container)


def checked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield a new archive of the files, folders and links in an archive of ``/workspace``.

    Raises:
        SourceError: the archive is damaged, or a member is refused.
    """
    guard = Guard(_UNCOUNTED, keep_owners=True)
    return pack(workspace_members(chunks, guard, []), below=BELOW)


class _Limit:
    """The remaining bytes and seconds of a copy."""

    def __init__(self, most_bytes: int, until_s: float) -> None:
        self.taken = 0
        self._most_bytes = most_bytes
        self._until_s = until_s

    def take(self, count: int) -> None:
        self.taken += count
        if self.taken > self._most_bytes:
            raise NotKept(f"the workspace is larger than {self._most_bytes:,} bytes")
        self.check_time()

    def check_time(self) -> None:
        if time.monotonic() > self._until_s:
            raise NotKept(f"it took longer than {_WAIT_LIMIT_S:g}s to copy the workspace")


def _archive(
    engine: ContainerEngine, container: str, limit: _Limit
) -> Generator[bytes, None, None]:
    """Yield the pieces of an archive while there is time, also those without output."""
    for piece in engine.get_archive(container, WORKSPACE):
        limit.check_time()
        yield piece


# Archives with other names are of an older format: they are removed as others need space.
ARCHIVE = "checked-workspace.tar"
"""Name of the file with the archive of ``/workspace``; a kept workspace has one."""

PROVENANCE = "provenance.json"
"""Name of the file with the origin of the source."""

_VOLUME = "checked-volume-"
_PIECE_BYTES = 1 << 20
_SLACK_BYTES = 1 << 20

OpenFile = AbstractContextManager[Callable[[bytes], Any]]
"""A file to write, in a ``with`` block that gets the function for its bytes."""


class KeptFiles(Protocol):
    """Takes the files of a kept workspace."""

    def file(self, name: str) -> OpenFile:
        """Begin a file. The next one begins after its end."""
        ...


class WorkspaceStore(Protocol):
    """Keeps workspaces on this machine, or on the server of this worker."""

    @property
    def most_of_one(self) -> int:
        """Return the largest size of one kept workspace, in bytes."""
        ...

    def of(self, build_id: str) -> str:
        """Return the folder of one build, which is there while it is `fetched`."""
        ...

    def fetched(self, build_id: str, cancel: threading.Event) -> AbstractContextManager[object]:
        """Return a block in which the kept workspace of a build is in its folder, if it is kept.

        Raises:
            SourceError: it can't be fetched.
        """
        ...

    def filled(self, build_id: str) -> AbstractContextManager[KeptFiles]:
        """Return a block that writes the files of a build. An error in it keeps none of them.

        Raises:
            OSError: they can't be stored.
            StoreError: the server does not take them.
        """
        ...


class Keeping(msgspec.Struct, frozen=True, kw_only=True):
    """Implements `WorkspaceStore` with a folder, whose size is limited.

    Attributes:
        folder: folder of all kept workspaces.
        limit_bytes: maximum total size; one workspace takes at most half of it; 0 keeps none.
        disk_bytes: disk limit of a build, which also limits one workspace; None sets no limit.
    """

    folder: str
    limit_bytes: int
    disk_bytes: int | None = None

    @property
    def most_of_one(self) -> int:
        """Return the largest size of one kept workspace, in bytes."""
        half = self.limit_bytes // 2
        return half if self.disk_bytes is None else min(half, self.disk_bytes)

    def of(self, build_id: str) -> str:
        """Return the folder of one build."""
        return os.path.join(self.folder, build_id)

    def has(self, build_id: str) -> bool:
        """Return whether the workspace of a build is kept."""
        return os.path.isfile(KeptFolder(self.of(build_id)).archive)

    def fetched(
        self,
        build_id: str,  # noqa: ARG002
        cancel: threading.Event,  # noqa: ARG002
    ) -> AbstractContextManager[object]:
        """See `WorkspaceStore.fetched`: it is here."""
        return nullcontext()

    @contextmanager
    def filled(self, build_id: str) -> Iterator[KeptFolder]:
        """See `WorkspaceStore.filled`."""
        folder = self.of(build_id)
        fresh = f"{folder}.new"
        remove_tree(fresh)
        os.makedirs(fresh, mode=0o700)
        try:
            yield KeptFolder(fresh)
            self.make_room(_size_of(fresh), spared=fresh)
            remove_tree(folder)
            os.rename(fresh, folder)
        except BaseException:
            remove_tree(fresh)
            raise

    def make_room(self, needed_bytes: int, spared: str) -> None:
        """Remove the oldest kept workspaces, but not ``spared``, until there is enough space."""
        kept = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.path != spared and entry.is_dir(follow_symlinks=False):
                    with suppress(OSError):
                        kept.append((entry.stat().st_mtime, _size_of(entry.path), entry.path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self.limit_bytes - needed_bytes:
                return
            remove_tree(path)
            total -= size


class KeptFolder:
    """The kept files of one build: archives of ``/workspace`` and of its named volumes.

    Implements `KeptFiles`.

    Args:
        path: the folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def archive(self) -> str:
        """Return the path of the archive of ``/workspace``."""
        return os.path.join(self.path, ARCHIVE)

    def volume_archive(self, name: str) -> str:
        """Return the path of the archive of a named volume."""
        return os.path.join(self.path, _volume_archive(name))

    def volumes(self) -> list[str]:
        """Return the names of the kept volumes."""
        names = sorted(os.listdir(self.path)) if os.path.isdir(self.path) else []
        return [
            name.removeprefix(_VOLUME).removesuffix(".tar")
            for name in names
            if name.startswith(_VOLUME)
        ]

    @contextmanager
    def file(self, name: str) -> Iterator[Callable[[bytes], Any]]:
        """See `KeptFiles.file`."""
        path = os.path.join(self.path, name)
        private = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(private, "wb") as file:
            yield file.write

    def provenance(self) -> SourceProvenance | None:
        """Return the origin of the workspace's source; None if it is unknown."""
        try:
            with open(os.path.join(self.path, PROVENANCE), "rb") as file:
                return decode_message(SourceProvenance, msgspec.json.decode(file.read())).value
        except FileNotFoundError:
            return None


def _volume_archive(name: str) -> str:
    return f"{_VOLUME}{name}.tar"


def _pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _content(path: str) -> Iterator[bytes]:
    """Yield a kept archive, checked again, since a worker may have sent it.

    Raises:
        SourceError: the archive is damaged, a member is refused, or the archive has holes.
    """
    most = os.path.getsize(path) + _SLACK_BYTES
    for piece in checked(_pieces(path)):
        most -= len(piece)
        if most < 0:
            raise SourceError("the kept workspace unpacks to more than its size")
        yield piece


def _size_of(folder: str) -> int:
    with os.scandir(folder) as entries:
        return sum(entry.stat().st_size for entry in entries)


class RestoredWorkspace:
    """A workspace that begins with another build's kept files. Implements `Workspace`.

    Args:
        folder: kept files of that build.
        build_id: id of that build.
    """

    def __init__(self, folder: str, build_id: str) -> None:
        self._folder = KeptFolder(folder)
        self._from = build_id
        self._volume = WorkspaceVolume()

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        try:
            size = os.path.getsize(self._folder.archive)
        except OSError as error:
            raise no_longer_kept(self._from) from error
        self._volume.create(wanted.engine, wanted.build_id, wanted.labels)
        name = self._volume.name
        fill_volume(wanted.engine, name, wanted.labels, _content(self._folder.archive))
        return PreparedWorkspace(
            volume=name,
            size_bytes=size,
            way="kept",
            log=(f"The workspace is that of build {self._from}, as its steps left it.",),
            provenance=self._folder.provenance(),
        )

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`: the workspace is a copy."""
        return ()

    def release(self) -> None:
        """See `Workspace.release`."""
        self._volume.remove()


def no_longer_kept(build_id: str) -> SourceError:
    """Return the error for a build whose kept workspace was deleted."""
    return SourceError(
        f"the workspace of build {build_id} is no longer kept", hint="run the whole build again"
    )


def restore_volumes(
    engine: ContainerEngine, build_id: str, labels: Mapping[str, str], folder: str
) -> None:
    """Create the named volumes of a build with the content of another build's volumes.

    Args:
        engine: the engine for the volumes.
        build_id: the new build.
        labels: labels of the volumes.
        folder: kept files of the other build.
    """
    kept = KeptFolder(folder)
    for name in kept.volumes():
        volume = volume_name(build_id, f"volume-{name}")
        lay_apart(engine.create_volume(volume, labels))
        fill_volume(engine, volume, labels, _content(kept.volume_archive(name)))
