"""One container's life, through the Docker Engine API.

Four requests on kept-alive connections: create, (attach and wait, sent together and before the
start), start, remove. Nothing is inspected on the way.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import msgspec

from buildrunner.containers.docker import errors as docker_errors
from buildrunner.containers.docker import output as docker_logs
from buildrunner.containers.docker.api import DockerApi, filters, json_body
from buildrunner.containers.docker.http import ANSWER_TIMEOUT_S, Connection, Response, quoted
from buildrunner.containers.docker.output import OutputStream
from buildrunner.containers.types import ContainerExit, ContainerSpec, Mount
from buildrunner.errors import ContainerNameTaken, EngineError, NotFound

_KILLED = 137
_ALIVE = ("running", "paused")
_NEWS_OF_END_S = 1.0  # between the end of a container's output and the news of its own end
_STARTS = 10  # of one container, while others make and remove the network it is on


class _WaitAnswer(msgspec.Struct):
    code: int = msgspec.field(name="StatusCode")


class _Actor(msgspec.Struct):
    attributes: dict[str, str] = msgspec.field(name="Attributes")


class _End(msgspec.Struct):
    """A ``die`` event, or the answer of ``wait``."""

    actor: _Actor | None = msgspec.field(name="Actor", default=None)
    code: int = msgspec.field(name="StatusCode", default=0)


class _State(msgspec.Struct):
    status: str = msgspec.field(name="Status", default="")


class _Inspected(msgspec.Struct):
    state: _State = msgspec.field(name="State", default_factory=_State)


class _Created(msgspec.Struct):
    id: str = msgspec.field(name="Id")


class _AttachRefused(Exception):
    """An engine that sets a container up when it is attached to says why it can't start."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body


