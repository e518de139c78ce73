"""One container's life, through the Docker Engine API: made, started, followed, killed, removed.

`was_oom_killed` says whether a container that ended by SIGKILL ran out of memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from buildrunner.containers import start_gate
from buildrunner.containers.docker import output
from buildrunner.containers.docker.api import ANSWER_TIMEOUT_S, DockerApi, filters
from buildrunner.containers.docker.errors import Refusal, broken, start_error
from buildrunner.containers.docker.output import OutputStream
from buildrunner.containers.protocol import ContainerExit, ContainerSpec, Mount
from buildrunner.errors import ContainerNameTaken, EngineError, GateRefused, NotFound

if TYPE_CHECKING:
    from buildrunner.containers.docker.transport import Stream


_KILLED = 137
_LINE_LIMIT = 1 << 20
_ALIVE = ("running", "paused")
_NEWS_OF_END_S = 1.0  # between the end of a container's output and the report of its end
_STARTS = 10  # of one container, while other builds make and remove its network


class _End:
    """The end of a container, which a separate thread reads from the engine's answer."""

    def __init__(self, answer: Stream) -> None:
        self._answer = answer
        self.was_killed = False
        """Whether the engine has sent the container a signal; known with the end."""
        self._code: int | None = None
        self._error: EngineError | None = None
        self._is_known = threading.Event()
        answer.wait_for_ever()
        threading.Thread(target=self._listen, name="end of a container", daemon=True).start()

    def _listen(self) -> None:
        try:
            with contextlib.closing(self._answer):
                for code in map(_code_in, self._answer.lines(_LINE_LIMIT)):
                    if code is not None:
                        self._code = code
                        return
                    self.was_killed = True
        except EngineError as error:
            self._error = error
        finally:
            self._is_known.set()

    def code(self) -> int | None:
        """Wait for the exit code; None if the engine has ended its answer without one.

        Raises:
            EngineError: the engine broke off, or its answer can't be understood.
        """
        self._is_known.wait()
        if self._error is not None:
            raise self._error
        return self._code

    def is_known(self, timeout_s: float) -> bool:
        """Wait until the end is known, or never will be. Returns False after the time limit."""
        return self._is_known.wait(timeout_s)

    def close(self) -> None:
        """Stop listening, and release all waiting threads."""
        self._answer.close()


def _code_in(line: bytes) -> int | None:
    """Return the exit code in a ``die`` event; None for a ``kill`` event."""
    try:
        event = json.loads(line)
        if event["Action"] == "kill":
            return None
        return int(event["Actor"]["Attributes"]["exitCode"])
    except (ValueError, RecursionError, LookupError, TypeError) as error:
        raise EngineError(f"the engine's answer can't be understood: {error!r}") from error


