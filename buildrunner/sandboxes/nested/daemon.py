"""Docker engines in containers of a Docker engine: make, find, watch, remove.

What is on the host engine for one, all with the labels that are given:

* the container ``buildrunner-sandbox-PLACE``, which runs `dockerd`;
* the volume ``buildrunner-PLACE-engine``, its data folder;
* the volume ``buildrunner-PLACE-workspace``, which is its ``/workspace``.

The place is the id of the build that it was started for, or a name of its own if it was started
ahead of need.

A folder of this machine is mounted in it: there its socket is, and there it finds the images that
it begins with (image_catalog.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable
from typing import Any

import msgspec

from buildrunner.containers.docker import errors as docker_errors
from buildrunner.containers.docker.api import DockerApi, json_body
from buildrunner.containers.docker.containers import remove_by_force
from buildrunner.containers.docker.endpoint import Endpoint, open_socket
from buildrunner.containers.docker.http import HttpClient, PendingResponse, quoted
from buildrunner.containers.docker.output import FrameDemultiplexer
from buildrunner.containers.image_name import ImageName
from buildrunner.errors import EngineError
from buildrunner.sandboxes.nested.container import (
    LABEL_MODE,
    LABEL_READS,
    SECCOMP,
    CacheSpec,
    DaemonSpec,
    HostFacts,
    container_name,
    create_cache_request,
    create_request,
)
from buildrunner.sandboxes.nested.image_catalog import DRIVER, IMAGES
from buildrunner.sandboxes.nested.layer_origins import NOTES


class DaemonState(msgspec.Struct, frozen=True, kw_only=True):
    """A nested engine as the host engine sees it.

    Attributes:
        id: of its container.
        status: ``created``, ``running``, ``exited``, ...
        process: id of its first process on the machine; 0 when it does not run.
        exit_code: how it ended.
        oom_killed: for lack of memory.
        memory_bytes: its limit; 0 for none.
        mode: one of `MODES`.
    """

    id: str
    status: str
    process: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    memory_bytes: int = 0
    mode: str = ""


class HostImage(msgspec.Struct, frozen=True):
    """An image of the host engine.

    Attributes:
        id: ``sha256:...``; what of, depends on how the engine keeps images.
        names: all its names as Docker shows them, with a tag or a digest, sorted.
    """

    id: str
    names: tuple[str, ...]


class _Index(msgspec.Struct):
    secure: bool = msgspec.field(name="Secure", default=True)


class _Registries(msgspec.Struct):
    ranges: list[str] | None = msgspec.field(name="InsecureRegistryCIDRs", default=None)
    indexes: dict[str, _Index] | None = msgspec.field(name="IndexConfigs", default=None)
    mirrors: list[str] | None = msgspec.field(name="Mirrors", default=None)


class _Info(msgspec.Struct):
    id: str = msgspec.field(name="ID", default="")
    name: str = msgspec.field(name="Name", default="")
    version: str = msgspec.field(name="ServerVersion", default="")
    registries: _Registries | None = msgspec.field(name="RegistryConfig", default=None)
    http_proxy: str = msgspec.field(name="HttpProxy", default="")
    https_proxy: str = msgspec.field(name="HttpsProxy", default="")
    no_proxy: str = msgspec.field(name="NoProxy", default="")


class _State(msgspec.Struct):
    status: str = msgspec.field(name="Status", default="")
    process: int = msgspec.field(name="Pid", default=0)
    exit_code: int = msgspec.field(name="ExitCode", default=0)
    oom_killed: bool = msgspec.field(name="OOMKilled", default=False)


class _Config(msgspec.Struct):
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _HostConfig(msgspec.Struct):
    memory: int = msgspec.field(name="Memory", default=0)


class _Inspected(msgspec.Struct):
    id: str = msgspec.field(name="Id")
    state: _State = msgspec.field(name="State", default_factory=_State)
    config: _Config = msgspec.field(name="Config", default_factory=_Config)
    host: _HostConfig = msgspec.field(name="HostConfig", default_factory=_HostConfig)


class _Made(msgspec.Struct):
    id: str = msgspec.field(name="Id")


class _Listed(msgspec.Struct):
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)


class _ListedImage(msgspec.Struct):
    id: str = msgspec.field(name="Id")
    tags: list[str] | None = msgspec.field(name="RepoTags", default=None)
    digests: list[str] | None = msgspec.field(name="RepoDigests", default=None)


class _Volume(msgspec.Struct):
    made_at: str = msgspec.field(name="CreatedAt", default="")


class _Exit(msgspec.Struct):
    code: int | None = msgspec.field(name="ExitCode", default=None)


class NestedDaemons:
    """Nested engines on one host engine. Thread-safe.

    Args:
        endpoint: where the host engine is.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._api = DockerApi(HttpClient(lambda: open_socket(endpoint)))

    def facts(self) -> HostFacts:
        """What there is to know of the host engine: some 6 ms."""
        info = json_body(self._call("GET", "/info", 200, "the engine can't be described"), _Info)
        engine = info.id if self._api.capabilities().stable_id else info.name
        return HostFacts(
            identity=f"{engine} {info.version}",
            arguments=tuple(_registry_arguments(info.registries or _Registries())),
            proxies=tuple(_proxies(info)),
        )

    def host_images(self) -> list[HostImage]:
        """The images of the host engine that have names, sorted by id."""
        listed = json_body(
            self._call("GET", "/images/json", 200, "images can't be listed"), list[_ListedImage]
        )
        prefix = self._api.capabilities().local_prefix
        taken = {_docker_name(name) for image in listed for name in image.tags or ()}
        found = []
        for image in listed:
            names = {_docker_name(one) for one in (*(image.tags or ()), *(image.digests or ()))}
            # The engine finds local images without the prefix, too, if nothing else has the name.
            names |= {one.removeprefix(prefix) for one in names} - taken
            names = {one for one in names if "<none>" not in one}
            if names:
                identity = f"sha256:{image.id.removeprefix('sha256:')}"
                found.append(HostImage(identity, tuple(sorted(names))))
        return sorted(found, key=lambda one: one.id)

    def find(self, place: str) -> DaemonState | None:
        """The engine of that place, running or not; None when there is none."""
        status, body = self._api.call("GET", f"/containers/{container_name(place)}/json")
        if status == 404:
            return None
        if status != 200:
            raise docker_errors.engine_error("the sandbox can't be looked up", status, body)
        found = json_body(body, _Inspected)
        return DaemonState(
            id=found.id,
            status=found.state.status,
            process=found.state.process,
            exit_code=found.state.exit_code,
            oom_killed=found.state.oom_killed or _was_oom_killed(found),
            memory_bytes=found.host.memory,
            mode=(found.config.labels or {}).get(LABEL_MODE, ""),
        )

    def create(self, spec: DaemonSpec) -> str:
        """Create the container, don't start it; its id."""
        request = create_request(spec, self._seccomp(spec.folder))
        return self._create(container_name(spec.place), request, "the sandbox")

    def create_cache_engine(self, spec: CacheSpec) -> str:
        """Create the container of a cache engine, don't start it; its id."""
        request = create_cache_request(spec, self._seccomp(spec.folder))
        return self._create(spec.name, request, "the image cache's engine")

    def _seccomp(self, folder: str) -> str:
        """The seccomp profile as the engine takes it; a file in ``folder`` if it wants one."""
        if self._api.capabilities().inline_seccomp:
            return SECCOMP
        path = os.path.join(folder, "seccomp.json")
        with open(path, "w", encoding="utf-8") as file:
            file.write(SECCOMP)
        return path

    def _create(self, name: str, request: dict[str, Any], what: str) -> str:
        path = f"/containers/create?name={name}"
        return json_body(
            self._call("POST", path, 201, f"{what} can't be made", json=request), _Made
        ).id

    def is_running(self, container: str) -> bool:
        """Whether a container, by name or id, runs."""
        status, body = self._api.call("GET", f"/containers/{container}/json")
        return status == 200 and json_body(body, _Inspected).state.status == "running"

    def volume_made_at(self, name: str) -> str:
        """When the engine made a volume, in its own words; empty when there is none."""
        status, body = self._api.call("GET", f"/volumes/{name}")
        if status not in (200, 404):
            raise docker_errors.engine_error("a volume can't be looked up", status, body)
        return json_body(body, _Volume).made_at if status == 200 else ""

    def remove_volume(self, name: str) -> None:
        """Remove a volume; one that is in use stays."""
        self._api.call("DELETE", f"/volumes/{name}")

    def start(self, container: str) -> None:
        """Start it. EngineError when this machine does not let it run."""
        status, body = self._api.call("POST", f"/containers/{container}/start")
        if status not in (204, 304):
            raise docker_errors.start_error(body)

    def ask_for_end(self, container: str) -> PendingResponse:
        """A request that is answered when the container does not run (any more)."""
        return self._api.send(
            "POST", f"/containers/{container}/wait?condition=not-running", timeout_s=None
        )

    def remove(self, container: str) -> None:
        """Kill and remove it. Idempotent."""
        remove_by_force(self._api, container, called="the sandbox")

    def last_error(self, container: str) -> str:
        """The last line of its log that tells of an error, for a message; empty without any."""
        path = f"/containers/{container}/logs?stdout=1&stderr=1&tail=50"
        with contextlib.suppress(EngineError):
            status, body = self._api.call("GET", path)
            if status == 200:
                frames = FrameDemultiplexer().feed(body)
                return _last_error(b"".join(bytes(frame) for frame in frames))
        return ""

    def execute(self, container: str, argv: tuple[str, ...]) -> bytes:
        """Run a program in the container to its end; its output. EngineError when it fails."""
        what = f"{argv[0]} can't be run in the sandbox"
        path = f"/containers/{container}/exec"
        request = {"Cmd": argv, "AttachStdout": True, "AttachStderr": True}
        made = json_body(self._call("POST", path, 201, what, json=request), _Made)
        said = self._call("POST", f"/exec/{made.id}/start", 200, what, json={"Detach": False})
        ended = json_body(self._call("GET", f"/exec/{made.id}/json", 200, what), _Exit)
        if ended.code:
            raise EngineError(f"{what}: exit code {ended.code}")
        return b"".join(FrameDemultiplexer().feed(said))

    def layer_origins(self, container: str) -> bytes:
        """What the engine knows of registries that have its layers, for `decode_listing`.

        It is what steps may have made of it, and comes when they let it come.

        Raises:
            EngineError: it knows of none, or does not tell.
        """
        return self.execute(container, ("grep", "-r", "", f"{IMAGES}/{DRIVER}/{NOTES}"))

    def readers_since(self, volume: str) -> list[float]:
        """Since when each nested engine reads the image cache in ``volume`` (see `LABEL_READS`)."""
        wanted = {"label": [LABEL_READS], "volume": [volume]}
        chosen = quoted(msgspec.json.encode(wanted).decode())
        path = f"/containers/json?all=1&filters={chosen}"
        listed = json_body(
            self._call("GET", path, 200, "containers can't be listed"), list[_Listed]
        )
        return [float((one.labels or {}).get(LABEL_READS, "0")) for one in listed]

    def close(self) -> None:
        """Drop connections."""
        self._api.close()

    def _call(self, method: str, path: str, wanted: int, what: str, *, json: Any = None) -> bytes:
        status, body = self._api.call(method, path, json=json)
        if status != wanted:
            raise docker_errors.engine_error(what, status, body)
        return body


