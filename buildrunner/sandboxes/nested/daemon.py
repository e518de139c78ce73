"""Docker engines in containers of a Docker engine: creates, finds, watches and removes them.

For each nested engine, the host engine has, with the given labels:

* the container ``buildrunner-sandbox-PLACE``, which runs `dockerd`;
* the volume ``buildrunner-PLACE-engine``, its data folder;
* the volume ``buildrunner-PLACE-workspace``, which is its ``/workspace``.

PLACE is the id of the build for which the engine was started, or the name of a spare sandbox, which
was started before its build.

A folder of this machine is mounted in the container. It has the engine's socket, and the files of
the images with which the engine starts (image_catalog.py).
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.containers.docker.api import DockerApi
from buildrunner.containers.docker.containers import remove_by_force
from buildrunner.containers.docker.endpoint import Endpoint
from buildrunner.containers.docker.errors import Refusal, start_error
from buildrunner.containers.docker.output import FrameDemultiplexer
from buildrunner.containers.image_name import ImageName
from buildrunner.errors import EngineError
from buildrunner.sandboxes.nested.container import (
    LABEL_CACHE_ID,
    LABEL_MODE,
    LABEL_OWN_DISK,
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

if TYPE_CHECKING:
    from buildrunner.containers.docker.transport import Stream


class DaemonState(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a nested engine on the host engine.

    Attributes:
        id: id of its container.
        status: ``created``, ``running``, ``exited``, ...
        process: id of its first process on the machine; 0 if it does not run.
        exit_code: its exit code.
        oom_killed: whether it was killed for lack of memory.
        memory_bytes: its memory limit; 0 for none.
        mode: one of `MODES`.
        own_disk: see `DaemonSpec`.
    """

    id: str
    status: str
    process: int = 0
    exit_code: int = 0
    oom_killed: bool = False
    memory_bytes: int = 0
    mode: str = ""
    own_disk: bool = False


class HostImage(msgspec.Struct, frozen=True):
    """An image of the host engine.

    Attributes:
        id: ``sha256:...`` of its config or its manifest, depending on the engine's image store.
        names: all its names in Docker's form, with a tag or a digest, sorted.
    """

    id: str
    names: tuple[str, ...]


ImageListing = Callable[[], list[HostImage]]
"""Waits for the list of the host engine's images, and returns it."""


