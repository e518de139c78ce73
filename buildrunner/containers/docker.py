"""A container engine through the Docker Engine API.

`DockerEngine` implements `ContainerEngine` (engine_protocol.py), in the same three parts: images
(docker_images.py), networks and volumes (docker_resources.py), and one container's life
(docker_containers.py). ``/info`` is asked for once and lazily, and the API version comes from the
header of one ``_ping``.
"""

from __future__ import annotations

import os
import socket
from contextlib import nullcontext
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers import docker_errors
from buildrunner.containers.docker_api import DockerApi, json_body
from buildrunner.containers.docker_containers import DockerContainers
from buildrunner.containers.docker_images import DockerImages
from buildrunner.containers.docker_resources import DockerResources
from buildrunner.containers.endpoint import Endpoint, find_endpoint, open_socket
from buildrunner.containers.engine_types import EngineInfo
from buildrunner.containers.http_client import HttpClient

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

_DEFAULT_SOCKET = "/var/run/docker.sock"
_SNAPSHOTTER = ("driver-type", "io.containerd.snapshotter.v1")


class _Info(msgspec.Struct):
    version: str = msgspec.field(name="ServerVersion", default="")
    name: str = msgspec.field(name="Name", default="")
    kernel: str = msgspec.field(name="KernelVersion", default="")
    root: str = msgspec.field(name="DockerRootDir", default="")
    driver: str = msgspec.field(name="Driver", default="")
    driver_status: list[tuple[str, str]] | None = msgspec.field(name="DriverStatus", default=None)
    cpus: int = msgspec.field(name="NCPU", default=0)
    memory: int = msgspec.field(name="MemTotal", default=0)
    architecture: str = msgspec.field(name="Architecture", default="")
    security: list[str] | None = msgspec.field(name="SecurityOptions", default=None)


class DockerEngine(DockerImages, DockerResources, DockerContainers):
    """A Docker engine (or one that speaks its API). Thread-safe; opens no connection by itself.

    Args:
        endpoint: where it is; None: where the ``docker`` command would find it.
        environ: environment for finding the engine and the Docker config (None: the process's).
        network_turn: given the engine's address, what whoever makes a network there enters; one
            at a time. Engines before Docker 25 make two of one name when they are asked by two.
    """

    def __init__(
        self,
        endpoint: Endpoint | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        network_turn: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
    ) -> None:
        variables = os.environ if environ is None else environ
        self.endpoint = endpoint or find_endpoint(variables)
        api = DockerApi(HttpClient(lambda: open_socket(self.endpoint)))
        DockerImages.__init__(self, api, variables)
        address = self.endpoint.address
        DockerResources.__init__(self, api, lambda: network_turn(address))
        DockerContainers.__init__(self, api, self.restore_network)
        self._info: EngineInfo | None = None

    def ping(self) -> None:
        """See `ContainerEngine.ping`."""
        self._api.ping()

    def info(self) -> EngineInfo:
        """See `ContainerEngine.info`: one request of some 6 ms, then from memory."""
        if self._info is None:
            status, body = self._api.call("GET", "/info")
            if status != 200:
                raise docker_errors.engine_error("the engine can't be described", status, body)
            self._info = self._described(json_body(body, _Info))
        return self._info

    def _described(self, info: _Info) -> EngineInfo:
        path = self.endpoint.socket_path
        # The same socket is no proof of the same files: it may be mounted in a container or lead
        # to a virtual machine. Kernel, host name and the engine's folder tell these apart.
        local = bool(
            path
            and info.name == socket.gethostname()
            and info.kernel == os.uname().release
            and os.path.isdir(info.root)
        )
        return EngineInfo(
            name=self._api.capabilities().product,
            version=info.version,
            api_version=self._api.version(),
            local=local,
            data_root=info.root,
            storage_driver=info.driver,
            containerd_images=_SNAPSHOTTER in (info.driver_status or ()),
            cpus=info.cpus,
            memory_bytes=info.memory,
            socket_path=path if local else _DEFAULT_SOCKET,
            architecture=info.architecture,
            rootless="name=rootless" in (info.security or ()),
        )

    def close(self) -> None:
        """See `ContainerEngine.close`."""
        self.let_go()
        self._api.close()
