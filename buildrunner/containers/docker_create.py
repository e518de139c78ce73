"""A `ContainerSpec` in the words of the Docker Engine API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buildrunner.containers import docker_logs

if TYPE_CHECKING:
    from buildrunner.containers.engine_types import ContainerSpec, Mount

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