class NestedDaemons:
    """The nested engines on one host engine. Thread-safe.

    Args:
        endpoint: address of the host engine.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._api = DockerApi(endpoint)

    def facts(self) -> HostFacts:
        """Return the facts of the host engine, in some 6 ms."""
        with _asking("the engine can't be described"), self._api.client() as client:
            info = client.info()
            engine = info["ID"] if self._api.capabilities().stable_id else info["Name"]
            return HostFacts(
                identity=f"{engine} {info['ServerVersion']}",
                arguments=tuple(_registry_arguments(info.get("RegistryConfig") or {})),
                proxies=tuple(_proxies(info)),
            )

    def host_images(self) -> list[HostImage]:
        """Return the named images of the host engine, sorted by id."""
        with _asking("images can't be listed"), self._api.client() as client:
            listed = [
                (str(one["Id"]), one["RepoTags"] or (), one["RepoDigests"] or ())
                for one in client.images()
            ]
        prefix = self._api.capabilities().local_prefix
        taken = {_docker_name(name) for _, tags, _ in listed for name in tags}
        found = []
        for image_id, tags, digests in listed:
            names = {_docker_name(one) for one in (*tags, *digests)}
            # The engine also finds local images without the prefix, if no other image has the name.
            names |= {one.removeprefix(prefix) for one in names} - taken
            names = {one for one in names if "<none>" not in one}
            if names:
                identity = f"sha256:{image_id.removeprefix('sha256:')}"
                found.append(HostImage(identity, tuple(sorted(names))))
        return sorted(found, key=lambda one: one.id)

    def begin_host_images(self) -> ImageListing:
        """List the images of the host engine in a thread, since the list may take long.

        The containerd image store takes some 10 ms for each image.
        """
        thread = ThreadPoolExecutor(1, thread_name_prefix="images")
        listed = thread.submit(self.host_images)
        thread.shutdown(wait=False)
        return listed.result

    def find(self, place: str) -> DaemonState | None:
        """Return the engine of that place, running or not; None if there is none."""
        try:
            with self._api.client() as client:
                found = client.inspect_container(container_name(place))
                state = found["State"]
                labels = found["Config"]["Labels"] or {}
                return DaemonState(
                    id=found["Id"],
                    status=state["Status"],
                    process=state["Pid"],
                    exit_code=state["ExitCode"],
                    oom_killed=state["OOMKilled"] or _was_oom_killed(found["Id"], state),
                    memory_bytes=found["HostConfig"]["Memory"],
                    mode=labels.get(LABEL_MODE, ""),
                    own_disk=LABEL_OWN_DISK in labels,
                )
        except Refusal as refusal:
            if refusal.status == 404:
                return None
            raise refusal.as_error("the sandbox can't be looked up") from refusal

    def create(self, spec: DaemonSpec) -> str:
        """Create the container without starting it. Returns its id."""
        request = create_request(spec, self._seccomp(spec.folder))
        return self._create(container_name(spec.place), request, "the sandbox")

    def create_cache_engine(self, spec: CacheSpec) -> str:
        """Create the container of a cache engine without starting it. Returns its id."""
        request = create_cache_request(spec, self._seccomp(spec.folder))
        return self._create(spec.name, request, "the image cache's engine")

    def _seccomp(self, folder: str) -> str:
        """Return the seccomp profile for the engine: its text, or a file's path in ``folder``."""
        if self._api.capabilities().inline_seccomp:
            return SECCOMP
        path = os.path.join(folder, "seccomp.json")
        with open(path, "w", encoding="utf-8") as file:
            file.write(SECCOMP)
        return path

    def _create(self, name: str, request: dict[str, Any], what: str) -> str:
        with _asking(f"{what} can't be made"), self._api.client() as client:
            return str(client.create_container_from_config(request, name)["Id"])

    def is_running(self, container: str) -> bool:
        """Return whether a container, by name or id, runs."""
        with contextlib.suppress(Refusal), self._api.client() as client:
            return bool(client.inspect_container(container)["State"]["Status"] == "running")
        return False

    def cache_identity(self, volume: str) -> str:
        """Return the identity of an image cache, which no later volume of its name has.

        The identity is a label, not the creation time: Docker 20.10 changes a volume's creation
        time with every file created or deleted in the volume.

        Returns:
            The identity; empty if the volume does not exist.
        """
        try:
            with self._api.client() as client:
                labels = client.inspect_volume(volume)["Labels"] or {}
                return str(labels.get(LABEL_CACHE_ID, "of an earlier version"))
        except Refusal as refusal:
            if refusal.status == 404:
                return ""
            raise refusal.as_error("a volume can't be looked up") from refusal

    def remove_volume(self, name: str) -> None:
        """Remove a volume. A volume in use stays."""
        with contextlib.suppress(Refusal), self._api.client() as client:
            client.remove_volume(name)

    def start(self, container: str) -> None:
        """Start a container. Raises EngineError if this machine does not let it run."""
        try:
            with self._api.client() as client:
                client.start(container)
        except Refusal as refusal:
            raise start_error(refusal.message) from refusal

    def ask_for_end(self, container: str) -> Stream:
        """Return an answer of the host engine that ends when the container has stopped."""
        with _asking("the sandbox can't be watched"):
            end = self._api.stream(
                "POST", f"/containers/{container}/wait", params={"condition": "not-running"}
            )
        end.wait_for_ever()
        return end

    def remove(self, container: str) -> None:
        """Kill and remove a container. Idempotent."""
        remove_by_force(self._api, container, called="the sandbox")

    def last_error(self, container: str) -> str:
        """Return the last error in the container's log, for a message; empty without any."""
        path = f"/containers/{container}/logs"
        with contextlib.suppress(EngineError, Refusal):
            log = self._api.send("GET", path, params={"stdout": 1, "stderr": 1, "tail": 50})
            return _last_error(_payload(log))
        return ""

    def execute(self, container: str, argv: tuple[str, ...]) -> bytes:
        """Run a program in the container to its end, and return its output.

        Raises:
            EngineError: the program can't be run, or its exit code is not 0.
        """
        what = f"{argv[0]} can't be run in the sandbox"
        with _asking(what), self._api.client() as client:
            made = client.exec_create(container, list(argv))["Id"]
            # Not by the SDK, which may lose the beginning of the output.
            output = self._api.send("POST", f"/exec/{made}/start", json={"Detach": False})
            code = client.exec_inspect(made)["ExitCode"]
        if code:
            raise EngineError(f"{what}: exit code {code}")
        return _payload(output)

    @contextlib.contextmanager
    def relayed_port(
        self, container: str, socket_path: str, place: tuple[str, int] | None = None
    ) -> Iterator[int]:
        """Forward a port of the nested engine's network to a socket. Yields the port.

        The relay ends soon after the socket is removed.

        Args:
            container: container of the nested engine.
            socket_path: path of the socket in the container.
            place: an address, which is added to the network if necessary, and a port; None for any
                port of the loopback address.

        Raises:
            EngineError: the relay does not start.
        """
        what = "no port can be opened in the sandbox"
        argv = ["relay-port", socket_path, *map(str, place or ())]
        said = b""
        with _asking(what), self._api.client() as client:
            made = client.exec_create(container, argv)["Id"]
            output = self._api.stream("POST", f"/exec/{made}/start", json={"Detach": False})
        with contextlib.closing(output):  # some engines kill the program when the connection ends
            pieces, frames = output.pieces(), FrameDemultiplexer()
            while b"\n" not in said and (piece := next(pieces, b"")):
                said += b"".join(frames.feed(piece))
            if not said.strip().isdigit():
                raise EngineError(f"{what}: {said.decode(errors='replace').strip()}")
            yield int(said)

    def layer_origins(self, container: str) -> bytes:
        """Return the engine's records of registries that have its layers, for `decode_listing`.

        Steps may have changed the records, and may delay the answer.

        Raises:
            EngineError: the engine has none, or does not answer.
        """
        return self.execute(container, ("grep", "-r", "", f"{IMAGES}/{DRIVER}/{NOTES}"))

    def readers_since(self, volume: str) -> list[float]:
        """Return the `LABEL_READS` of each engine that reads the image cache in ``volume``."""
        wanted = {"label": [LABEL_READS], "volume": [volume]}
        with _asking("containers can't be listed"), self._api.client() as client:
            listed = client.containers(all=True, filters=wanted)
            return [float((one.get("Labels") or {}).get(LABEL_READS, "0")) for one in listed]

    def close(self) -> None:
        """Close all connections."""
        self._api.close()


