"""Starting a nested engine: with the host's images, until it answers."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers.engine_types import LABEL_BUILD
from buildrunner.containers.image_share import FolderFiles, SharedImages, StoreFiles, shared_images
from buildrunner.containers.nested_container import IMAGES_NAME, SOCKET_NAME, DaemonSpec
from buildrunner.containers.nested_daemon import HELD_REPOSITORY, turn
from buildrunner.engine.workspace import volume_name
from buildrunner.errors import EngineError, EngineUnavailable
from buildrunner.worker.nested_place import Running, ended
from buildrunner.worker.store_files import ArchivedFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.containers.layer_origins import Origins
    from buildrunner.containers.nested_container import HostFacts
    from buildrunner.containers.nested_daemon import DaemonState, NestedDaemons
    from buildrunner.worker.sandbox import SandboxLimits

_CERTIFICATES = "/etc/docker/certs.d"
_TRIES = 5  # an image may be removed between our reading of it and the start
_VANISHED = ("does not exist", "no such file or directory")
_START_S = 60.0
_LOOK_S = 0.1
_PAUSE_S = 0.005


class SandboxFolders:
    """What this machine keeps of nested sandboxes.

    Args:
        root: the folder of it all.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def notes(self, build_id: str) -> str:
        """What a build's engine shares with us."""
        return os.path.join(self.root, "run", build_id, "engine")

    def builds(self) -> list[str]:
        """Builds of which there is something."""
        try:
            entries = os.listdir(os.path.join(self.root, "run"))
        except FileNotFoundError:
            return []
        return [build_id for build_id in entries if os.path.isdir(self.notes(build_id))]

    def drop(self, build_id: str) -> None:
        """Remove what there is of a build. Idempotent."""
        notes = self.notes(build_id)
        shutil.rmtree(notes, ignore_errors=True)
        with suppress(OSError):  # others keep things beside it
            os.rmdir(os.path.dirname(notes))

    def socket(self, build_id: str) -> str:
        """Where a build's engine listens."""
        return os.path.join(self.notes(build_id), SOCKET_NAME)


