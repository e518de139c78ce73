"""The sandbox of a worker in a Pod: the engine beside the worker, which shares ``/workspace``.

One folder is ``/workspace`` of the worker, of the engine's own file system, and of every step. So
``docker run -v /workspace:/workspace`` in a step works as on the hosted service.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from msgspec.structs import replace

from buildrunner.addresses import NO_WALL, Egress
from buildrunner.containers.forwarding import Answer, ExplainedStream, ForwardingEngine
from buildrunner.containers.protocol import LABEL_BUILD, ContainerEngine, EngineInfo
from buildrunner.errors import EngineError, EngineUnavailable
from buildrunner.file_trees import remove_tree
from buildrunner.sandboxes.host import NOBODY, HostPlace, HostSandbox
from buildrunner.sandboxes.nested.container import PRIVILEGED_STEPS
from buildrunner.workspace.protocol import (
    WORKSPACE,
    Preparation,
    PreparedWorkspace,
    Workspace,
    WrappedWorkspace,
)
from buildrunner.workspace.volume import volume_name

_STARTS_S = 2.0  # less than the time after which `EngineWatch` reports a silent engine
_PAUSE_S = 0.05
_POD_ENDS_S = 15.0

ENGINE_DATA = "/var/lib/docker"
VOLUMES = "/var/lib/engine-volumes"
"""Where the engine has its data, and where the worker has the engine's volumes, if it has them."""


class PodSandbox(HostSandbox):
    """Implements `Sandbox` with the engine of a Pod that runs one build at a time.

    Args:
        engine: the engine of the Pod. Closed with the sandbox.
        labels: see `HostSandbox`.
        isolation: how the Pod isolates its builds; one of `protocol.ISOLATIONS`.
        egress: networks that the Pod's engine does not reach.
        folder: the shared folder's path in this container.
        network: network of the builds, which `keep_spares` makes ahead; empty for none.
    """

    name = "pod"

    def __init__(
        self,
        engine: ContainerEngine,
        labels: Mapping[str, str],
        isolation: str,
        folder: str = WORKSPACE,
        *,
        egress: Egress = NO_WALL,
        network: str = "",
    ) -> None:
        super().__init__(engine, labels)
        self._network = network
        self._egress = egress
        self._isolation = isolation
        self._folder = folder

    def open(
        self,
        build_id: str,  # noqa: ARG002
        *,
        project: str = "",  # noqa: ARG002
        trusted: bool = True,  # noqa: ARG002
    ) -> PodPlace:
        """See `Sandbox.open`: Kubernetes has made the Pod."""
        return PodPlace(self._engine, self._isolation in PRIVILEGED_STEPS, self._folder)

    def check(self) -> None:
        """See `Sandbox.check`. The engine of a new Pod starts beside the worker: wait for it."""
        end = time.monotonic() + _STARTS_S
        while True:
            try:
                return super().check()
            except EngineUnavailable:
                if time.monotonic() >= end:
                    raise
            time.sleep(_PAUSE_S)

    def keep_spares(self, count: int) -> None:  # noqa: ARG002
        """See `Sandbox.keep_spares`: makes the network of the build, once.

        A step may change networks, so the network belongs to the build from its begin on. The
        network has no label of the build, which would remove it at its end: it ends with the Pod.
        """
        if self._network:
            self.check()
            self._engine.ensure_network(self._network, {LABEL_BUILD: NOBODY})
            self._network = ""

    def unenforced(self, egress: Egress) -> tuple[str, ...]:
        """See `Sandbox.unenforced`."""
        return self._egress.reached(egress)

    def isolation(self) -> str:
        """See `Sandbox.isolation`."""
        return self._isolation


class PodPlace(HostPlace):
    """Implements `OpenSandbox`.

    Args:
        engine: the engine of the Pod.
        privileged_steps: see `OpenSandbox`.
        folder: see `PodSandbox`.
    """

    def __init__(self, engine: ContainerEngine, privileged_steps: bool, folder: str) -> None:
        super().__init__(_EngineOfBuild(engine))
        self.machine = None  # the steps control the only engine
        self.privileged_steps = privileged_steps
        self._folder = folder

    def workspace(self, source: Workspace) -> Workspace:
        """See `OpenSandbox.workspace`."""
        return _PodWorkspace(source, self._folder)


