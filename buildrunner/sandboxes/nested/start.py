"""Starts nested engines, with the cached images of the host, and waits until they answer."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import zip_longest
from types import MappingProxyType

import msgspec

from buildrunner.containers.protocol import LABEL_BUILD
from buildrunner.errors import EngineError, EngineUnavailable
from buildrunner.sandboxes.nested.container import (
    CERTIFICATES_NAME,
    IMAGES_NAME,
    LABEL_READS,
    ORIGINS_NAME,
    OWN_DISK_MODE,
    SOCKET_NAME,
    DaemonSpec,
    HostFacts,
    data_volume_name,
)
from buildrunner.sandboxes.nested.daemon import (
    DaemonState,
    HostImage,
    ImageListing,
    NestedDaemons,
)
from buildrunner.sandboxes.nested.disk import OPTIONS, most_files, own_disk
from buildrunner.sandboxes.nested.engine import Running, SandboxImages
from buildrunner.sandboxes.nested.folders import SandboxFolders
from buildrunner.sandboxes.nested.image_catalog import SharedImages
from buildrunner.sandboxes.nested.layer_origins import Origins, write_origins
from buildrunner.sandboxes.nested.machine import NestedMachine
from buildrunner.sandboxes.nested.place import ended
from buildrunner.workspace.shared_files import lay_apart
from buildrunner.workspace.volume import volume_name

_log = logging.getLogger("buildrunner.sandboxes")

_START_S = 60.0
_LOOK_S = 0.1
_PAUSE_S = 0.005


class NestedStarter:
    """Starts nested engines.

    Args:
        machine: the machine of nested engines.
        folders: the folders of sandboxes.
    """

    def __init__(self, machine: NestedMachine, folders: SandboxFolders) -> None:
        self._machine = machine
        self._host = machine.host
        self._daemons = machine.daemons
        self._cache = machine.cache
        self.folders = folders
        self._labels = dict(machine.choices.labels)
        self._egress = machine.choices.egress
        self._no_own_disk = ""  # why a separate file system can't be made

    def start(
        self,
        place: str,
        facts: HostFacts,
        image: str,
        mode: str,
        labels: Mapping[str, str] = MappingProxyType({}),
        *,
        host_images: ImageListing | None,
    ) -> Running:
        """Create a nested engine, and wait until it answers.

        Args:
            place: its name.
            facts: facts about the host engine.
            image: its image.
            mode: one of `MODES`.
            labels: further labels of its resources.
            host_images: images of the host engine that it may get from the image cache; None
                if it does not see the cache.

        Raises:
            EngineError: it can't be created, or does not answer.
        """
        self._machine.ensure_images()
        limits = self._machine.limits()
        notes = self.folders.notes(place)
        for folder in (notes, os.path.join(notes, ORIGINS_NAME)):
            os.makedirs(folder, mode=0o700, exist_ok=True)
        all_labels = {**self._labels, **labels, LABEL_BUILD: place}
        spec = DaemonSpec(
            place=place,
            image=image,
            mode=mode,
            labels=all_labels,
            folder=notes,
            data_volume=data_volume_name(place),
            workspace_volume=volume_name(place),
            facts=facts,
            group=os.getegid(),
            cpus=limits.cpus,
            cpu_shares=limits.cpu_shares,
            memory_bytes=limits.memory_bytes,
            pids=limits.pids,
            egress=self._egress,
        )
        data_folder, images = self._start_on_disk(spec, host_images)
        state = self._daemons.find(place)
        if state is None:
            raise EngineUnavailable("the build's sandbox was removed while it started")
        running = self._answering(place, place, state, data_folder)
        return msgspec.structs.replace(running, images=images)

    def _start_on_disk(
        self, spec: DaemonSpec, host_images: ImageListing | None
    ) -> tuple[str, SandboxImages]:
        """Start the engine, on separate file systems if possible. Returns data folder and images.

        A sandbox without a disk limit has no separate file systems.
        """
        limit = self._machine.limits().disk_bytes
        if limit is not None and spec.mode == OWN_DISK_MODE and not self._no_own_disk:
            folders = (self._host.info().data_root, self.folders.root)
            try:
                with ExitStack() as stack:
                    devices = [
                        stack.enter_context(own_disk(folders, limit, most_files(limit)))
                        for _ in range(2)
                    ]
                    own = msgspec.structs.replace(spec, own_disk=True)
                    data_folder = self._create_volumes(own, devices)
                    return data_folder, self._start_with_images(own, host_images)
            except EngineError as error:
                self._no_own_disk = str(error)
                _log.info("the disk use of sandboxes is measured only: %s", error)
                self._drop_volumes(spec)
        data_folder = self._create_volumes(spec)
        return data_folder, self._start_with_images(spec, host_images)

    def _create_volumes(self, spec: DaemonSpec, devices: Sequence[str] = ()) -> str:
        """Create the two volumes. Returns the data folder's path on the engine's machine."""
        paths = [
            self._host.create_volume(
                name,
                spec.labels,
                options={"type": "ext4", "device": device, "o": OPTIONS} if device else None,
            )
            for name, device in zip_longest((spec.data_volume, spec.workspace_volume), devices)
        ]
        if not devices:
            for path in paths:
                lay_apart(path)
        return paths[0]

    def _drop_volumes(self, spec: DaemonSpec) -> None:
        self.drop(spec.place)
        for name in (spec.data_volume, spec.workspace_volume):
            self._host.remove_volume(name)

    def likeness(self, facts: HostFacts) -> tuple[str, SandboxImages]:
        """Return a hash of everything a new sandbox would be started with, and its images.

        Raises:
            EngineError: the host engine does not answer.
        """
        host_images = self._daemons.host_images()
        offered = self._cache.offered(host_images)
        parts = (
            facts,
            self._machine.limits(),
            self._egress,
            os.getegid(),
            registry_authorities(),
            sorted(offered.names.items()),
        )
        likeness = hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
        return likeness, sandbox_images(offered, host_images)

    def tell(self, build_id: str, pushed: Origins, state: DaemonState) -> None:
        """Add known origins of layers to a build's engine, before its first push."""
        with suppress(OSError, EngineError):  # a failure costs only speed
            write_origins(os.path.join(self.folders.notes(build_id), ORIGINS_NAME), pushed)
            # The first step can push as soon as it runs, so the engine needs the records before.
            if pushed and state.mode == "user-namespace":
                self._daemons.execute(state.id, ("take-origins",))

    def _start_with_images(
        self, spec: DaemonSpec, host_images: ImageListing | None
    ) -> SandboxImages:
        """Start the engine with the images that the cache offers now."""
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(spec.folder, SOCKET_NAME))
        images, container = self._created(spec, host_images)
        self._daemons.start(container)
        return images

    def _created(
        self, spec: DaemonSpec, host_images: ImageListing | None
    ) -> tuple[SandboxImages, str]:
        write_authorities(os.path.join(spec.folder, CERTIFICATES_NAME))
        if host_images is None:
            return SandboxImages(), self._daemons.create(spec)
        on_host = host_images()
        with self._cache.reading() as since:
            offered = self._cache.offered(on_host)
            write_whole(os.path.join(spec.folder, IMAGES_NAME), offered.files)
            labels = spec.labels
            if offered.names:
                labels = {**labels, LABEL_READS: str(since)}
            container = self._daemons.create(
                msgspec.structs.replace(
                    spec,
                    labels=labels,
                    image_volume=self._cache.volume if offered.names else "",
                )
            )
        return sandbox_images(offered, on_host), container

    def found(self, build_id: str, state: DaemonState) -> Running:
        """Connect to an engine that another process started.

        Raises:
            EngineError: the engine has ended, or does not answer.
        """
        if state.status not in ("running", "restarting"):
            raise ended(state, self._daemons)
        place = self.folders.place(build_id)
        labels = {**self._labels, LABEL_BUILD: place}
        data_folder = self._host.create_volume(data_volume_name(place), labels)
        return self._answering(build_id, place, state, data_folder)

    def connected(self, build_id: str, state: DaemonState, data_folder: str) -> Running:
        """Connect to an engine that is known to answer."""
        engine = self._machine.connect(self.folders.socket(build_id))
        return Running(state=state, engine=engine, data_folder=data_folder)

    def answers(self, place: str) -> DaemonState | None:
        """Return the state of a spare engine that answers; else None."""
        state = self._daemons.find(place)
        if state is None or state.status != "running":
            return None
        engine = self._machine.connect(self.folders.socket(place))
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

        The socket exists before the engine answers; the first request then waits.
        """
        deadline = time.monotonic() + _START_S
        look_at = time.monotonic() + _LOOK_S
        engine = self._machine.connect(self.folders.socket(build_id))
        while True:
            try:
                engine.info()
            except EngineUnavailable:
                now = time.monotonic()
                if now > look_at:  # is the engine still starting?
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


def sandbox_images(offered: SharedImages, host_images: Iterable[HostImage]) -> SandboxImages:
    """Return the offered images that a sandbox has, and the images that it lacks."""
    return SandboxImages(
        ids=offered.ids,
        diff_ids=offered.diff_ids,
        aging=offered.aging,
        missing={
            name: image.id
            for image in host_images
            for name in image.names
            if name not in offered.names
        },
    )


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
    """Write a file atomically."""
    fresh = f"{path}.{os.getpid()}.new"
    with open(fresh, "wb") as file:
        file.write(data)
    os.rename(fresh, path)


CERTIFICATES = "/etc/docker/certs.d"
"""Docker's folder of certificates, with one folder ``HOST:PORT`` for each registry."""


def registry_authorities() -> dict[str, bytes]:
    """Return certificates of the authorities that sign the registries' certificates.

    Client certificates and their keys stay on this machine: steps can read all files of a sandbox.

    Returns:
        The content by path below `CERTIFICATES`, such as ``registry.example.com:5000/ca.crt``.
        Entries that are removed while this function reads are missing.
    """
    found: dict[str, bytes] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for registry in sorted(os.listdir(CERTIFICATES)):
            found.update(_authorities_of(registry))
    return found


def write_authorities(folder: str) -> None:
    """Create ``folder`` with a copy of `registry_authorities`.

    A copy, because the engine's start fails if the original folder is deleted meanwhile.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for path, content in registry_authorities().items():
        copy = os.path.join(folder, path)
        os.makedirs(os.path.dirname(copy), mode=0o700, exist_ok=True)
        with open(copy, "wb") as file:
            file.write(content)


def _authorities_of(registry: str) -> Mapping[str, bytes]:
    found: dict[str, bytes] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in sorted(os.listdir(os.path.join(CERTIFICATES, registry))):
            if name.endswith(".crt"):
                with open(os.path.join(CERTIFICATES, registry, name), "rb") as file:
                    found[f"{registry}/{name}"] = file.read()
    return found
