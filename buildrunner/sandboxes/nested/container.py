"""Requests of the Engine API for the containers of nested engines and of the image cache.

This module alone decides a sandbox's rights on its machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from buildrunner.addresses import Egress
from buildrunner.sandboxes.nested.image_catalog import CACHE, DRIVER, ORIGINS

DATA = "/var/lib/docker"
FOLDER = "/run/buildrunner"
WORKSPACE = "/workspace"
SOCKET_NAME = "docker.sock"
IMAGES_NAME = "images.tar"
CERTIFICATES_NAME = "certs.d"
ORIGINS_NAME = ORIGINS.removeprefix(f"{FOLDER}/")

MODES = ("user-namespace", "capabilities", "privileged")
"""How an engine can run in a container, the strongest isolation first.

* ``user-namespace``: root of the sandbox is a user without rights on the machine. Steps may be
  privileged nevertheless: they get all rights inside the namespace.
* ``capabilities``: root of the sandbox is root of the machine, with few capabilities and no disk.
  This prevents accidents, but stops no determined attacker (CAP_SYS_ADMIN can change kernel
  settings).
* ``privileged``: a user who controls a step is root of the machine.
"""

PRIVILEGED_STEPS = frozenset({"user-namespace", "privileged"})
"""The modes in which steps can run privileged, as they do on the hosted service."""

OWN_DISK_MODE = "user-namespace"
"""The mode in which steps can't leave the sandbox's own file systems."""

LABEL_MODE = "buildrunner.sandbox"

LABEL_OWN_DISK = "buildrunner.own-disk"
"""Label of containers whose volumes are file systems of their own."""

LABEL_READS = "buildrunner.reads-images-since"
"""Label of containers that read the image cache: start of the reading, in seconds since boot."""

LABEL_CACHE = "buildrunner.image-cache"
"""Label of an image cache's volume: the folder with its catalog."""

LABEL_CACHE_ID = "buildrunner.image-cache-id"
"""Label of an image cache's volume: a random text that no later volume of that name has."""

# Capabilities of a nested engine besides Docker's default ones; Podman's default is smaller. No
# device is included: disks stay out of reach.
_CAPABILITIES = ("AUDIT_WRITE", "MKNOD", "NET_ADMIN", "NET_RAW", "SYS_ADMIN")

# The start script enters a user namespace that belongs to another user.
_NAMESPACE_CAPABILITIES = ("SYS_PTRACE",)

# System calls that no build needs and that affect the machine itself: its files by handle, modules,
# clocks, swap, tracing of the kernel.
_DENIED_CALLS = (
    "acct",
    "adjtimex",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "finit_module",
    "get_kernel_syms",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "lookup_dcookie",
    "nfsservctl",
    "open_by_handle_at",
    "perf_event_open",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "settimeofday",
    "swapoff",
    "swapon",
    "uselib",
    "userfaultfd",
    "vhangup",
)
SECCOMP = msgspec.json.encode(
    {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": _DENIED_CALLS, "action": "SCMP_ACT_ERRNO"}],
    }
).decode()
"""The seccomp profile of all these containers."""

# A nested engine mounts file systems, which the default profiles of AppArmor and SELinux forbid.
_SECURITY = ("apparmor=unconfined", "label=disable")
# The only log driver that all engines have.
_LOG = {"Type": "json-file", "Config": {"max-size": "1m"}}

# Folders with the run-time state of engines.
_IN_MEMORY = {
    "/run": "rw,exec,nosuid,nodev,mode=755,size=256m",
    "/etc/docker": "rw,noexec,nosuid,nodev,mode=755,size=1m",
}

_CACHE_LIFETIME_S = 3600


def container_name(place: str) -> str:
    """Return the name of an engine's container."""
    return f"buildrunner-sandbox-{place}"


