"""One build's nested sandbox, open in this process.

The engine starts in the background while the source is fetched. Its callers wait for it, and get
the reason if it has ended.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from buildrunner.containers.docker.images import PulledImages
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine.run_options import RunOptions
from buildrunner.errors import BuildrunnerError, EngineError, EngineUnavailable
from buildrunner.metadata import NETWORK_GATEWAY, PORT
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.sandboxes.nested.container import FOLDER, container_name
from buildrunner.sandboxes.nested.daemon import DaemonState, NestedDaemons
from buildrunner.sandboxes.nested.disk import DiskWatch
from buildrunner.sandboxes.nested.engine import NestedEngine, Running
from buildrunner.sandboxes.nested.folders import SandboxFolders
from buildrunner.sandboxes.nested.gateway_push import GatewayPush, listening
from buildrunner.sandboxes.nested.host_pulls import HostPulls, WantedImages
from buildrunner.sandboxes.nested.layer_origins import PushMemory
from buildrunner.sandboxes.nested.loopback import (
    LoopbackPorts,
    is_registry,
    loopback_ports,
    token_ports,
)
from buildrunner.sandboxes.nested.machine import NestedMachine
from buildrunner.sandboxes.nested.mentioned_images import (
    made_by,
    mentioned_in_plan,
    mentioned_in_text,
    search_command,
)
from buildrunner.sandboxes.nested.workspace import MountedVolume, NestedWorkspace
from buildrunner.workspace.kernel_mounts import namespace_process
from buildrunner.workspace.protocol import WORKSPACE, Workspace

if TYPE_CHECKING:
    from buildrunner.containers.docker.transport import Stream

_KILLED = 137
_LEARN_S = 5.0
# no longer than the name of the engine's socket: paths of sockets are limited
_METADATA_SOCKET = "meta.sock"
_NEWS_S = 3.0  # longest delay between the end of an engine's connections and the report of its end
_EMPTY = (
    "sh",
    "-euc",
    'if [ "$(stat -f -c %T /workspace)" = overlayfs ]; then umount -l /workspace; fi; '
    "find /workspace -mindepth 1 -delete",
)


class PlaceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the sandbox of one build.

    Attributes:
        build_id: the build.
        place: the sandbox's name on the machine's engine (see `SandboxFolders`).
        labels: labels of the build's resources on the machine's engine.
        privileged_steps: see `OpenSandbox`.
        found: the nested engine exists already: a dead process made it.
        shares_images: the build sees images of other builds, and leaves its own to later ones.
        disk_bytes: the most bytes on the disk; the sandbox ends beyond them. None: no limit.
    """

    build_id: str
    place: str
    labels: dict[str, str]
    privileged_steps: bool
    found: bool
    shares_images: bool
    disk_bytes: int | None = None