class NestedStarter:
    """Starts nested engines. See `NestedSandbox` for the arguments."""

    def __init__(
        self,
        host: ContainerEngine,
        daemons: NestedDaemons,
        *,
        folders: SandboxFolders,
        lock_path: str,
        labels: Mapping[str, str],
        limits: Callable[[], SandboxLimits],
        connect: Callable[[str], ContainerEngine],
        before: Callable[[], None],
    ) -> None:
        self._host = host
        self._daemons = daemons
        self.folders = folders
        self._lock_path = lock_path
        self._labels = dict(labels)
        self._limits = limits
        self._connect = connect
        self._before = before

    def start(
        self, build_id: str, facts: HostFacts, image: str, mode: str, pushed: Origins
    ) -> Running:
        """Make one, and wait until it answers.

        Args:
            build_id: whose it is.
            facts: of the host engine.
            image: what to run.
            mode: one of `MODES`.
            pushed: registries that have layers, besides those that the host engine knows of.

        Raises:
            EngineError: it can't be made, or does not answer.
        """
        self._before()
        limits = self._limits()
        notes = self.folders.notes(build_id)
        os.makedirs(notes, mode=0o700, exist_ok=True)
        labels = {**self._labels, LABEL_BUILD: build_id}
        data_volume = f"buildrunner-{build_id}-engine"
        data_folder = self._host.create_volume(data_volume, labels)
        self._host.create_volume(volume_name(build_id), labels)
        spec = DaemonSpec(
            build_id=build_id,
            image=image,
            mode=mode,
            labels=labels,
            folder=notes,
            data_volume=data_volume,
            workspace_volume=volume_name(build_id),
            images=SharedImages(),
            facts=facts,
            group=os.getegid(),
            certificates=_CERTIFICATES if os.path.isdir(_CERTIFICATES) else "",
            cpus=limits.cpus,
            cpu_shares=limits.cpu_shares,
            memory_bytes=limits.memory_bytes,
            pids=limits.pids,
        )
        shared = self._start_with_images(spec, pushed)
        state = self._daemons.find(build_id)
        if state is None:
            raise EngineUnavailable("the build's sandbox was removed while it started")
        running = self._answering(build_id, state, data_folder)
        return msgspec.structs.replace(running, shared=shared.diff_ids)

    def _start_with_images(self, spec: DaemonSpec, pushed: Origins) -> SharedImages:
        """Start it with the host's images as they are now; again when one vanishes meanwhile."""
        with suppress(FileNotFoundError):
            os.unlink(self.folders.socket(spec.build_id))
        left = _TRIES
        while True:
            left -= 1
            with turn(self._lock_path):
                images = self._shared(spec.facts, spec.labels, pushed)
                if images.layers:
                    write_whole(os.path.join(spec.folder, IMAGES_NAME), images.notes)
                try:
                    container = self._daemons.create(msgspec.structs.replace(spec, images=images))
                    self._daemons.start(container)
                    if self._daemons.hold(images.holders) or not left:  # while the engine starts
                        return images
                except EngineError as error:
                    if not left or not any(sign in str(error) for sign in _VANISHED):
                        raise
            self.drop(spec.build_id)

    def _shared(self, facts: HostFacts, labels: Mapping[str, str], pushed: Origins) -> SharedImages:
        """The host's images, without a copy where that is possible."""
        if not facts.shares_layers:
            return SharedImages()
        root = self._host.info().data_root
        try:
            files: StoreFiles = FolderFiles(root)
            if os.geteuid() != 0:
                files = ArchivedFiles(self._host, root, labels)
            return shared_images(
                files, root, wanted=lambda name: name != HELD_REPOSITORY, pushed=pushed
            )
        except (OSError, ValueError):  # not as we know it: images are copied when they are needed
            return SharedImages()

    def found(self, build_id: str, state: DaemonState) -> Running:
        """Take up again what another process started.

        Raises:
            EngineError: it has ended, or does not answer.
        """
        if state.status not in ("running", "restarting"):
            raise ended(state, self._daemons)
        labels = {**self._labels, LABEL_BUILD: build_id}
        data_folder = self._host.create_volume(f"buildrunner-{build_id}-engine", labels)
        return self._answering(build_id, state, data_folder)

    def _answering(self, build_id: str, state: DaemonState, data_folder: str) -> Running:
        """Wait until the engine answers.

        Its socket is there long before; then the first question waits for the engine.
        """
        deadline = time.monotonic() + _START_S
        look_at = time.monotonic() + _LOOK_S
        engine = self._connect(self.folders.socket(build_id))
        while True:
            try:
                engine.info()
            except EngineUnavailable:
                now = time.monotonic()
                if now > look_at:  # does it still try?
                    look_at = now + _LOOK_S
                    found = self._daemons.find(build_id)
                    if found is None or found.status != "running" or now > deadline:
                        engine.close()
                        raise _no_answer(found, self._daemons) from None
                time.sleep(_PAUSE_S)
            else:
                return Running(state=state, engine=engine, data_folder=data_folder)

    def drop(self, build_id: str) -> None:
        """Remove the nested engine; its volumes stay. Idempotent."""
        state = self._daemons.find(build_id)
        if state is not None:
            self._daemons.remove(state.id)


def _no_answer(state: DaemonState | None, daemons: NestedDaemons) -> EngineError:
    if state is None:
        return EngineError("the build's sandbox was removed while it started")
    if state.status != "running":
        return ended(state, daemons)
    words = daemons.last_error(state.id) or "it tells of no error"
    return EngineError(
        f"the engine of the build's sandbox does not answer after {_START_S:.0f} s: {words}",
        hint="Is this machine overloaded? Else use --sandbox host.",
    )


def write_whole(path: str, data: bytes) -> None:
    """Write a file that others see whole or not at all."""
    fresh = f"{path}.{os.getpid()}.new"
    with open(fresh, "wb") as file:
        file.write(data)
    os.rename(fresh, path)