def data_volume_name(place: str) -> str:
    """Return the name of the volume with an engine's data."""
    return f"buildrunner-{place}-engine"


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of the host engine that a nested engine needs.

    Attributes:
        identity: identifies the engine and its version.
        arguments: its settings for registries, as arguments of `dockerd`.
        proxies: its proxy variables.
    """

    identity: str
    arguments: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()


class DaemonSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A nested engine to make.

    Attributes:
        place: its name: the id of its build, or of a spare sandbox.
        image: its image.
        mode: one of `MODES`.
        labels: labels of the container.
        folder: folder of this machine for socket and state; it holds ``certs.d`` already, and
            ``images.tar`` unless the engine shares nothing with other builds.
        data_volume: volume for its data.
        workspace_volume: volume that is its ``/workspace``.
        image_volume: volume of the image cache; empty if the engine begins without images.
        facts: facts about the host engine.
        group: group that may use the socket besides root.
        cpus, cpu_shares, memory_bytes, pids: limits of the engine with all its containers; None
            for none.
        egress: the networks that it may reach. It always reaches the DNS servers of the machine.
        own_disk: its two volumes are file systems of their own, and steps write nowhere else.
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
    cpus: float | None = None
    cpu_shares: int | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    egress: Egress = Egress()
    own_disk: bool = False


def create_request(spec: DaemonSpec, seccomp: str) -> dict[str, Any]:
    """Return the body of the request that creates the container.

    Args:
        spec: the nested engine.
        seccomp: the profile `SECCOMP` for the host engine: its text, or a path.
    """
    host: dict[str, Any] = {
        "CgroupnsMode": "private",
        "LogConfig": _LOG,
        "Mounts": _mounts(spec),
        **_limits(spec),
        **_rights(spec.mode, seccomp),
    }
    labels = {**spec.labels, LABEL_MODE: spec.mode}
    if spec.own_disk:
        labels[LABEL_OWN_DISK] = "1"
        host["Tmpfs"] = dict(_IN_MEMORY)
    return {
        "Image": spec.image,
        "Hostname": "buildrunner",
        "Labels": labels,
        "Env": [*spec.facts.proxies, *_isolation(spec)],
        "Cmd": [
            "--host=unix:///var/run/docker.sock",
            *_arguments(spec.mode, spec.group),
            *spec.facts.arguments,
        ],
        "HostConfig": host,
    }


def _rights(mode: str, seccomp: str) -> dict[str, Any]:
    """Return the rights of the container on its machine."""
    if mode == "privileged":
        return {"Privileged": True}
    return {
        "CapAdd": _capabilities(mode),
        "MaskedPaths": [],  # otherwise no separate `proc` can be mounted inside
        "ReadonlyPaths": [],
        "SecurityOpt": [f"seccomp={seccomp}", *_SECURITY],
    }


def _capabilities(mode: str) -> list[str]:
    return [*_CAPABILITIES, *(_NAMESPACE_CAPABILITIES if mode == "user-namespace" else ())]


def _isolation(spec: DaemonSpec) -> list[str]:
    """Return the variables by which the image's start script isolates the engine."""
    return [
        f"ISOLATION={spec.mode}",
        f"OWN_DISK={1 if spec.own_disk else ''}",
        f"EGRESS_DENY={' '.join(spec.egress.deny)}",
        f"EGRESS_ALLOW={' '.join(spec.egress.allow)}",
    ]


class CacheSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A cache engine to make (see image_cache.py).

    Attributes:
        name: name of its container.
        image: its image.
        folder: folder of this machine for its socket.
        volume: volume for its data: the image cache.
        labels: labels of the volume, if the engine creates it.
        group: group that may use the socket besides root.
        mode: the mode of the engines that read the cache, which decides the format of layers.
    """

    name: str
    image: str
    folder: str
    volume: str
    labels: dict[str, str]
    group: int
    mode: str


def create_cache_request(spec: CacheSpec, seccomp: str) -> dict[str, Any]:
    """Return the body of the request that creates the container of a cache engine.

    The cache engine has no network, runs no container, and ends by itself after an hour.

    Args:
        spec: the cache engine.
        seccomp: see `create_request`.
    """
    return {
        "Image": spec.image,
        "Hostname": "buildrunner",
        "Labels": {LABEL_CACHE: spec.folder},
        "Env": [f"LIFETIME={_CACHE_LIFETIME_S}", f"ISOLATION={spec.mode}"],
        "Cmd": [
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            *_arguments(spec.mode, spec.group),
        ],
        "HostConfig": {
            "AutoRemove": True,
            "CapAdd": _capabilities(spec.mode),
            "LogConfig": _LOG,
            "Mounts": [
                _volume(DATA, spec.volume, spec.labels),
                _mount("bind", FOLDER, spec.folder),
            ],
            "MaskedPaths": [],
            "NetworkMode": "none",
            "ReadonlyPaths": [],
            "SecurityOpt": [f"seccomp={seccomp}", *_SECURITY],
        },
    }


def _arguments(mode: str, group: int) -> list[str]:
    # In a user namespace, the engine's root can't write to the shared folder: the socket is there.
    listening = ["--host=fd://", "--group=0"]
    if mode != "user-namespace":
        listening = [f"--host=unix://{FOLDER}/{SOCKET_NAME}", f"--group={group}"]
    return [f"--storage-driver={DRIVER}", *listening, "--log-level=warn"]


def _mounts(spec: DaemonSpec) -> list[dict[str, Any]]:
    mounts = [
        _volume(DATA, spec.data_volume, spec.labels),
        _volume(WORKSPACE, spec.workspace_volume, spec.labels),
        _mount("bind", FOLDER, spec.folder),
        _mount("bind", "/etc/docker/certs.d", f"{spec.folder}/{CERTIFICATES_NAME}", read_only=True),
    ]
    if spec.image_volume:
        mounts.append(_volume(CACHE, spec.image_volume, {}, read_only=True))
    return mounts


def _mount(kind: str, target: str, source: str = "", *, read_only: bool = False) -> dict[str, Any]:
    place = {"Source": source} if source else {}
    return {"Type": kind, "Target": target, "ReadOnly": read_only, **place}


def _volume(
    target: str, name: str, labels: Mapping[str, str], *, read_only: bool = False
) -> dict[str, Any]:
    """Return a mount of a volume; the labels apply if the engine has to create it."""
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