class NestedPlace:
    """Implements `OpenSandbox`, and `NestedAccess` for its engine.

    Args:
        machine: the machine of the nested engine. Not closed.
        folders: the folders of this machine's sandboxes.
        facts: facts about this sandbox.
        start: creates or finds the nested engine; runs once, in a thread. Raises EngineError.
        memory: stores the origins of layers that the nested engine pushed; None stores nothing.
    """

    def __init__(
        self,
        machine: NestedMachine,
        folders: SandboxFolders,
        facts: PlaceFacts,
        start: Callable[[], Running],
        memory: PushMemory | None,
    ) -> None:
        self.privileged_steps = facts.privileged_steps
        self.machine: ContainerEngine | None = machine.host
        self.machine_network = f"container:{container_name(facts.place)}"
        self.host: ContainerEngine = machine.host
        self.login_for = machine.login_for
        self.is_common = machine.choices.is_common
        self.pull_turn = machine.pull_turn
        self._machine = machine
        self._folders = folders
        self._build_id = facts.build_id
        self._place = facts.place
        self._daemons = machine.daemons
        self._labels = facts.labels
        self._start = start
        self._found = facts.found
        self._pulls: PulledImages | None = None
        self._limit_bytes = facts.disk_bytes
        self.host_pulls = HostPulls(machine.host, folders.pulled, facts.disk_bytes)
        self._wanted = (
            WantedImages(
                os.path.join(folders.root, "wanted"),
                machine.host,
                machine.cache.note_use,
                own=self.host_pulls,
                left=HostPulls(machine.host, folders.pulled, facts.disk_bytes),
            )
            if facts.shares_images
            else None
        )
        self._memory = memory
        self._pushed = False
        self._over = ""  # why this process ended the nested engine
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._begun = False
        self._up = threading.Event()  # also set if the start has failed
        self._gone = threading.Event()
        self._closed = False
        self._running: Running | None = None
        self._failure: EngineError | None = None
        self._end: Stream | None = None
        # The namespace of the engine's process: processes of steps are its descendants.
        self._ports = LoopbackPorts(lambda: namespace_process(self.ready().state.process, "net"))
        self._plan: BuildPlan | None = None
        gateway = GatewayPush(
            machine.daemons,
            lambda: self.ready().state.id,
            lambda: folders.notes(facts.build_id),
            machine.choices.egress,
        )
        self.push_with = gateway.push
        self.digest_of = gateway.digest_of
        self._nested = NestedEngine(self)
        self.engine: ContainerEngine = self._nested

    def workspace(self, source: Workspace) -> Workspace:
        """See `OpenSandbox.workspace`."""
        self.begin()
        volume = MountedVolume(
            self.host,
            self._place,
            process=lambda: self.ready().state.process,
            clear=lambda: self._daemons.execute(self.ready().state.id, _EMPTY),
            used=self._found,
            is_mounted_late=lambda: self._limit_bytes is not None and self.ready().state.own_disk,
        )
        return NestedWorkspace(
            source, volume, self._place, self._labels, on_filled=self._copy_mentioned
        )

    def options(self, options: RunOptions) -> RunOptions:
        """See `OpenSandbox.options`: resources in the sandbox are not removed separately."""
        return replace(options, leave_cleanup_to_guardian=True, disk_bytes=self._limit_bytes)

    def expect(self, plan: BuildPlan) -> None:
        """See `OpenSandbox.expect`: opens ports of registries on this machine in the plan."""
        self._plan = plan
        ports = loopback_ports(msgspec.json.encode(plan).decode())
        if ports:
            threading.Thread(target=self._open_ports, args=(ports,), daemon=True).start()

    @contextmanager
    def metadata_listener(self) -> Iterator[socket.socket]:
        """See `OpenSandbox.metadata_listener`."""
        container = self.ready().state.id
        place = (NETWORK_GATEWAY, PORT)
        with (
            listening(self._folders.notes(self._build_id), _METADATA_SOCKET) as listener,
            self._daemons.relayed_port(container, f"{FOLDER}/{_METADATA_SOCKET}", place),
        ):
            yield listener

    def _open_ports(self, ports: set[int]) -> None:
        for port in filter(is_registry, sorted(ports)):
            with suppress(BuildrunnerError):  # our own push will report the error
                self.open_port(port)

    def copy_image(self, image: str, names: Iterable[str], cancel: threading.Event) -> str:
        """See `NestedAccess.copy_image`."""
        socket = self._folders.socket(self._build_id)
        return self._machine.copy_image(image, socket, names, cancel)

    def note_use(self, images: Iterable[str]) -> None:
        """See `NestedAccess.note_use`."""
        if self.is_common is None:
            self._machine.cache.note_use(images)

    def open_port(self, port: int) -> None:
        """See `NestedAccess.open_port`."""
        self._ports.open(port)
        for other in token_ports(port):
            with suppress(BuildrunnerError):  # the registry will report the missing token
                self._ports.open(other)

    def _copy_mentioned(self, cancel: threading.Event) -> None:
        """Copy the images of the host engine that steps may name, before the first step.

        No event reports a FROM that the nested engine serves by itself. So its images that
        would soon be removed from the cache are searched, too.
        """
        running = self.ready()
        aging = running.images.aging
        names = {**running.images.missing, **aging}
        if not names or (self._plan is not None and not self._plan.docker_socket):
            return
        lines = self._daemons.execute(running.state.id, search_command(names, WORKSPACE))
        mentioned = mentioned_in_text(names, lines.decode("utf-8", "replace"))
        if self._plan is not None:
            mentioned |= mentioned_in_plan(names, self._plan)
            mentioned -= made_by(names, self._plan)
        self.note_use(aging[name] for name in mentioned if name in aging)
        for name in sorted(mentioned - aging.keys()):
            with suppress(EngineError):  # a step that needs the image reports the error
                self._nested.have_image(name, cancel)

    def close(self) -> None:
        """See `OpenSandbox.close`."""
        with self._lock:
            self._closed = True
            self._closing.set()
            begun, self._begun = self._begun, True
        if not begun:
            self._up.set()
        self._up.wait()
        self._remember_pushes()
        self._ports.close()
        if self._pulls is not None:
            self._pulls.close()
        if self._wanted is not None:
            self._wanted.close()
        if self._end is not None:
            self._end.close()
        if self._running is not None:
            self._running.engine.close()

    def note_push(self) -> None:
        """See `NestedAccess.note_push`."""
        self._pushed = True

    def _remember_pushes(self) -> None:
        """Store the origins of pushed layers. Steps may prevent the engine from answering."""
        memory, self._memory = self._memory, None
        pushed = self._pushed or (self._pulls is not None and self._pulls.pushed)
        running = self._running
        if not pushed or memory is None or running is None:
            return
        learning = threading.Thread(target=self._learn, args=(memory, running), daemon=True)
        learning.start()
        learning.join(_LEARN_S)

    def _learn(self, memory: PushMemory, running: Running) -> None:
        with suppress(EngineError, OSError):  # a failure costs only speed
            known = running.images.diff_ids | self._nested.copied_layers
            memory.learn(self._daemons.layer_origins(running.state.id), known)

    # -- start and end of the engine --------------------------------------------------------------

    def begin(self) -> None:
        """Start the engine in the background, once."""
        with self._lock:
            if self._begun:
                return
            self._begun = True
        threading.Thread(target=self._bring_up, name="sandbox", daemon=True).start()

    def ready(self) -> Running:
        """See `NestedAccess.ready`."""
        self.begin()
        self._up.wait()
        if self._running is None:
            raise EngineUnavailable(
                str(self._failure or "the sandbox was closed"),
                hint=self._failure.hint if self._failure else "",
            )
        return self._running

    def _bring_up(self) -> None:
        try:
            running = self._start()
            self._end = self._daemons.ask_for_end(running.state.id)
            threading.Thread(target=self._watch, args=(self._end,), daemon=True).start()
            self._running = running
            if self._limit_bytes is not None:
                arguments = (running, self._limit_bytes)
                threading.Thread(target=self._watch_disk, args=arguments, daemon=True).start()
            self._pulls = self._machine.pulls(self._folders.socket(self._build_id))
            threading.Thread(target=self._note_pulls, args=(self._pulls,), daemon=True).start()
        except EngineError as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001  (waiting threads must get every error)
            self._failure = EngineError(f"the sandbox can't be made: {error}")
        finally:
            self._up.set()

    def _note_pulls(self, pulls: PulledImages) -> None:
        if self._wanted is not None:
            self._wanted.work()
        for name in pulls:  # also reports pushes
            if self._wanted is not None:
                self._wanted.note(name)

    def _watch(self, end: Stream) -> None:
        with suppress(EngineError):  # without the host engine, `why_gone` reports the reason
            for _ in end.pieces():
                pass
        if not self._closed:
            self._gone.set()

    def _watch_disk(self, running: Running, limit_bytes: int) -> None:
        """End the sandbox once it exceeds its disk limit."""
        container = running.state.id
        watch = DiskWatch(
            partial(self._daemons.execute, container),
            limit_bytes,
            running.data_folder,
            own_disk=running.state.own_disk,
        )
        self._over = watch.until_over(self._closing)
        if self._over:
            with suppress(EngineError):
                self._daemons.remove(container)

    def why_gone(self) -> EngineUnavailable | None:
        """See `NestedAccess.why_gone`."""
        if self._running is None:
            return EngineUnavailable(str(self._failure)) if self._failure else None
        self._gone.wait(_NEWS_S)
        if self._over:
            return EngineUnavailable(self._over)
        try:
            state = self._daemons.find(self._place)
        except EngineError as error:
            return EngineUnavailable(f"the engine below the build's sandbox is gone: {error}")
        if state is None:
            return EngineUnavailable("the build's sandbox was removed while it ran")
        if state.status == "running":
            return None
        return EngineUnavailable(_reason(state, self._daemons))


def ended(state: DaemonState, daemons: NestedDaemons) -> EngineError:
    """Return the error of a nested engine that exists and does not run."""
    return EngineError(_reason(state, daemons))


def _reason(state: DaemonState, daemons: NestedDaemons) -> str:
    what = "the engine of the build's sandbox"
    if state.oom_killed:
        limit = f" (its limit is {state.memory_bytes >> 20} MiB)" if state.memory_bytes else ""
        return f"{what} was killed: the sandbox ran out of memory{limit}"
    if state.exit_code == _KILLED:
        return f"{what} was killed"
    last = daemons.last_error(state.id)
    return f"{what} ended with exit code {state.exit_code}{': ' if last else ''}{last}"
