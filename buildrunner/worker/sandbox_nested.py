"""The nested sandbox: a Docker engine of the build's own, in a container of the engine at hand.

See docs/explanation/sandbox.md and ADR 0020.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers.engine_types import LABEL_BUILD
from buildrunner.containers.nested_container import MODES
from buildrunner.containers.nested_daemon import release_after_last, turn
from buildrunner.errors import ContainerStartError, EngineError
from buildrunner.worker.nested_place import NestedPlace
from buildrunner.worker.nested_start import NestedStarter, SandboxFolders, write_whole
from buildrunner.worker.push_memory import PushMemory
from buildrunner.worker.sandbox_host import labelled_builds, remove_owned
from buildrunner.worker.wanted_images import WantedImages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.containers.layer_origins import Origins
    from buildrunner.containers.nested_container import HostFacts
    from buildrunner.containers.nested_daemon import NestedDaemons
    from buildrunner.worker.nested_place import PullWatch, Running
    from buildrunner.worker.sandbox import SandboxLimits

_AGAIN_S = 0.2
_TRIES = 5


class NestedSandbox:
    """Implements `Sandbox`.

    Args:
        host: the engine to nest in. Closed with the sandbox.
        daemons: nested engines on it. Closed with the sandbox.
        folder: for what this machine keeps of sandboxes: ``run/BUILD``, and what was found out.
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
        self._folders = SandboxFolders(folder)
        self._lock_path = lock_path
        self._labels = dict(labels)
        self._copy = copy
        self._pulls = pulls
        self._image = image
        self._starter = NestedStarter(
            host,
            daemons,
            folders=self._folders,
            lock_path=lock_path,
            labels=labels,
            limits=limits,
            connect=connect,
            before=before,
        )

    def open(self, build_id: str, *, project: str = "", trusted: bool = True) -> NestedPlace:
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
        memory = None
        if trusted:
            memory = PushMemory(os.path.join(self._folders.root, "pushed-layers"), project)
        if state is None:
            mode, start = self._way(build_id, memory.recall() if memory else {})
        else:
            mode, start = state.mode, partial(self._starter.found, build_id, state)
        place = NestedPlace(
            build_id,
            host=self._host,
            daemons=self._daemons,
            labels={**self._labels, LABEL_BUILD: build_id},
            privileged_steps=mode == "privileged",
            start=start,
            copy=lambda name, cancel: self._copy(name, self._folders.socket(build_id), cancel),
            found=state is not None,
            pulls=lambda: self._pulls(self._folders.socket(build_id)),
            wanted=WantedImages(os.path.join(self._folders.root, "wanted"), self._host),
            memory=memory,
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
        again = unfinished and os.path.isdir(self._folders.notes(build_id))
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
        self._starter.drop(build_id)
        let_go = threading.Thread(target=self._release)
        let_go.start()
        try:
            remove_owned(self._host, build_id)
            self._folders.drop(build_id)
        finally:
            let_go.join()

    def check(self) -> None:
        """See `Sandbox.check`."""
        self._host.ping()

    def close(self) -> None:
        """See `Sandbox.close`."""
        self._host.close()
        self._daemons.close()

    def builds_left(self) -> tuple[str, ...]:
        """See `Sandbox.builds_left`."""
        labelled = labelled_builds(self._host, self._labels)
        return tuple(sorted({*labelled, *self._folders.builds()}))

    # -- how this machine lets engines run in containers ------------------------------------------

    def _way(self, build_id: str, pushed: Origins) -> tuple[str, Callable[[], Running]]:
        """The mode that works here, and what starts it: tried once for each engine, and noted."""
        with turn(self._lock_path):
            image = self._image()
        facts = self._daemons.facts()
        path = os.path.join(self._folders.root, "nested.json")
        known: dict[str, str] = {}
        with suppress(OSError, msgspec.DecodeError), open(path, "rb") as file:
            known = msgspec.json.decode(file.read(), type=dict[str, str])
        mode = known.get(facts.identity, "")
        if mode in MODES:
            start = partial(self._starter.start, build_id, facts, image, mode, pushed)
            return mode, partial(_as_known, path, start)
        mode, running = self._tried(build_id, facts, image, pushed)
        write_whole(path, msgspec.json.encode({facts.identity: mode}))
        return mode, lambda: running

    def _tried(
        self, build_id: str, facts: HostFacts, image: str, pushed: Origins
    ) -> tuple[str, Running]:
        refusals = []
        for mode in MODES:
            try:
                return mode, self._starter.start(build_id, facts, image, mode, pushed)
            except EngineError as error:
                refusals.append(f"{mode}: {error}")
                self.remove(build_id)
        raise EngineError(
            f"no engine can run in a container of this engine ({'; '.join(refusals)})",
            hint="Allow privileged containers (the engine must not be in a container that is not "
            "privileged itself), or use --sandbox host.",
        )

    def _release(self) -> None:
        with suppress(EngineError):
            release_after_last(self._daemons, self._lock_path)


def _as_known(path: str, start: Callable[[], Running]) -> Running:
    try:
        return start()
    except ContainerStartError:  # the machine may have changed: the next build tries anew
        with suppress(OSError):
            os.unlink(path)
        raise
