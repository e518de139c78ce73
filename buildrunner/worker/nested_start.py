"""Starting a nested engine: with the host's images, until it answers."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers.engine_types import LABEL_BUILD
from buildrunner.containers.held_images import HELD_REPOSITORY, turn
from buildrunner.containers.image_share import FolderFiles, SharedImages, StoreFiles, shared_images
from buildrunner.containers.layer_origins import tell_origins
from buildrunner.containers.nested_container import (
    IMAGES_NAME,
    ORIGINS_NAME,
    SOCKET_NAME,
    DaemonSpec,
    data_volume_name,
)
from buildrunner.engine.shared_files import lay_apart
from buildrunner.engine.workspace import volume_name
from buildrunner.errors import EngineError, EngineUnavailable
from buildrunner.worker.nested_place import Running, ended
from buildrunner.worker.store_files import ArchivedFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from collections.abc import Set as AbstractSet

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.containers.layer_origins import Origins
    from buildrunner.containers.nested_container import HostFacts
    from buildrunner.containers.nested_daemon import DaemonState, NestedDaemons
    from buildrunner.worker.nested_folders import SandboxFolders
    from buildrunner.worker.sandbox import SandboxLimits

_CERTIFICATES = "/etc/docker/certs.d"
_TRIES = 5  # an image, or the folder of certificates, may go between our look at it and the start
_VANISHED = ("does not exist", "no such file or directory")
_START_S = 60.0
_LOOK_S = 0.1
_PAUSE_S = 0.005


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
        self,
        place: str,
        facts: HostFacts,
        image: str,
        mode: str,
        labels: Mapping[str, str] = MappingProxyType({}),
    ) -> Running:
        """Make one, and wait until it answers.

        Args:
            place: what it is to be called.
            facts: of the host engine.
            image: what to run.
            mode: one of `MODES`.
            labels: for what is made, besides those that everything has.

        Raises:
            EngineError: it can't be made, or does not answer.
        """
        self._before()
        limits = self._limits()
        notes = self.folders.notes(place)
        for folder in (notes, os.path.join(notes, ORIGINS_NAME)):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        all_labels = {**self._labels, **labels, LABEL_BUILD: place}
        data_folder = self._host.create_volume(data_volume_name(place), all_labels)
        lay_apart(data_folder)
        lay_apart(self._host.create_volume(volume_name(place), all_labels))
        spec = DaemonSpec(
            place=place,
            image=image,
            mode=mode,
            labels=all_labels,
            folder=notes,
            data_volume=data_volume_name(place),
            workspace_volume=volume_name(place),
            images=SharedImages(),
            facts=facts,
            group=os.getegid(),
            cpus=limits.cpus,
            cpu_shares=limits.cpu_shares,
            memory_bytes=limits.memory_bytes,
            pids=limits.pids,
        )
        shared = self._start_with_images(spec)
        state = self._daemons.find(place)
        if state is None:
            raise EngineUnavailable("the build's sandbox was removed while it started")
        running = self._answering(place, place, state, data_folder)
        return msgspec.structs.replace(running, shared=shared.diff_ids)

    def likeness(self, facts: HostFacts) -> str:
        """Equal for two that would be the same if they were started now.

        Raises:
            EngineError: the host engine does not tell.
        """
        parts = (
            facts,
            self._limits(),
            os.getegid(),
            os.path.isdir(_CERTIFICATES),
            self._daemons.images.named() if facts.shares_layers else (),
        )
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()

    def tell(self, build_id: str, shared: AbstractSet[str], pushed: Origins) -> None:
        """Tell a build's engine, before its first push, of registries that have layers.

        Args:
            build_id: the build.
            shared: layers that it shares with the host; nothing is told of others.
            pushed: besides those that the host engine knows of.
        """
        told = {layer: places for layer, places in pushed.items() if layer in shared}
        with suppress(OSError):  # it is only about speed
            tell_origins(os.path.join(self.folders.notes(build_id), ORIGINS_NAME), told)

    def _start_with_images(self, spec: DaemonSpec) -> SharedImages:
        """Start it with what the host has now; again when something of that vanishes meanwhile."""
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(spec.folder, SOCKET_NAME))
        left = _TRIES
        while True:
            left -= 1
            with turn(self._lock_path):
                images = self._shared(spec.facts, spec.labels)
                if images.layers:
                    write_whole(os.path.join(spec.folder, IMAGES_NAME), images.notes)
                    tell_origins(os.path.join(spec.folder, ORIGINS_NAME), images.origins)
                try:
                    certificates = _CERTIFICATES if os.path.isdir(_CERTIFICATES) else ""
                    container = self._daemons.create(
                        msgspec.structs.replace(spec, images=images, certificates=certificates)
                    )
                    self._daemons.start(container)
                    if (
                        self._daemons.images.hold(images.holders) or not left
                    ):  # while the engine starts
                        return images
                except EngineError as error:
                    if not left or not any(sign in str(error) for sign in _VANISHED):
                        raise
            self.drop(spec.place)

    def _shared(self, facts: HostFacts, labels: Mapping[str, str]) -> SharedImages:
        """The host's images, without a copy where that is possible."""
        if not facts.shares_layers:
            return SharedImages()
        root = self._host.info().data_root
        try:
            files: StoreFiles = FolderFiles(root)
            if os.geteuid() != 0:
                files = ArchivedFiles(self._host, root, labels)
            return shared_images(files, root, wanted=lambda name: name != HELD_REPOSITORY)
        except (OSError, ValueError):  # not as we know it: images are copied when they are needed
            return SharedImages()

    def found(self, build_id: str, state: DaemonState) -> Running:
        """Take up again what another process started.

        Raises:
            EngineError: it has ended, or does not answer.
        """
        if state.status not in ("running", "restarting"):
            raise ended(state, self._daemons)
        place = self.folders.place(build_id)
        labels = {**self._labels, LABEL_BUILD: place}
        data_folder = self._host.create_volume(data_volume_name(place), labels)
        return self._answering(build_id, place, state, data_folder)

    def connected(self, build_id: str, state: DaemonState, data_folder: str) -> Running:
        """One that is known to answer."""
        engine = self._connect(self.folders.socket(build_id))
        return Running(state=state, engine=engine, data_folder=data_folder)

    def answers(self, place: str) -> DaemonState | None:
        """One that stands ahead, if it is well."""
        state = self._daemons.find(place)
        if state is None or state.status != "running":
            return None
        engine = self._connect(self.folders.socket(place))
        try:
            engine.ping()
        except EngineError:
            return None
        finally:
            engine.close()
        return state

    def _answering(
        self, build_id: str, place: str, state: DaemonState, data_folder: str
    ) -> Running:
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
                    found = self._daemons.find(place)
                    if found is None or found.status != "running" or now > deadline:
                        engine.close()
                        raise _no_answer(found, self._daemons) from None
                time.sleep(_PAUSE_S)
            else:
                return Running(state=state, engine=engine, data_folder=data_folder)

    def drop(self, place: str) -> None:
        """Remove the nested engine; its volumes stay. Idempotent."""
        state = self._daemons.find(place)
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