@contextlib.contextmanager
def _asking(what: str) -> Iterator[None]:
    """Convert a refusal of the engine to an error that names the failed action."""
    try:
        yield
    except Refusal as refusal:
        raise refusal.as_error(what) from refusal


def _payload(output: bytes) -> bytes:
    return b"".join(bytes(frame) for frame in FrameDemultiplexer().feed(output))


def _was_oom_killed(container: str, state: Mapping[str, Any]) -> bool:
    """Return whether the kernel has killed the container for lack of memory.

    Reads the kernel's own record, since the host engine may be notified later, or not at all.
    """
    if state["Pid"] or state["ExitCode"] != 128 + signal.SIGKILL:
        return False
    from buildrunner.containers.docker.containers import has_oom_kill, kernel_records

    return has_oom_kill(container, kernel_records())


def _docker_name(name: str) -> str:
    """Return a name in Docker's form; Podman writes ``docker.io`` out."""
    parsed = ImageName.parse(name)
    return str(msgspec.structs.replace(parsed, repository=parsed.familiar))


def _last_error(log: bytes) -> str:
    """Return the last error in a log; empty without any.

    A line without a level counts as an error of the start script or of `dockerd`.
    """
    for line in reversed(log.decode("utf-8", "replace").splitlines()):
        quiet = " level=" in line and not re.search(r" level=(error|fatal|panic) ", line)
        if line.strip() and not quiet:
            message = re.search(r' msg="((?:[^"\\]|\\.)*)"', line)
            return message[1].replace('\\"', '"') if message else line.strip()
    return ""


def _registry_arguments(registries: Mapping[str, Any]) -> Iterable[str]:
    for place in registries.get("InsecureRegistryCIDRs") or ():
        yield f"--insecure-registry={place}"
    for name, index in (registries.get("IndexConfigs") or {}).items():
        if not index.get("Secure", True):
            yield f"--insecure-registry={name}"
    for mirror in registries.get("Mirrors") or ():
        yield f"--registry-mirror={mirror}"


def _proxies(info: Mapping[str, Any]) -> Iterable[str]:
    for name, value in (
        ("HTTP_PROXY", info.get("HttpProxy")),
        ("HTTPS_PROXY", info.get("HttpsProxy")),
        ("NO_PROXY", info.get("NoProxy")),
    ):
        if value:
            yield f"{name}={value}"
            yield f"{name.lower()}={value}"
