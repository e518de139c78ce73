"""The nested sandbox: a Docker engine of the build's own, in a container of the engine at hand.

See docs/explanation/sandbox.md and ADR 0020.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers.engine_protocol import LABEL_BUILD
from buildrunner.containers.image_share import FolderFiles, SharedImages, StoreFiles, shared_images
from buildrunner.containers.nested_container import IMAGES_NAME, MODES, SOCKET_NAME, DaemonSpec
from buildrunner.containers.nested_daemon import HELD_REPOSITORY, release_after_last, turn
from buildrunner.engine.workspace import volume_name
from buildrunner.errors import EngineError, EngineUnavailable
from buildrunner.worker.nested_place import NestedPlace, PullWatch, Running, ended
from buildrunner.worker.sandbox_host import labelled_builds, remove_owned
from buildrunner.worker.store_files import ArchivedFiles
from buildrunner.worker.wanted_images import WantedImages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.containers.nested_container import HostFacts
    from buildrunner.containers.nested_daemon import DaemonState, NestedDaemons
    from buildrunner.worker.sandbox import SandboxLimits

_CERTIFICATES = "/etc/docker/certs.d"
_AGAIN_S = 0.2
_TRIES = 5  # an image may be removed between our reading of it and the start
_VANISHED = ("does not exist", "no such file or directory")
_START_S = 60.0
_LOOK_S = 0.1
_PAUSE_S = 0.005
_NOTES = "engine"


class NestedSandbox:
    """Implements `Sandbox`.

    Args:
        host: the engine to nest in. Closed with the sandbox.
        daemons: nested engines on it. Closed with the sandbox.
        folder: for what this machine keeps of sandboxes: ``run/BUILD`` and what was found out.
        lock_path: file by which all users of the host engine take turns.
        labels: for what is made on the host engine.
        limits: says what each sandbox may take of the machine.
        connect: opens the engine at a socket.
        copy: copies an image from the host engine to the one at a socket, by name.
        pulls: tells what the engine at a socket pulls.
        image: makes sure of the image to run, and gives its name. It may take a minute, once.
        before: makes sure of images that every build wants, on the host engine.
    """

    name = "nested"

    def __init__(
        self,
        host: ContainerEngine,
        daemons: NestedDaemons,
        *,
        folder: str,
        lock_path: str,
        labels: Mapping[str, str],
        limits: Callable[[], SandboxLimits],
        connect: Callable[[str], ContainerEngine],
        copy: Callable[[str, str, threading.Event], None],
        pulls: Callable[[str], PullWatch],
        image: Callable[[], str],
        before: Callable[[], None],
    ) -> None:
        self._host = host
        self._daemons = daemons
        self._folder = folder
        self._lock_path = lock_path
        self._labels = dict(labels)
        self._limits = limits
        self._connect = connect
        self._copy = copy
        self._pulls = pulls
        self._image = image
        self._before = before

    def open(self, build_id: str) -> NestedPlace:
        """See `Sandbox.open`. The first one on a machine finds out how, which takes a second."""
        info = self._host.info()
        if not info.local or info.rootless:
            why = "runs without root" if info.rootless else "does not share this machine's files"
            raise EngineError(
                f"no sandbox can be nested in this engine: it {why}",
                hint="Use an engine of this machine, or --sandbox host.",
            )
        state = self._daemons.find(build_id)
        if state is not None and state.status == "created":
            self._daemons.remove(state.id)  # whoever made it died before it was begun
            state = None
        if state is None:
            mode, start = self._way(build_id)
        else:
            mode, start = state.mode, partial(self._found, build_id, state)
        place = NestedPlace(
            build_id,
            host=self._host,
            daemons=self._daemons,
            labels={**self._labels, LABEL_BUILD: build_id},
            privileged_steps=mode == "privileged",
            start=start,
            copy=lambda name, cancel: self._copy(name, self._socket(build_id), cancel),
            found=state is not None,
            pulls=lambda: self._pulls(self._socket(build_id)),
            wanted=WantedImages(os.path.join(self._folder, "wanted"), self._host),
        )
        place.begin()
        return place

    def remove(self, build_id: str) -> None:
        """See `Sandbox.remove`.

        What a dead process asked for at its last moment may come into being after the first look:
        where one died while it made a sandbox, a second look follows.
        """
        state = self._daemons.find(build_id)
        unfinished = state is None or state.status == "created"
        again = unfinished and os.path.isdir(self._notes(build_id))
        for left in reversed(range(_TRIES)):
            try:
                self._remove(build_id)
                if not again:
                    return
                again = False
            except EngineError:
                if not left:
                    raise
            time.sleep(_AGAIN_S)

    def _remove(self, build_id: str) -> None:
        self._drop(build_id)
        let_go = threading.Thread(target=self._release)
        let_go.start()
        try:
            remove_owned(self._host, build_id)
            shutil.rmtree(self._notes(build_id), ignore_errors=True)
            with suppress(OSError):
                os.rmdir(os.path.dirname(self._notes(build_id)))  # unless others keep things there
        finally:
            let_go.join()

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._host.close()
        self._daemons.close()

    def builds_left(self) -> tuple[str, ...]:
        """See `Sandbox.builds_left`."""
        run = os.path.join(self._folder, "run")
        noted = []
        with suppress(FileNotFoundError):
            noted = [
                one for one in os.listdir(run) if os.path.isdir(os.path.join(run, one, _NOTES))
            ]
        return tuple(sorted({*labelled_builds(self._host, self._labels), *noted}))

    # -- starting one ----------------------------------------------------------------------------

    def _started(self, build_id: str, facts: HostFacts, image: str, mode: str) -> Running:
        self._before()
        limits = self._limits()
        notes = self._notes(build_id)
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
        self._start_with_images(spec)
        state = self._daemons.find(build_id)
        if state is None:
            raise EngineUnavailable("the build's sandbox was removed while it started")
        return self._answering(build_id, state, data_folder)

    def _start_with_images(self, spec: DaemonSpec) -> None:
        """Start it with the host's images as they are now; again when one vanishes meanwhile."""
        with suppress(FileNotFoundError):
            os.unlink(self._socket(spec.build_id))
        for last in (False,) * (_TRIES - 1) + (True,):
            with turn(self._lock_path):
                images = self._shared(spec.facts, spec.labels)
                if images.layers:
                    _write(os.path.join(spec.folder, IMAGES_NAME), images.notes)
                try:
                    container = self._daemons.create(msgspec.structs.replace(spec, images=images))
                    self._daemons.start(container)
                    if self._daemons.hold(images.holders) or last:  # while the engine starts
                        return
                except EngineError as error:
                    if last or not any(sign in str(error) for sign in _VANISHED):
                        raise
            self._drop(spec.build_id)

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

    def _found(self, build_id: str, state: DaemonState) -> Running:
        """Take up again what another process started."""
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
        engine = self._connect(self._socket(build_id))
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

    # -- how this machine lets engines run in containers ------------------------------------------

    def _way(self, build_id: str) -> tuple[str, Callable[[], Running]]:
        """The mode that works here, and what starts it: tried once for each engine, and noted."""
        with turn(self._lock_path):
            image = self._image()
        facts = self._daemons.facts()
        path = os.path.join(self._folder, "nested.json")
        known: dict[str, str] = {}
        with suppress(OSError, msgspec.DecodeError), open(path, "rb") as file:
            known = msgspec.json.decode(file.read(), type=dict[str, str])
        mode = known.get(facts.identity, "")
        if mode in MODES:
            return mode, partial(self._started, build_id, facts, image, mode)
        mode, running = self._tried(build_id, facts, image)
        _write(path, msgspec.json.encode({facts.identity: mode}))
        return mode, lambda: running

    def _tried(self, build_id: str, facts: HostFacts, image: str) -> tuple[str, Running]:
        refusals = []
        for mode in MODES:
            try:
                return mode, self._started(build_id, facts, image, mode)
            except EngineError as error:
                refusals.append(f"{mode}: {error}")
                self.remove(build_id)
        raise EngineError(
            f"no engine can run in a container of this engine ({'; '.join(refusals)})",
            hint="Allow privileged containers (the engine must not be in a container that is not "
            "privileged itself), or use --sandbox host.",
        )

    # -- small things ------------------------------------------------------------------------------

    def _notes(self, build_id: str) -> str:
        return os.path.join(self._folder, "run", build_id, _NOTES)

    def _socket(self, build_id: str) -> str:
        return os.path.join(self._notes(build_id), SOCKET_NAME)

    def _release(self) -> None:
        with suppress(EngineError):
            release_after_last(self._daemons, self._lock_path)

    def _drop(self, build_id: str) -> None:
        state = self._daemons.find(build_id)
        if state is not None:
            self._daemons.remove(state.id)


def _no_answer(state: DaemonState | None, daemons: NestedDaemons) -> EngineError:
    if state is None:
        return EngineError("the build's sandbox was removed while it started")
    if state.status != "running":
        return ended(state, daemons)
    words = daemons.last_words(state.id) or "its log is empty"
    return EngineError(
        f"the engine of the build's sandbox does not answer after {_START_S:.0f} s: {words}",
        hint="Is this machine overloaded? Else use --sandbox host.",
    )


def _write(path: str, data: bytes) -> None:
    fresh = f"{path}.{os.getpid()}.new"
    with open(fresh, "wb") as file:
        file.write(data)
    os.rename(fresh, path)
