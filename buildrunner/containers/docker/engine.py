"""A container engine through the Docker Engine API.

`DockerEngine` implements `ContainerEngine` (protocol.py), in the same three parts: images
(images.py), networks and volumes (resources.py), and one container's life
(containers.py). ``/info`` is requested once and lazily, and the API version comes from the
header of one ``_ping``.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from buildrunner.containers.docker.api import DockerApi
from buildrunner.containers.docker.containers import DockerContainers
from buildrunner.containers.docker.endpoint import Endpoint, find_endpoint
from buildrunner.containers.docker.errors import Refusal
from buildrunner.containers.docker.images import DockerImages
from buildrunner.containers.docker.resources import DockerResources
from buildrunner.containers.protocol import EngineInfo
from buildrunner.errors import EngineError

_DEFAULT_SOCKET = "/var/run/docker.sock"
_SNAPSHOTTER = ["driver-type", "io.containerd.snapshotter.v1"]


class DockerEngine(DockerImages, DockerResources, DockerContainers):
    """A Docker engine, or one with its API. Thread-safe. Opens no connection before the first call.

    Args:
        endpoint: its address; None: the engine of the ``docker`` command.
        environ: environment for finding the engine and the Docker config (None: the process's).
        use_logins: pull and push with the registry logins of that Docker config.
        network_lock: returns a lock for an engine's address, as a context manager. It is held while
            a network is created, since engines before Docker 25 create two networks of one name on
            concurrent requests.
    """

    def __init__(
        self,
        endpoint: Endpoint | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        use_logins: bool = True,
        network_lock: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        variables = os.environ if environ is None else environ
        self.endpoint = endpoint or find_endpoint(variables)
        api = DockerApi(self.endpoint)
        DockerImages.__init__(self, api, variables if use_logins else None)
        address = self.endpoint.address
        DockerResources.__init__(self, api, lambda: network_lock(address))
        DockerContainers.__init__(self, api, self.restore_network)
        self._info: EngineInfo | None = None
        self._info_lock = threading.Lock()

    def ping(self, *, anew: bool = False) -> None:
        """See `ContainerEngine.ping`."""
        self._api.ping(anew=anew)

    def info(self) -> EngineInfo:
        """See `ContainerEngine.info`: one request of some 6 ms, then from memory."""
        with self._info_lock:
            if self._info is None:
                with self._api.client():  # turns errors of a malformed answer into EngineError
                    self._info = self._described(_ask_info(self._api))
            return self._info

    def _described(self, info: Mapping[str, Any]) -> EngineInfo:
        capabilities = self._api.capabilities()
        root = str(info.get("DockerRootDir", ""))
        # The same socket is no proof of the same files: it may be mounted in a container or lead
        # to a virtual machine. Kernel, host name and the engine's folder tell these apart.
        local = bool(
            self.endpoint.socket_path and _is_of_this_machine(info) and os.path.isdir(root)
        )
        rootless = "name=rootless" in (info.get("SecurityOptions") or ())
        socket_path = self._own_socket(info, local=local, rootless=rootless)
        no_socket = "" if socket_path else self._no_socket()
        has_memory_limit = bool(info.get("MemoryLimit", True))
        return EngineInfo(
            name=capabilities.product,
            version=str(info.get("ServerVersion", "")),
            id=str(info["ID"] if capabilities.stable_id else f"{info['Name']}:{root}"),
            api_version=self._api.version(),
            local=local,
            data_root=root,
            storage_driver=str(info.get("Driver", "")),
            containerd_images=_SNAPSHOTTER in (info.get("DriverStatus") or ()),
            cpus=int(info.get("NCPU", 0)),
            memory_bytes=int(info.get("MemTotal", 0)),
            socket_path=socket_path,
            no_socket=no_socket,
            architecture=str(info.get("Architecture", "")),
            rootless=rootless,
            has_buildkit=capabilities.has_buildkit,
            # Podman without root ignores limits on version 1, and reports that it has them.
            limits_resources=has_memory_limit
            and not (rootless and info.get("CgroupVersion") == "1"),
            layered_volumes=capabilities.mounts_unstarted,
            needs_start_gate=capabilities.attach_is_passive,
        )

    def _own_socket(self, info: Mapping[str, Any], *, local: bool, rootless: bool) -> str:
        """Return the path of the engine's own socket on its machine; empty if uncertain."""
        if local:
            return os.path.abspath(self.endpoint.socket_path)
        if self._api.capabilities().names_its_socket:
            return self._named_socket()
        if rootless:
            return ""
        if _is_of_this_machine(info) and not self.endpoint.socket_path:
            return _DEFAULT_SOCKET if _default_engine() == info.get("ID") else ""
        return _DEFAULT_SOCKET

    def _named_socket(self) -> str:
        try:
            with self._api.client():
                said = json.loads(self._api.send("GET", "/libpod/info"))
                path = str(said["host"]["remoteSocket"]["path"]).removeprefix("unix://")
        except (EngineError, Refusal):
            return ""
        return path if path.startswith("/") else ""

    def _no_socket(self) -> str:
        return (
            f"the engine behind {self.endpoint.address} does not report the path of its socket. "
            "Run buildrunner on the engine's machine, or pass --no-docker-socket if no step needs "
            "the engine."
        )

    def close(self) -> None:
        """See `ContainerEngine.close`."""
        self.let_go()
        self._api.close()


def _ask_info(api: DockerApi) -> Mapping[str, Any]:
    try:
        with api.client() as client:
            return client.info()
    except Refusal as refusal:
        raise refusal.as_error("the engine can't be described") from refusal


def _is_of_this_machine(info: Mapping[str, Any]) -> bool:
    return (info.get("Name"), info.get("KernelVersion")) == (
        socket.gethostname(),
        os.uname().release,
    )


def _default_engine() -> str:
    """Return the id of the engine at this machine's default socket; empty if none answers."""
    api = DockerApi(Endpoint())
    try:
        return str(_ask_info(api).get("ID", ""))
    except EngineError:
        return ""
    finally:
        api.close()
