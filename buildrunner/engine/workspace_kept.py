"""The workspace of a build that failed, kept for whoever goes on from one of its steps.

A workspace lives as long as its build. Of one that failed, ``/workspace`` and the named volumes are
copied out as archives, as the steps left them, before they are removed; a later build begins with
them in the place of its source. ``/builder/home`` is not kept: logins are in it.

A folder holds what is kept of all builds, a folder below it each build's own. All together stay
below a limit: the oldest make room.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import closing, suppress
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers.engine_types import ContainerSpec, Mount
from buildrunner.engine.step_container import volume_name
from buildrunner.engine.workspace import volume_name as workspace_volume_name
from buildrunner.engine.workspace_archive import (
    CARRIER_IMAGE,
    WORKSPACE,
    ensure_carrier_image,
    fill_volume,
)
from buildrunner.engine.workspace_protocol import PreparedWorkspace
from buildrunner.errors import EngineError, SourceError
from buildrunner.spec.decode import decode_message
from buildrunner.spec.encode import encode_message
from buildrunner.spec.model_results import SourceProvenance

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.engine.workspace_protocol import FetchReport, Workspace

_ARCHIVE = "workspace.tar"
_VOLUME = "volume-"
_PROVENANCE = "provenance.json"
_PIECE_BYTES = 1 << 20
_PATIENCE_S = 60.0  # nobody waits longer for the end of a build
_MOUNTED = "/volumes"


class Keeping(msgspec.Struct, frozen=True, kw_only=True):
    """Where workspaces are kept, and how much of them.

    Attributes:
        folder: of all of them.
        limit_bytes: what they may take together, one of them half of it; 0 keeps none.
    """

    folder: str
    limit_bytes: int

    def of(self, build_id: str) -> str:
        """The folder of one build."""
        return os.path.join(self.folder, build_id)

    def has(self, build_id: str) -> bool:
        """Whether the workspace of a build is kept."""
        return os.path.isfile(os.path.join(self.of(build_id), _ARCHIVE))


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
            for name in _kept_volumes(self._restored):
                volume = volume_name(build_id, f"volume-{name}")
                engine.create_volume(volume, labels)
                path = os.path.join(self._restored, f"{_VOLUME}{name}.tar")
                fill_volume(engine, volume, labels, _pieces(path))
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
            if prepared.provenance is not None:
                with open(os.path.join(fresh, _PROVENANCE), "wb") as file:
                    file.write(msgspec.json.encode(encode_message(prepared.provenance)))
            size = self._copy_out(engine, prepared, fresh)
            _make_room(self._keeping.folder, self._keeping.limit_bytes - size, fresh)
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(fresh, folder)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise

    def _copy_out(self, engine: ContainerEngine, prepared: PreparedWorkspace, folder: str) -> int:
        ensure_carrier_image(engine)
        volumes = list(self._volumes())
        mounts = [
            Mount(
                source=prepared.volume,
                target=WORKSPACE,
                bind=prepared.bind,
                no_copy=not prepared.bind,
            )
        ]
        mounts += [
            Mount(source=volume_name(self._build_id, f"volume-{name}"), target=f"{_MOUNTED}/{name}")
            for name in volumes
        ]
        container = engine.create_container(
            ContainerSpec(
                image=CARRIER_IMAGE,
                cmd=("none",),
                mounts=tuple(mounts),
                network="none",
                labels=self._labels,
            )
        )
        limit = _Limit(self._keeping.limit_bytes // 2, time.monotonic() + _PATIENCE_S)
        try:
            _copy(engine, container, WORKSPACE, os.path.join(folder, _ARCHIVE), limit)
            for name in volumes:
                path = os.path.join(folder, f"{_VOLUME}{name}.tar")
                _copy(engine, container, f"{_MOUNTED}/{name}", path, limit)
        finally:
            engine.remove_container(container)
        return limit.taken


class RestoredWorkspace:
    """A workspace that begins as another build left its own. A `Workspace`.

    Args:
        folder: what is kept of that build.
        build_id: that build.
    """

    def __init__(self, folder: str, build_id: str) -> None:
        self._folder = folder
        self._from = build_id
        self._made: tuple[ContainerEngine, str] | None = None

    def prepare(
        self,
        engine: ContainerEngine,
        build_id: str,
        labels: Mapping[str, str],
        cancel: threading.Event,  # noqa: ARG002  (a copy on one machine)
        report: FetchReport | None = None,  # noqa: ARG002
    ) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        path = os.path.join(self._folder, _ARCHIVE)
        try:
            size = os.path.getsize(path)
        except OSError as error:
            raise SourceError(
                f"the workspace of build {self._from} is no longer kept",
                hint="run the whole build again",
            ) from error
        name = workspace_volume_name(build_id)
        self._made = (engine, name)
        engine.create_volume(name, labels)
        fill_volume(engine, name, labels, _pieces(path))
        return PreparedWorkspace(
            volume=name,
            size_bytes=size,
            way="kept",
            log=(f"The workspace is that of build {self._from}, as its steps left it.",),
            provenance=_kept_provenance(self._folder),
        )

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`: it is a copy."""
        return ()

    def release(self) -> None:
        """See `Workspace.release`."""
        if self._made is not None:
            engine, name = self._made
            engine.remove_volume(name)
            self._made = None


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


def _copy(engine: ContainerEngine, container: str, path: str, target: str, limit: _Limit) -> None:
    private = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(private, "wb") as file, closing(_archive(engine, container, path)) as chunks:
        for chunk in chunks:
            limit.take(len(chunk))
            file.write(chunk)


def _archive(engine: ContainerEngine, container: str, path: str) -> Generator[bytes, None, None]:
    yield from engine.get_archive(container, f"{path}/.")


def _pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece


def _kept_volumes(folder: str) -> list[str]:
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [
        name.removeprefix(_VOLUME).removesuffix(".tar")
        for name in names
        if name.startswith(_VOLUME)
    ]


def _kept_provenance(folder: str) -> SourceProvenance | None:
    """Of what the workspace was made, where that is known."""
    try:
        with open(os.path.join(folder, _PROVENANCE), "rb") as file:
            return decode_message(SourceProvenance, msgspec.json.decode(file.read())).value
    except FileNotFoundError:
        return None


def _make_room(folder: str, limit_bytes: int, spared: str) -> None:
    """Remove what was kept first until all takes no more than the limit, one aside."""
    kept = []
    for entry in os.scandir(folder):
        if entry.path != spared and entry.is_dir(follow_symlinks=False):
            with suppress(OSError):
                kept.append((entry.stat().st_mtime, _size_of(entry.path), entry.path))
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= limit_bytes:
            return
        shutil.rmtree(path, ignore_errors=True)
        total -= size


def _size_of(folder: str) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(folder))
