"""Workspaces that outlive the process of a build, or the build itself.

If the process dies, the next one finds the workspace by a note of the first (`NotedWorkspace`,
`ResumedWorkspace`).

The workspace of a build that failed or deployed is kept for builds that start from its steps. For
that, ``/workspace`` and the named volumes are copied as archives, as the steps left them, before
they are removed. A later build begins with them instead of its source. The home folder is not
copied, since it holds logins.

The archives come from the engine of the build, which steps can replace, and the machine's engine
unpacks them for the later build. So each archive is read member by member, and a new archive is
stored: plain files, folders and links below ``/workspace``, without compression or holes.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress

import msgspec
from msgspec.structs import asdict, replace

from buildrunner.archives.members import ArchiveLimits, Guard
from buildrunner.archives.tar_writer import pack
from buildrunner.containers.protocol import ContainerEngine, Mount
from buildrunner.errors import EngineError, SourceError
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
        restored: folder of the build whose volumes are restored; empty for none.
    """

    def __init__(
        self,
        workspace: Workspace,
        keeping: Keeping,
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
        prepared = self._workspace.prepare(wanted)
        if self._restored:
            restore_volumes(wanted.engine, wanted.build_id, wanted.labels, self._restored)
        self._engine, self._prepared, self._labels = wanted.engine, prepared, dict(wanted.labels)
        return prepared

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
        with suppress(EngineError, SourceError, OSError):
            self._keep(engine, prepared)

    def _keep(self, engine: ContainerEngine, prepared: PreparedWorkspace) -> None:
        folder = self._keeping.of(self._build_id)
        fresh = f"{folder}.new"
        remove_tree(fresh)
        os.makedirs(fresh, mode=0o700)
        try:
            kept = KeptFolder(fresh)
            if prepared.provenance is not None:
                kept.write_provenance(prepared.provenance)
            size = self._copy_out(engine, prepared, kept)
            self._keeping.make_room(size, spared=fresh)
            remove_tree(folder)
            os.rename(fresh, folder)
        except BaseException:
            remove_tree(fresh)
            raise

    def _copy_out(
        self, engine: ContainerEngine, prepared: PreparedWorkspace, kept: KeptFolder
    ) -> int:
        limit = _Limit(self._keeping.most_of_one, time.monotonic() + _WAIT_LIMIT_S)
        self._copy(engine, prepared.mount(), kept.archive, limit)
        for name in self._volumes():
            volume = volume_name(self._build_id, f"volume-{name}")
            mount = Mount(source=volume, target=WORKSPACE)
            self._copy(engine, mount, kept.volume_archive(name), limit)
        return limit.taken

    def _copy(self, engine: ContainerEngine, mount: Mount, target: str, limit: _Limit) -> None:
        """Copy the content of a mount at ``/workspace`` to an archive for `fill_volume`."""
        self._copy_container = container = create_copy_container(engine, (mount,), self._labels)
        try:
            private = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(private, "wb") as file, closing(_archive(engine, container, limit)) as chunks:
                guard = Guard(_UNCOUNTED, keep_owners=True)
                for piece in pack(workspace_members(chunks, guard, []), below=BELOW):
                    limit.take(len(piece))
                    file.write(piece)
        finally:
            engine.remove_container(container)


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
_ARCHIVE = "checked-workspace.tar"
_VOLUME = "checked-volume-"
_PROVENANCE = "provenance.json"
_PIECE_BYTES = 1 << 20


class Keeping(msgspec.Struct, frozen=True, kw_only=True):
    """The store of kept workspaces, which limits their size.

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

    Args:
        path: the folder.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def archive(self) -> str:
        """Return the path of the archive of ``/workspace``."""
        return os.path.join(self.path, _ARCHIVE)

    def volume_archive(self, name: str) -> str:
        """Return the path of the archive of a named volume."""
        return os.path.join(self.path, f"{_VOLUME}{name}.tar")

    def volumes(self) -> list[str]:
        """Return the names of the kept volumes."""
        names = sorted(os.listdir(self.path)) if os.path.isdir(self.path) else []
        return [
            name.removeprefix(_VOLUME).removesuffix(".tar")
            for name in names
            if name.startswith(_VOLUME)
        ]

    def write_provenance(self, provenance: SourceProvenance) -> None:
        """Store the origin of the workspace's source."""
        with open(os.path.join(self.path, _PROVENANCE), "wb") as file:
            file.write(msgspec.json.encode(encode_message(provenance)))

    def provenance(self) -> SourceProvenance | None:
        """Return the origin of the workspace's source; None if it is unknown."""
        try:
            with open(os.path.join(self.path, _PROVENANCE), "rb") as file:
                return decode_message(SourceProvenance, msgspec.json.decode(file.read())).value
        except FileNotFoundError:
            return None


def pieces(path: str) -> Iterator[bytes]:
    """Yield the content of a file in pieces."""
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
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
            raise SourceError(
                f"the workspace of build {self._from} is no longer kept",
                hint="run the whole build again",
            ) from error
        self._volume.create(wanted.engine, wanted.build_id, wanted.labels)
        name = self._volume.name
        fill_volume(wanted.engine, name, wanted.labels, pieces(self._folder.archive))
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
        fill_volume(engine, volume, labels, pieces(kept.volume_archive(name)))