class DockerContainers:
    """The `Containers` part of a Docker engine. Thread-safe.

    Args:
        api: the engine.
        restore_network: makes the network again that a refused start missed, if it can; whether
            another try makes sense.
    """

    def __init__(self, api: DockerApi, restore_network: Callable[[str], bool]) -> None:
        self._api = api
        self._restore_network = restore_network
        self._waits: dict[str, Response] = {}
        self._prepared: dict[str, tuple[OutputStream, Response]] = {}
        self._killed: set[str] = set()  # by us, and not removed yet

    def create_container(self, spec: ContainerSpec) -> str:
        """See `Containers.create_container`."""
        query = f"?name={quoted(spec.name)}" if spec.name else ""
        request = create_request(spec, log_driver=self._api.capabilities().log_driver)
        status, body = self._api.call("POST", f"/containers/create{query}", json=request)
        if status == 404 and "no such image" in docker_errors.message_of(body).lower():
            raise EngineError(
                f"the engine has no image {spec.image!r}",
                hint="Pull it first, or build it in an earlier step under exactly this name.",
            )
        if status in (409, 500) and "already in use" in docker_errors.message_of(body):
            raise ContainerNameTaken(f"there is a container {spec.name} already")
        if status != 201:
            raise docker_errors.engine_error("the container can't be created", status, body)
        return json_body(body, _Created).id

    def start_container(self, container_id: str, *, attach: bool) -> Iterator[bytes]:
        """See `Containers.start_container`.

        Also opens the request that `wait_container` will read, so that the news of the end needs
        no further question. With Docker that is the stream of events: it tells of the death at
        once, where ``wait`` answers only after the engine has torn the container's network down
        (20 to 50 ms later, measured; the next step's start overlaps with that now).
        """
        left = _STARTS
        while True:
            # A start that fails ends what was attached: without a new one the output is lost.
            stream, refusal = self._try_start(container_id, attach=attach)
            if refusal is None:
                return stream
            left -= 1
            if not left or not self._restore_network(docker_errors.message_of(refusal)):
                raise docker_errors.start_error(refusal)

    def prepare_start(self, container_id: str) -> None:
        """See `Containers.prepare_start`: attaches, and asks for the end."""
        if self._api.capabilities().attach_is_passive and container_id not in self._prepared:
            self._prepared[container_id] = self._listen(container_id)

    def _listen(self, container_id: str) -> tuple[OutputStream, Response]:
        """Attach and ask for the end, both at once. Before the start, so that nothing is missed."""
        attach = f"/containers/{quoted(container_id)}/attach?stream=1&stdout=1&stderr=1"
        with contextlib.ExitStack() as undo:
            attaching = self._api.send("POST", attach, upgrade=True)
            undo.callback(attaching.close)
            waiting = self._api.send(*self._question_for_end(container_id))
            undo.callback(waiting.close)
            attached = self._upgraded(attaching.head())
            undo.callback(attached.close)
            wait = _accepted(waiting.head())
            undo.pop_all()
        stream = OutputStream(
            attached,
            runs_on=partial(self._runs_on, container_id, wait),
            rest=partial(docker_logs.rest_of_broken, self._api, container_id),
        )
        return stream, wait

    def _runs_on(self, container_id: str, wait: Response) -> bool:
        """Whether a container still runs whose attached connection the engine has ended.

        Docker keeps it until the container ends. Podman ends it when the step closes its output.
        """
        if not self._api.capabilities().death_events or wait.is_readable(_NEWS_OF_END_S):
            return False
        status, body = self._api.call("GET", f"/containers/{quoted(container_id)}/json")
        return status == 200 and json_body(body, _Inspected).state.status in _ALIVE

    def _try_start(
        self, container_id: str, *, attach: bool
    ) -> tuple[Iterator[bytes], bytes | None]:
        """Listen, start. The output, and the engine's refusal if it refused."""
        stream: OutputStream | None = None
        if attach:
            listening = self._prepared.pop(container_id, None)
            try:
                stream, wait = listening or self._listen(container_id)
            except _AttachRefused as refused:
                return iter(()), refused.body
        else:
            wait = _accepted(self._api.send(*self._question_for_end(container_id)).head())
        with contextlib.ExitStack() as undo:
            undo.callback(wait.close)
            if stream:
                undo.callback(stream.close)
            status, body = self._api.call("POST", f"/containers/{quoted(container_id)}/start")
            if status not in (204, 304):
                return iter(()), body
            undo.pop_all()
        self._waits[container_id] = wait
        return stream or iter(()), None

    def _question_for_end(self, container_id: str) -> tuple[str, str]:
        """Method and path of the request whose answer comes when the container ends."""
        if self._api.capabilities().death_events:
            # since=0: an event that came before the engine listened to us counts, too
            chosen = filters(container=[container_id], event=["die"])
            return "GET", f"/events?since=0&{chosen}"
        # next-exit, for a container that is not running yet counts as "not-running" already
        return "POST", f"/containers/{quoted(container_id)}/wait?condition=next-exit"

    def follow_container(self, container_id: str) -> Iterator[bytes]:
        """See `Containers.follow_container`."""
        return docker_logs.follow(self._api, container_id)

    def wait_container(self, container_id: str) -> ContainerExit:
        """See `Containers.wait_container`. Any number of threads may wait."""
        response = self._waits.pop(container_id, None)
        code = None if response is None else _code_in(response)
        if code is None:
            code = self._torn_down(container_id)
        if code != _KILLED or container_id in self._killed:
            return ContainerExit(code)
        from buildrunner.containers.docker.oom import was_oom_killed  # few are killed

        return ContainerExit(
            code,
            was_oom_killed(self._api, container_id, lambda: self._torn_down(container_id)),
        )

    def _torn_down(self, container_id: str) -> int:
        """Wait until the engine is through with the container's end; its exit code."""
        response = self._api.request("POST", f"/containers/{quoted(container_id)}/wait")
        return json_body(_accepted(response).body(), _WaitAnswer).code

    def kill_container(self, container_id: str, signal: str = "SIGKILL") -> None:
        """See `Containers.kill_container`."""
        if signal == "SIGKILL":
            self._killed.add(container_id)
        status, body = self._api.call(
            "POST", f"/containers/{quoted(container_id)}/kill?signal={quoted(signal)}"
        )
        if status not in (204, 404, 409):  # 404: gone, 409: not running
            raise docker_errors.engine_error("the container can't be killed", status, body)

    def remove_container(self, container_id: str) -> None:
        """See `Containers.remove_container`."""
        if wait := self._waits.pop(container_id, None):
            wait.close()
        self._forget_prepared(container_id)
        self._killed.discard(container_id)
        remove_by_force(self._api, container_id, called="the container")

    def remove_unstarted(self, container: str) -> bool:
        """See `Containers.remove_unstarted`.

        Lists tell of a container as it was before a start that is under way. Looking at it alone
        waits until that is through, and so does removing it, which without force the engine
        refuses when it runs then.
        """
        target = f"/containers/{quoted(container)}"
        status, body = self._api.call("GET", f"{target}/json")
        if status == 200 and json_body(body, _Inspected).state.status != "created":
            return False
        self._forget_prepared(container)
        if status == 200:
            status, body = self._api.call("DELETE", f"{target}?v=1")
        if status == 409 or "cannot be removed without force" in docker_errors.message_of(body):
            return False
        if status not in (200, 204, 404):
            raise docker_errors.engine_error("the container can't be removed", status, body)
        return True

    def _forget_prepared(self, container_id: str) -> None:
        if prepared := self._prepared.pop(container_id, None):
            for listening in prepared:
                listening.close()

    def put_archive(self, container_id: str, path: str, tar: Iterable[bytes]) -> None:
        """See `Containers.put_archive`; ``tar`` may be compressed (gzip, bzip2, xz)."""
        self._unpack(container_id, path, f"path={quoted(path)}", tar)

    def fill_mount(self, container_id: str, target: str, tar: Iterable[bytes]) -> None:
        """See `Containers.fill_mount`.

        Docker refuses symbolic links that lead up and out of the folder at which it unpacks, so
        it unpacks at the root. Podman takes them, and at the root it unpacks beside the mount.
        """
        query = "path=%2F"
        if not self._api.capabilities().unpacks_into_mounts:
            names = msgspec.json.encode({target.lstrip("/"): "."}).decode()
            query = f"path={quoted(target)}&rename={quoted(names)}"
        self._unpack(container_id, target, query, tar)

    def _unpack(self, container_id: str, path: str, query: str, tar: Iterable[bytes]) -> None:
        response = self._api.request(
            "PUT",
            f"/containers/{quoted(container_id)}/archive?{query}",
            body=tar,
            headers={"Content-Type": "application/x-tar"},
        )
        body = response.body()
        if response.status == 404:
            raise NotFound(f"the container has no folder {path}: {docker_errors.message_of(body)}")
        if response.status != 200:
            raise docker_errors.engine_error(
                f"files can't be copied to {path}", response.status, body
            )

    def get_archive(self, container_id: str, path: str) -> Iterator[bytes]:
        """See `Containers.get_archive`."""
        if not self._api.capabilities().names_folder_itself:
            path = path.removesuffix("/.")
        response = self._api.request(
            "GET", f"/containers/{quoted(container_id)}/archive?path={quoted(path)}"
        )
        if response.status == 200:
            return response.pieces()
        body = response.body()
        if response.status == 404:
            raise NotFound(f"the container has no {path}: {docker_errors.message_of(body)}")
        raise docker_errors.engine_error(f"{path} can't be read", response.status, body)

    def _upgraded(self, response: Response) -> Connection:
        if response.status in (101, 200):
            return response.upgraded()
        body = response.body()
        if not self._api.capabilities().attach_is_passive and response.status == 500:
            raise _AttachRefused(body)
        raise docker_errors.engine_error(
            "the container's output can't be followed", response.status, body
        )

    def let_go(self) -> None:
        """Drop what is open for starts and ends to come."""
        for container_id in tuple(self._waits):
            if wait := self._waits.pop(container_id, None):
                wait.close()
        for container_id in tuple(self._prepared):
            self._forget_prepared(container_id)