class DockerContainers:
    """The `Containers` part of a Docker engine. Thread-safe.

    Args:
        api: the engine.
        restore_network: makes the network again that a refused start lacked, if possible. Returns
            whether to retry.
    """

    def __init__(self, api: DockerApi, restore_network: Callable[[str], bool]) -> None:
        self._api = api
        self._restore_network = restore_network
        self._ends: dict[str, _End] = {}
        self._prepared: dict[str, tuple[OutputStream, _End | None]] = {}
        self._killed: set[str] = set()  # killed by this object, and not removed yet
        self._refusals: dict[str, bytes] = {}  # by container id: the refusal that its gate prints
        self._ahead: set[str] = set()  # started, and their programs wait behind gates

    def create_container(self, spec: ContainerSpec) -> str:
        """See `Containers.create_container`."""
        request = create_request(spec, log_driver=self._api.capabilities().log_driver)
        try:
            container_id = self._create(request, spec.name)
        except Refusal as refusal:
            if refusal.status == 404 and "no such image" in refusal.message.lower():
                raise EngineError(
                    f"the engine has no image {spec.image!r}",
                    hint="Pull it first, or build it in an earlier step under exactly this name.",
                ) from refusal
            if refusal.status in (409, 500) and "already in use" in refusal.message:
                raise ContainerNameTaken(f"there is a container {spec.name} already") from refusal
            raise refusal.as_error("the container can't be created") from refusal
        if spec.gate:
            self._refusals[container_id] = start_gate.refusal_of(spec).encode()
        return container_id

    def _create(self, request: dict[str, Any], name: str) -> str:
        """Create a container. Podman refuses it if its network was removed meanwhile."""
        left = _STARTS
        while True:
            try:
                with self._api.client() as client:
                    return str(client.create_container_from_config(request, name or None)["Id"])
            except Refusal as refusal:
                left -= 1
                if not left or not self._restore_network(refusal.message):
                    raise

    def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        """See `Containers.start_container`.

        With Docker, also opens the stream of events that `wait_container` will read: it reports
        the end at once, while ``wait`` answers only after the engine has removed the container's
        network (20 to 50 ms later, measured). The next step's start overlaps with that removal.
        """
        if container_id in self._ahead:
            return self._let_go(container_id)
        stream = self._start(container_id, attach=attach)
        if (refusal := self._refusals.get(container_id)) is None:
            return stream
        self._open_gate(container_id)
        return start_gate.checked_output(stream, refusal)

    def start_ahead(self, container_id: str) -> None:
        """See `Containers.start_ahead`. Podman sets a container up when it is attached to."""
        gated = container_id in self._refusals
        if not gated and self._api.capabilities().attach_is_passive:
            return self.prepare_start(container_id)
        try:
            if container_id not in self._prepared:
                self._prepared[container_id] = self._listen(container_id)
            if gated:
                with self._api.client() as client:
                    client.start(container_id)
                self._ahead.add(container_id)
        except Refusal as refusal:
            raise start_error(refusal.message) from refusal
        return None

    def _let_go(self, container_id: str) -> Iterator[bytes]:
        """Make the gate run its program."""
        self._ahead.discard(container_id)
        stream, end = self._prepared.pop(container_id)
        if end is not None:
            if end.is_known(0):
                stream.close()
                end.close()
                raise GateRefused("the container has ended before its turn")
            self._ends[container_id] = end
        self._open_gate(container_id)
        return start_gate.checked_output(stream, self._refusals[container_id])

    def _open_gate(self, container_id: str) -> None:
        """Open the gate, which then becomes the program. The program has another standard input."""
        with contextlib.closing(self._attach(container_id, stdin=1)) as attached:
            attached.send(start_gate.WORD)

    def _start(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        left = _STARTS
        while True:
            # A failed start ends the attached connection: without a new one the output is lost.
            try:
                return self._try_start(container_id, attach=attach)
            except Refusal as refusal:
                left -= 1
                if not left or not self._restore_network(refusal.message):
                    raise start_error(refusal.message) from refusal

    def prepare_start(self, container_id: str) -> None:
        """See `Containers.prepare_start`: attaches, and listens for the end."""
        if self._api.capabilities().attach_is_passive and container_id not in self._prepared:
            self._prepared[container_id] = self._listen(container_id)

    def _listen(self, container_id: str) -> tuple[OutputStream, _End | None]:
        """Attach and listen for the end, before the start, so that nothing is missed.

        Raises:
            Refusal: the container can't start. Only an engine that sets a container up on attach
                reports it here.
        """
        with contextlib.ExitStack() as undo:
            attached = self._attach(container_id, stdout=1, stderr=1)
            undo.callback(attached.close)
            end = self._await_end(container_id)
            undo.pop_all()
        stream = OutputStream(
            attached,
            runs_on=partial(self._runs_on, container_id, end),
            rest=partial(output.rest_of_broken, self._api, container_id),
        )
        return stream, end

    def _attach(self, container_id: str, **streams: int) -> Stream:
        try:
            return self._api.stream(
                "POST",
                f"/containers/{quote(container_id)}/attach",
                params={"stream": 1, **streams},
                headers={"Connection": "Upgrade", "Upgrade": "tcp"},
            )
        except Refusal as refusal:
            if not self._api.capabilities().attach_is_passive and refusal.status == 500:
                raise
            raise refusal.as_error("the container's output can't be followed") from refusal

    def _await_end(self, container_id: str) -> _End | None:
        """Listen for the container's end, where the engine's events are complete.

        Podman's are not: its ``/events`` drops some, and ``wait?condition=next-exit``, which
        reads them, starts to listen after it has sent the head of its answer (until Podman 6;
        containers/podman#28514). The end of a short container is missed then, and the answer never
        comes. So this code requests Podman's exit code once the container has been started.
        """
        if not self._api.capabilities().death_events:
            return None
        try:
            return _End(_events(self._api, container_id, "die", "kill"))
        except Refusal as refusal:
            raise refusal.as_error("the container can't be waited for") from refusal

    def _runs_on(self, container_id: str, end: _End | None) -> bool:
        """Return whether a container still runs although its attached connection was closed.

        Docker closes it when the container ends. Podman closes it when the step closes its output.
        """
        if end is None or end.is_known(_NEWS_OF_END_S):
            return False
        return self._status(container_id) in _ALIVE

    def _status(self, container_id: str) -> str:
        """Return the container's status; empty if the engine has no such container."""
        with contextlib.suppress(Refusal), self._api.client() as client:
            return str(client.inspect_container(container_id)["State"]["Status"])
        return ""

    def _try_start(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        """Listen, then start. Returns the output.

        Raises:
            Refusal: the engine can't start the container.
        """
        stream: OutputStream | None = None
        if attach:
            prepared = self._prepared.pop(container_id, None)
            stream, end = prepared or self._listen(container_id)
        else:
            end = self._await_end(container_id)
        with contextlib.ExitStack() as undo:
            for listening in (stream, end):
                if listening is not None:
                    undo.callback(listening.close)
            with self._api.client() as client:
                client.start(container_id)
            undo.pop_all()
        if end is not None:
            self._ends[container_id] = end
        return stream or iter(())

    def follow_container(self, container_id: str) -> Iterator[bytes]:
        """See `Containers.follow_container`.

        A dead process may have opened the gate already: opening it twice is harmless.
        """
        followed = output.follow(self._api, container_id)
        try:
            with self._api.client() as client:
                found = client.inspect_container(container_id)
            entrypoint = found["Config"]["Entrypoint"] if found["Config"]["OpenStdin"] else ()
            status = found["State"]["Status"]
        except Refusal as refusal:
            raise refusal.as_error("the container can't be followed") from refusal
        if not entrypoint:
            return followed
        if status in _ALIVE:
            self._open_gate(container_id)
        return start_gate.checked_output(followed, entrypoint[1].encode())

    def wait_container(self, container_id: str) -> ContainerExit:
        """See `Containers.wait_container`. Any number of threads may wait."""
        code, was_killed = None, False
        prepared = self._prepared.get(container_id)  # a pre-started container that was killed
        if (end := self._ends.get(container_id) or (prepared and prepared[1])) is not None:
            code, was_killed = end.code(), end.was_killed
        if code is None:
            code = self._torn_down(container_id)
            if container_id not in self._killed and _is_of_ended_engine(self._api, container_id):
                raise broken(_OF_ENDED_ENGINE)
            was_killed = self._was_killed(container_id)
        if container_id in self._killed:
            return ContainerExit(code)
        if was_killed:
            check_goes_on(self._api, container_id)
        if code != _KILLED:
            return ContainerExit(code)

        return ContainerExit(
            code,
            was_oom_killed(self._api, container_id, lambda: self._torn_down(container_id)),
        )

    def _was_killed(self, container_id: str) -> bool:
        if not self._api.capabilities().death_events:
            return False
        with contextlib.suppress(Refusal):
            return "kill" in _noted_actions(self._api, container_id)
        return False

    def _torn_down(self, container_id: str) -> int:
        """Wait until the engine has finished the container's teardown. Returns its exit code.

        Podman keeps the exit code of a container for some minutes after its removal.
        """
        try:
            if not self._api.capabilities().death_events:
                return self._exit_code(container_id)
            with self._api.client() as client:
                return int(client.wait(container_id)["StatusCode"])
        except Refusal as refusal:
            raise refusal.as_error("the container can't be waited for") from refusal

    def _exit_code(self, container_id: str) -> int:
        """Wait for the exit code of a container of Podman. The container may be removed already.

        Raises:
            Refusal: 404: no container of that id exists or has ended recently.
        """
        path = f"/libpod/containers/{quote(container_id)}/wait"
        return int(self._api.send("POST", path, timeout_s=None))

    def kill_container(self, container_id: str, signal: str = "SIGKILL") -> None:
        """See `Containers.kill_container`."""
        if signal == "SIGKILL":
            self._killed.add(container_id)
        try:
            with self._api.client() as client:
                client.kill(container_id, signal)
        except Refusal as refusal:
            if refusal.status not in (404, 409):  # 404: removed, 409: not running
                raise refusal.as_error("the container can't be killed") from refusal

    def remove_container(self, container_id: str) -> None:
        """See `Containers.remove_container`."""
        if end := self._ends.pop(container_id, None):
            end.close()
        self._forget_prepared(container_id)
        self._killed.discard(container_id)
        self._refusals.pop(container_id, None)
        remove_by_force(self._api, container_id, called="the container")

    def remove_unstarted(self, container: str) -> bool:
        """See `Containers.remove_unstarted`.

        Lists report the state before a start that is in progress. The engine answers ``inspect``,
        and handles a removal, only after that start. Without force, it then refuses to remove a
        running container. But it removes an ended one, and no request prevents that: a container
        that both starts and ends between the check and the removal is removed. So the engine's
        record of the container decides afterwards.
        """
        try:
            with self._api.client() as client, contextlib.ExitStack() as opened:
                found = client.inspect_container(container)
                if found["State"]["Status"] != "created":
                    return False
                container_id = str(found["Id"])
                has_run = self._record_of_starts(container_id, opened)
                self._forget_prepared(container_id)
                client.remove_container(container_id, v=True)
                if has_run():
                    raise EngineError(
                        f"the container {container} ran while it was removed as one that never "
                        "started, and its result is lost",
                        hint="The step may have done its work, and does not run a second time. "
                        "Check what it did, then submit the build again.",
                    )
        except Refusal as refusal:
            if refusal.status == 409 or "cannot be removed without force" in refusal.message:
                return False
            if refusal.status != 404:
                raise refusal.as_error("the container can't be removed") from refusal
        self._forget_prepared(container)
        return True

    def _record_of_starts(
        self, container_id: str, opened: contextlib.ExitStack
    ) -> Callable[[], bool]:
        """Start to record whether a container starts. The result is known after its removal.

        Docker's events of a container come in their order, and its removal is the last one.
        Podman may drop events, but it keeps the exit code of every ended container.
        """
        if self._api.capabilities().death_events:
            chosen = filters(container=[container_id], event=["start", "destroy"])
            events = self._api.stream("GET", "/events", params={"since": 0, "filters": chosen})
            opened.callback(events.close)
            return lambda: json.loads(next(events.lines(_LINE_LIMIT), b""))["Action"] == "start"

        def has_ended() -> bool:
            try:
                self._exit_code(container_id)
            except Refusal as refusal:
                if refusal.status != 404:
                    raise
                return False
            return True

        return has_ended

    def _forget_prepared(self, container_id: str) -> None:
        self._ahead.discard(container_id)
        if prepared := self._prepared.pop(container_id, None):
            for listening in prepared:
                if listening is not None:
                    listening.close()

    def put_archive(self, container_id: str, path: str, tar: Iterable[bytes]) -> None:
        """See `Containers.put_archive`; ``tar`` may be compressed (gzip, bzip2, xz)."""
        self._unpack(container_id, path, {"path": path}, tar)

    def fill_mount(self, container_id: str, target: str, tar: Iterable[bytes]) -> None:
        """See `Containers.fill_mount`.

        Docker refuses symbolic links that lead up and out of the folder at which it unpacks, so
        it unpacks at the root. Podman accepts them; at the root, it would unpack beside the mount.
        """
        query = {"path": "/"}
        if not self._api.capabilities().unpacks_into_mounts:
            query = {"path": target, "rename": json.dumps({target.lstrip("/"): "."})}
        self._unpack(container_id, target, query, tar)

    def _unpack(
        self, container_id: str, path: str, query: Mapping[str, str], tar: Iterable[bytes]
    ) -> None:
        archive = f"/containers/{quote(container_id)}/archive"
        try:
            self._api.send("PUT", archive, params=query, body=tar)
        except Refusal as refusal:
            if refusal.status == 404:
                raise NotFound(
                    f"the container has no folder {path}: {refusal.message}"
                ) from refusal
            raise refusal.as_error(f"files can't be copied to {path}") from refusal

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        """See `Containers.get_archive`."""
        if not self._api.capabilities().names_folder_itself:
            path = path.removesuffix("/.")
        archive = f"/containers/{quote(container_id)}/archive"
        try:
            return self._api.stream("GET", archive, params={"path": path}).pieces()
        except Refusal as refusal:
            if refusal.status == 404:
                raise NotFound(f"the container has no {path}: {refusal.message}") from refusal
            raise refusal.as_error(f"{path} can't be read") from refusal

    def let_go(self) -> None:
        """Close all connections for future starts and ends."""
        for container_id in tuple(self._ends):
            if end := self._ends.pop(container_id, None):
                end.close()
        for container_id in tuple(self._prepared):
            self._forget_prepared(container_id)


def create_request(spec: ContainerSpec, *, log_driver: str = "local") -> dict[str, Any]:
    """Return the body of ``POST /containers/create``.

    Args:
        spec: the container.
        log_driver: the driver that stores its output, if the spec requests that.
    """
    host: dict[str, Any] = {"LogConfig": {"Type": "none"}}
    if spec.keep_log:
        options = output.LOG_OPTIONS if log_driver == "local" else {}
        host["LogConfig"] = {"Type": log_driver, "Config": options}
    request: dict[str, Any] = {
        "Image": spec.image,
        "AttachStdout": True,
        "AttachStderr": True,
        "Env": spec.env,
        "Labels": spec.labels,
        "HostConfig": host,
    }
    if spec.entrypoint is not None:
        request["Entrypoint"] = spec.entrypoint or ("",)  # [""] means "none" in the API
    if spec.cmd is not None:
        request["Cmd"] = spec.cmd
    if spec.workdir:
        request["WorkingDir"] = spec.workdir
    if spec.user:
        request["User"] = spec.user
    if spec.mounts:
        host["Mounts"] = [
            {
                "Type": "bind" if mount.bind else "volume",
                "Source": mount.source,
                "Target": mount.target,
                "ReadOnly": mount.read_only,
                **({} if mount.bind else {"VolumeOptions": _volume_options(spec, mount)}),
            }
            for mount in spec.mounts
        ]
    if spec.network:
        host["NetworkMode"] = spec.network
        if spec.network_aliases:
            request["NetworkingConfig"] = {
                "EndpointsConfig": {spec.network: {"Aliases": spec.network_aliases}}
            }
    if spec.extra_hosts:
        host["ExtraHosts"] = spec.extra_hosts
    _add_rights(host, spec)
    # The gate enters the working folder itself: the engine would create the folder too early.
    gate = {"Entrypoint": start_gate.behind_gate(spec), "WorkingDir": "/", "OpenStdin": True}
    return request | gate if spec.gate else request


def _volume_options(spec: ContainerSpec, mount: Mount) -> dict[str, Any]:
    """Return options with labels, which apply only if the engine must create the volume again.

    The volume is missing if the build is cleaned up during this request. Without labels, no sweep
    would find the new volume.
    """
    return {"NoCopy": mount.no_copy, "Labels": spec.labels}


def _add_rights(host: dict[str, Any], spec: ContainerSpec) -> None:
    if spec.privileged:
        host["Privileged"] = True
    if spec.init:
        host["Init"] = True
    if spec.cpus is not None:
        host["NanoCpus"] = int(spec.cpus * 1_000_000_000)
    if spec.memory_bytes is not None:
        host["Memory"] = spec.memory_bytes
        host["MemorySwap"] = spec.memory_bytes  # no swap in addition: the limit is exact


_PAUSE_S = 0.05


def remove_by_force(api: DockerApi, container: str, *, called: str) -> None:
    """Kill and remove a container with its anonymous volumes. Idempotent.

    While another client removes the container, the request is repeated: a wait for the other
    removal could begin too late to be notified.

    Args:
        api: the engine.
        container: id or name.
        called: what a message calls it.

    Raises:
        EngineError: the container can't be removed, or another removal takes longer than an engine
            may be silent.
    """
    give_up_at = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            if api.capabilities().removes_joined:
                with api.client() as client:
                    client.remove_container(container, v=True, force=True)
            else:
                query = {"force": 1, "v": 1, "depend": 1}
                api.send("DELETE", f"/libpod/containers/{quote(container)}", params=query)
        except Refusal as refusal:
            if refusal.status == 404:
                return
            if refusal.status != 409 or time.monotonic() > give_up_at:
                raise refusal.as_error(f"{called} can't be removed") from refusal
            time.sleep(_PAUSE_S)
        else:
            return


_OF_ENDED_ENGINE: Final = (
    "it was started again after the end of the container, and may have killed it when it stopped"
)
_BRIDGE: Final = "bridge"
"""The network that Docker makes anew whenever it starts."""


def check_goes_on(api: DockerApi, container_id: str) -> None:
    """Check that the engine has not killed a container because it shuts down.

    Such an engine takes no new connections, then kills its containers, and ends later. If another
    process listens in its place, the next engine has started after the container's end. An engine
    without the network by which this is known, or another process, does not know the end.

    A busy engine answers late, so it gets as much time as for any other answer.

    Args:
        api: the engine.
        container_id: a container that has ended.

    Raises:
        EngineUnavailable: the engine shuts down, so the exit code says nothing about the program.
    """
    is_ended = _is_of_ended_engine(api, container_id)
    if is_ended:
        raise broken(_OF_ENDED_ENGINE)
    if is_ended is not None:
        return
    try:
        answer = _events(api, container_id, "die")
    except Refusal as refusal:
        raise broken(refusal.message) from refusal
    with contextlib.closing(answer):
        if next(answer.lines(_LINE_LIMIT), None) is None:
            raise broken("it does not know the end of the container any more")


def _is_of_ended_engine(api: DockerApi, container_id: str) -> bool | None:
    """Return whether the engine has started after a container's end; None if that is unknown.

    Both times are of the engine's machine. An engine that keeps its containers while it restarts
    (``live-restore``) keeps the network, too, if a container runs.

    Raises:
        EngineUnavailable: the engine takes no new connection.
    """
    if not api.capabilities().death_events:  # Podman has no process that could restart
        return None
    try:
        with contextlib.closing(api.stream("GET", f"/networks/{_BRIDGE}")) as answer:
            network = b"".join(answer.lines(_LINE_LIMIT))
        with api.client() as client:
            ended_at = client.inspect_container(container_id)["State"]["FinishedAt"]
            started_at = json.loads(network)["Created"]
            return datetime.fromisoformat(ended_at) < datetime.fromisoformat(started_at)
    except (Refusal, KeyError, ValueError, RecursionError):  # not Docker, but with its API
        return None


def _events(api: DockerApi, container_id: str, *kinds: str) -> Stream:
    """Follow the engine's events of a container, over a new connection."""
    # since=0 includes events from before the engine handled this request
    query = {"since": 0, "filters": filters(container=[container_id], event=kinds)}
    return api.stream("GET", "/events", params=query)


_LATE_NEWS_S = 0.25  # after the end of a container; mostly the event comes earlier
_LOOK_S = 0.025


def was_oom_killed(api: DockerApi, container_id: str, torn_down: Callable[[], object]) -> bool:
    """Return whether the kernel killed the container for lack of memory.

    The kernel's log, if this process may read it, reports the kill at once. The engine is notified
    of the kill and of the end separately, and may record the kill some ms later, only in its
    events. So a container with a memory limit is checked for that time, and one without a limit
    once.

    Args:
        api: the engine.
        container_id: a container that has ended with 137.
        torn_down: waits until the engine has finished the container's teardown.

    Raises:
        EngineUnavailable: the engine has stopped.
    """
    if has_oom_kill(container_id, kernel_records()):
        return True
    with contextlib.suppress(EngineError, Refusal):  # another client has removed the container
        torn_down()
    began = time.monotonic()
    while True:
        try:
            with api.client() as client:
                found = client.inspect_container(container_id)
                actions = _noted_actions(api, container_id)
        except Refusal:
            return False
        if found["State"].get("OOMKilled") or "oom" in actions:
            return True
        wait_limit_s = _LATE_NEWS_S if found.get("HostConfig", {}).get("Memory") else 0.0
        if time.monotonic() - began >= wait_limit_s:
            return False
        time.sleep(_LOOK_S)


def _noted_actions(api: DockerApi, container_id: str) -> frozenset[str]:
    """Return the kinds of the engine's events of a container: ``kill``, ``oom``."""
    query = {
        "since": 0,
        "until": f"{time.time():.3f}",
        "filters": filters(container=[container_id], event=["kill", "oom"]),
    }
    lines = api.send("GET", "/events", params=query).splitlines()
    return frozenset(json.loads(line).get("Action", "") for line in lines if line.strip())


KERNEL_LOG: Final = "/dev/kmsg"
_MOST_BYTES: Final = 8192  # of one record; a read that is shorter than the record fails


def has_oom_kill(container_id: str, records: Iterable[bytes]) -> bool:
    """Return whether one of the records reports an OOM kill in this container.

    Nested containers don't count: only the last part of the control group's path does, which
    is ``ID`` or, with systemd, ``docker-ID.scope``.
    """
    wanted = container_id.encode()
    for record in records:
        if b"oom-kill:" not in record:
            continue
        _, found, rest = record.partition(b",task_memcg=")
        group = rest.partition(b",")[0]
        if found and wanted in group.rpartition(b"/")[2]:
            return True
    return False


def kernel_records(path: str = KERNEL_LOG) -> Iterator[bytes]:
    """Yield the present records of the kernel's log; none without the right to read it."""
    try:
        log = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        while record := _next(log):
            yield record
    finally:
        os.close(log)


def _next(log: int) -> bytes:
    while True:
        try:
            return os.read(log, _MOST_BYTES)
        # overwritten before it was read: the next read continues with a later record
        except BrokenPipeError:
            continue
        except OSError:
            return b""
