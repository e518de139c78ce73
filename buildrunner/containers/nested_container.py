"""What the containers of nested engines, and of the image cache, get: requests of the Engine API.

All that a sandbox may do on its machine is in this module.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from buildrunner.containers.image_catalog import CACHE, DRIVER, IMAGES, LAYERS, ORIGINS

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

LABEL_READS = "buildrunner.reads-images-since"
"""On containers that read the image cache: since when, in seconds since the machine started."""

LABEL_CACHE = "buildrunner.image-cache"
"""On the volume of an image cache: the folder with its catalog."""

# What a nested engine needs where a container can't be privileged (found by trial). Engines
# differ in which of them containers have anyway.
_CAPABILITIES = (
    "AUDIT_WRITE",
    "DAC_READ_SEARCH",
    "IPC_LOCK",
    "LINUX_IMMUTABLE",
    "MKNOD",
    "NET_ADMIN",
    "NET_RAW",
    "SYS_ADMIN",
    "SYS_NICE",
    "SYS_PTRACE",
    "SYSLOG",
)
_UNCONFINED = ("seccomp=unconfined", "apparmor=unconfined", "label=disable")
# The one log driver that all engines have.
_LOG = {"Type": "json-file", "Config": {"max-size": "1m"}}

# What unpacking layers takes besides what containers have anyway.
_CACHE_CAPABILITIES = ("MKNOD", "SYS_ADMIN")
_CACHE_LIFETIME_S = 3600


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
        arguments: how it reaches registries, as arguments of `dockerd`.
        proxies: the proxy variables it works with.
    """

    identity: str
    arguments: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()


class DaemonSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A nested engine to make.

    Attributes:
        place: what it is called; the id of the build that it is for, or of one started ahead.
        image: what to run.
        mode: one of `MODES`.
        labels: for the container.
        folder: folder of this machine for socket and notes; it holds ``images.tar`` already if the
            engine begins with images.
        data_volume: volume for its data.
        workspace_volume: volume that is its ``/workspace``.
        image_volume: volume of the image cache; empty if the engine begins without images.
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
    facts: HostFacts
    image_volume: str = ""
    group: int = 0
    certificates: str = ""
    cpus: float | None = None
    cpu_shares: int | None = None
    memory_bytes: int | None = None
    pids: int | None = None


def create_request(spec: DaemonSpec) -> dict[str, Any]:
    """The body of the request that creates the container."""
    host: dict[str, Any] = {
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
            "--host=unix:///var/run/docker.sock",
            *_arguments(spec.group),
            *spec.facts.arguments,
        ],
        "HostConfig": host,
    }


class CacheSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A cache engine to make (see image_cache.py).

    Attributes:
        name: of its container.
        image: what to run.
        folder: folder of this machine for its socket.
        volume: volume for its data: the image cache.
        labels: for the volume, if the engine makes it.
        group: who may use the socket besides root.
    """

    name: str
    image: str
    folder: str
    volume: str
    labels: dict[str, str]
    group: int


def create_cache_request(spec: CacheSpec) -> dict[str, Any]:
    """The body of the request that creates the container of a cache engine.

    It has no network, runs no container, and ends by itself if nobody stops it.
    """
    return {
        "Image": spec.image,
        "Hostname": "buildrunner",
        "Labels": {LABEL_CACHE: spec.folder},
        "Env": [f"LIFETIME={_CACHE_LIFETIME_S}"],
        "Cmd": ["--bridge=none", "--iptables=false", "--ip6tables=false", *_arguments(spec.group)],
        "HostConfig": {
            "AutoRemove": True,
            "CapAdd": list(_CACHE_CAPABILITIES),
            "LogConfig": _LOG,
            "Mounts": [
                _volume(DATA, spec.volume, spec.labels),
                _mount("bind", FOLDER, spec.folder),
            ],
            "NetworkMode": "none",
            "SecurityOpt": list(_UNCONFINED),
        },
    }


def _arguments(group: int) -> list[str]:
    return [
        f"--storage-driver={DRIVER}",
        f"--host=unix://{FOLDER}/{SOCKET_NAME}",
        f"--group={group}",
        "--log-level=warn",
    ]


def _mounts(spec: DaemonSpec) -> list[dict[str, Any]]:
    mounts = [
        _volume(DATA, spec.data_volume, spec.labels),
        _volume(WORKSPACE, spec.workspace_volume, spec.labels),
        _mount("bind", FOLDER, spec.folder),
    ]
    if spec.image_volume:
        mounts += [
            _volume(CACHE, spec.image_volume, {}, read_only=True),
            _mount("tmpfs", LAYERS),
            _mount("tmpfs", IMAGES),
        ]
    if spec.certificates:
        mounts.append(_mount("bind", "/etc/docker/certs.d", spec.certificates, read_only=True))
    return mounts


def _mount(kind: str, target: str, source: str = "", *, read_only: bool = False) -> dict[str, Any]:
    place = {"Source": source} if source else {}
    return {"Type": kind, "Target": target, "ReadOnly": read_only, **place}


def _volume(
    target: str, name: str, labels: Mapping[str, str], *, read_only: bool = False
) -> dict[str, Any]:
    """The labels are for when the volume was just removed, and the engine makes it anew."""
    options = {"NoCopy": True, "Labels": dict(labels)}
    return {**_mount("volume", target, name, read_only=read_only), "VolumeOptions": options}


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