class _EngineOfBuild(ForwardingEngine):
    """The engine of a Pod for its build.

    An engine that ends, mostly ends with its Pod. Then Kubernetes kills this process, too, and the
    server reports why the Pod ended. So an error of the engine waits before the build gets it: the
    first one for 15 seconds, others until then. An answer in between begins the time anew.
    """

    def __init__(self, engine: ContainerEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._gone_since: float | None = None

    def _ask(self, question: Callable[[ContainerEngine], Answer]) -> Answer:
        try:
            answer = question(self._engine)
        except EngineUnavailable as error:
            raise self._delayed(error) from error
        self._gone_since = None
        return answer

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """See `Resources.create_volume`. Returns the path in this container if the folder is here.

        To read a file there takes 0.1 ms. Through the engine, it takes 40 ms.
        """
        folder = super().create_volume(name, labels, options=options)
        inside = f"{name}/_data"
        if folder != f"{ENGINE_DATA}/volumes/{inside}" or options or not os.path.isdir(VOLUMES):
            return folder
        return os.path.join(VOLUMES, inside)

    def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        """See `Containers.start_container`."""
        return ExplainedStream(super().start_container(container_id, attach=attach), self._delayed)

    def follow_container(self, container_id: str) -> Iterator[bytes]:
        """See `Containers.follow_container`."""
        return ExplainedStream(super().follow_container(container_id), self._delayed)

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        """See `Containers.get_archive`."""
        return ExplainedStream(super().get_archive(container_id, path), self._delayed)

    def _delayed(self, error: EngineUnavailable) -> EngineUnavailable:
        with self._lock:
            if self._gone_since is None:
                self._gone_since = time.monotonic()
            until = self._gone_since + _POD_ENDS_S
        time.sleep(max(0.0, until - time.monotonic()))
        return error


class _PodWorkspace(WrappedWorkspace):
    """A workspace in the shared folder. Implements `Workspace`."""

    def __init__(self, source: Workspace, folder: str) -> None:
        super().__init__(source)
        self._folder = folder

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        shared = _SharedVolume(wanted.engine, volume_name(wanted.build_id), self._folder)
        prepared = self._workspace.prepare(replace(wanted, engine=shared))
        return replace(prepared, volume=WORKSPACE, bind=True)


class _SharedVolume(ForwardingEngine):
    """The engine of the Pod while its shared folder is filled.

    The volume of the workspace is the folder under another name: files that are unpacked into the
    volume are in the folder.
    """

    def __init__(self, engine: ContainerEngine, volume: str, folder: str) -> None:
        self._engine = engine
        self._volume = volume
        self._folder = folder

    def _ask(self, question: Callable[[ContainerEngine], Answer]) -> Answer:
        return question(self._engine)

    def info(self) -> EngineInfo:
        """See `ContainerEngine.info`: this process can't access folders of the engine's volumes."""
        return replace(super().info(), local=False)

    def create_volume(
        self, name: str, labels: Mapping[str, str], *, options: Mapping[str, str] | None = None
    ) -> str:
        """See `Resources.create_volume`. Removes the files of an earlier process or build.

        Raises:
            EngineError: a file can't be removed.
        """
        if name != self._volume:
            return super().create_volume(name, labels, options=options)
        _empty(self._folder)
        bound = {"type": "none", "o": "bind", "device": WORKSPACE}
        return super().create_volume(name, labels, options=bound)


def _empty(folder: str) -> None:
    try:
        found = os.listdir(folder)
    except OSError as error:
        problem = f"{folder}: {error.strerror}"
    else:
        problems = (remove_tree(os.path.join(folder, name)) for name in found)
        problem = next(filter(None, problems), "")
    if problem:
        raise EngineError(
            f"the workspace of the Pod can't be emptied: {problem}",
            hint="mount the same volume at /workspace of the worker and of the engine",
        )