def _accepted(response: Response) -> Response:
    if response.status == 200:
        response.wait_for_ever()
        return response
    raise docker_errors.engine_error(
        "the container can't be waited for", response.status, response.body()
    )


def _code_in(answer: Response) -> int | None:
    """The exit code in the answer about a container's end; None when the engine broke it off."""
    line = b""
    for piece in answer.pieces():
        line += piece
        if b"\n" in line:
            break
    answer.close()
    if not line:
        return None
    end = json_body(line.split(b"\n")[0], _End)
    return end.code if end.actor is None else int(end.actor.attributes["exitCode"])


# No filter of system calls to compile, no memory to share, nothing of /proc to cover up.
_IDLE = {
    "SecurityOpt": ("seccomp=unconfined",),
    "IpcMode": "none",
    "MaskedPaths": (),
    "ReadonlyPaths": (),
    "CapDrop": ("ALL",),
    "ReadonlyRootfs": True,
}


def create_request(spec: ContainerSpec, *, log_driver: str = "local") -> dict[str, Any]:
    """The body of ``POST /containers/create``.

    Args:
        spec: the container.
        log_driver: what keeps its output, if that is wanted.
    """
    host: dict[str, Any] = {"LogConfig": {"Type": "none"}}
    if spec.keep_log:
        options = docker_logs.LOG_OPTIONS if log_driver == "local" else {}
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
        request["Entrypoint"] = spec.entrypoint or ("",)  # [""] is how the API spells "none"
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
    return request


def _volume_options(spec: ContainerSpec, mount: Mount) -> dict[str, Any]:
    """The labels count only for a volume that is gone, and that the engine then makes anew.

    That happens when a build is cleaned up while this request is under way; without its labels
    nobody would find the volume again.
    """
    return {"NoCopy": mount.no_copy, "Labels": spec.labels}


def _add_rights(host: dict[str, Any], spec: ContainerSpec) -> None:
    if spec.idle:
        host.update(_IDLE)
    if spec.privileged:
        host["Privileged"] = True
    if spec.init:
        host["Init"] = True
    if spec.cpus is not None:
        host["NanoCpus"] = int(spec.cpus * 1_000_000_000)
    if spec.memory_bytes is not None:
        host["Memory"] = spec.memory_bytes
        host["MemorySwap"] = spec.memory_bytes  # no swap on top: the limit is the limit


_PAUSE_S = 0.05


def remove_by_force(api: DockerApi, container: str, *, called: str) -> None:
    """Kill and remove a container with its nameless volumes. Idempotent: it is gone afterwards.

    While somebody else removes it, the engine is asked again and again: a wait for the other's
    removal could begin too late to hear of its end.

    Args:
        api: the engine.
        container: id or name.
        called: what a message calls it.

    Raises:
        EngineError: it can't be removed, or somebody is at it for longer than an engine may be
            silent.
    """
    target = f"/containers/{quoted(container)}?force=1&v=1"
    if not api.capabilities().removes_joined:
        target = f"/libpod{target}&depend=1"
    give_up_at = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        status, body = api.call("DELETE", target)
        if status != 409 or time.monotonic() > give_up_at:
            break
        time.sleep(_PAUSE_S)
    if status not in (200, 204, 404):
        raise docker_errors.engine_error(f"{called} can't be removed", status, body)
