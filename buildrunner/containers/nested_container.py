"""What a nested engine's container gets: from a `DaemonSpec` to a request of the Engine API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.containers.image_share import IMAGES, LAYERS, ORIGINS, SharedImages, files_of

if TYPE_CHECKING:
    from collections.abc import Mapping

DATA = "/var/lib/docker"
FOLDER = "/run/buildrunner"
WORKSPACE = "/workspace"
SOCKET_NAME = "docker.sock"
IMAGES_NAME = "images.tar"
ORIGINS_NAME = ORIGINS.removeprefix(f"{FOLDER}/")

MODES = ("privileged", "capabilities")
"""Ways to let an engine run in a container, the one that gives steps more first."""

LABEL_MODE = "buildrunner.sandbox"

# What a nested engine needs where a container can't be privileged (found by trial).
_CAPABILITIES = (
    "DAC_READ_SEARCH",
    "IPC_LOCK",
    "LINUX_IMMUTABLE",
    "NET_ADMIN",
    "SYS_ADMIN",
    "SYS_NICE",
    "SYS_PTRACE",
    "SYSLOG",
)
_UNCONFINED = ("seccomp=unconfined", "apparmor=unconfined", "label=disable")
_LOG = {"Type": "local", "Config": {"max-size": "1m", "max-file": "2"}}


def container_name(place: str) -> str:
    """Name of an engine's container."""
    return f"buildrunner-sandbox-{place}"


def data_volume_name(place: str) -> str:
    """Name of the volume with an engine's data."""
    return f"buildrunner-{place}-engine"


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a nested engine has to know of the engine that it runs on.

    Attributes:
        identity: tells engines apart, and their versions.
        shares_layers: it keeps layers as `image_share` knows them.
        arguments: how it reaches registries, as arguments of `dockerd`.
        proxies: the proxy variables it works with.
    """

    identity: str
    shares_layers: bool
    arguments: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()


class DaemonSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A nested engine to make.

    Attributes:
        place: what it is called; the id of the build that it is for, or of one started ahead.
        image: what to run.
        mode: one of `MODES`.
        labels: for the container.
        folder: folder of this machine for socket and notes; it holds ``images.tar`` already.
        data_volume: volume for its data.
        workspace_volume: volume that is its ``/workspace``.
        images: what is shared with it.
        facts: of the host engine.
        group: who may use the socket besides root.
        certificates: folder with the registries' certificates; empty for none.
        cpus, cpu_shares, memory_bytes, pids: limits of it and all it runs; None for none.
    """

    place: str
    image: str
    mode: str
    labels: dict[str, str]
    folder: str
    data_volume: str
    workspace_volume: str
    images: SharedImages
    facts: HostFacts
    group: int = 0
    certificates: str = ""
    cpus: float | None = None
    cpu_shares: int | None = None
    memory_bytes: int | None = None
    pids: int | None = None


def create_request(spec: DaemonSpec) -> dict[str, Any]:
    """The body of the request that creates the container."""
    host: dict[str, Any] = {
        "Init": True,  # reaps what the engine's helpers leave behind
        "CgroupnsMode": "private",
        "SecurityOpt": list(_UNCONFINED),
        "LogConfig": _LOG,
        "Mounts": _mounts(spec),
        **_limits(spec),
    }
    if spec.mode == "privileged":
        host["Privileged"] = True
    else:
        host["CapAdd"] = list(_CAPABILITIES)
        host["DeviceCgroupRules"] = ["a *:* rwm"]
        host["MaskedPaths"] = []
        host["ReadonlyPaths"] = []
    return {
        "Image": spec.image,
        "Hostname": "buildrunner",
        "Labels": {**spec.labels, LABEL_MODE: spec.mode},
        "Env": spec.facts.proxies,
        "Cmd": [
            "--storage-driver=overlay2",
            "--host=unix:///var/run/docker.sock",
            f"--host=unix://{FOLDER}/{SOCKET_NAME}",
            f"--group={spec.group}",
            "--log-level=warn",
            *spec.facts.arguments,
        ],
        "HostConfig": host,
    }


def _mounts(spec: DaemonSpec) -> list[dict[str, Any]]:
    mounts = [
        _volume(DATA, spec.data_volume, spec.labels),
        _volume(WORKSPACE, spec.workspace_volume, spec.labels),
        _mount("bind", FOLDER, spec.folder),
        *(
            _mount("bind", files_of(layer), path, read_only=True)
            for layer, path in spec.images.layers.items()
        ),
    ]
    if spec.images.layers:
        mounts += [_mount("tmpfs", LAYERS), _mount("tmpfs", IMAGES)]
    if spec.certificates:
        mounts.append(_mount("bind", "/etc/docker/certs.d", spec.certificates, read_only=True))
    return mounts


def _mount(kind: str, target: str, source: str = "", *, read_only: bool = False) -> dict[str, Any]:
    place = {"Source": source} if source else {}
    return {"Type": kind, "Target": target, "ReadOnly": read_only, **place}


def _volume(target: str, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """The labels are for when the volume was just removed, and the engine makes it anew."""
    options = {"NoCopy": True, "Labels": dict(labels)}
    return {**_mount("volume", target, name), "VolumeOptions": options}


def _limits(spec: DaemonSpec) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    if spec.cpus is not None:
        limits["NanoCpus"] = int(spec.cpus * 1_000_000_000)
    if spec.cpu_shares is not None:
        limits["CpuShares"] = spec.cpu_shares
    if spec.memory_bytes is not None:
        limits["Memory"] = limits["MemorySwap"] = spec.memory_bytes
    if spec.pids is not None:
        limits["PidsLimit"] = spec.pids
    return limits