def _was_oom_killed(found: _Inspected) -> bool:
    """What the kernel says of it: the engine at hand may hear of that later, or not at all."""
    if found.state.process or found.state.exit_code != 128 + signal.SIGKILL:
        return False
    from buildrunner.containers.docker.oom import has_oom_kill, kernel_records

    return has_oom_kill(found.id, kernel_records())


def _docker_name(name: str) -> str:
    """A name as Docker shows it; Podman spells ``docker.io`` out."""
    parsed = ImageName.parse(name)
    return str(msgspec.structs.replace(parsed, repository=parsed.familiar))


def _last_error(log: bytes) -> str:
    """Lines without a level are the start script's, or `dockerd`'s last ones: errors."""
    for line in reversed(log.decode("utf-8", "replace").splitlines()):
        quiet = " level=" in line and not re.search(r" level=(error|fatal|panic) ", line)
        if line.strip() and not quiet:
            message = re.search(r' msg="((?:[^"\\]|\\.)*)"', line)
            return message[1].replace('\\"', '"') if message else line.strip()
    return ""


def _registry_arguments(registries: _Registries) -> Iterable[str]:
    for place in registries.ranges or ():
        yield f"--insecure-registry={place}"
    for name, index in (registries.indexes or {}).items():
        if not index.secure:
            yield f"--insecure-registry={name}"
    for mirror in registries.mirrors or ():
        yield f"--registry-mirror={mirror}"


def _proxies(info: _Info) -> Iterable[str]:
    for name, value in (
        ("HTTP_PROXY", info.http_proxy),
        ("HTTPS_PROXY", info.https_proxy),
        ("NO_PROXY", info.no_proxy),
    ):
        if value:
            yield f"{name}={value}"
            yield f"{name.lower()}={value}"
