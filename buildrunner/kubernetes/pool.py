"""A pool: a place on a Kubernetes cluster where builds run, from ``[pools.NAME]``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import msgspec

ISOLATIONS: Final = ("user-namespace", "capabilities", "privileged")
"""How a build is kept from its node, the strongest isolation first.

See `buildrunner.sandboxes.nested.container.MODES`: the engine in the Pod runs in the same modes.
"""

PULL_POLICIES: Final = ("IfNotPresent", "Always", "Never")
EFFECTS: Final = ("NoSchedule", "PreferNoSchedule", "NoExecute")

NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""Names of pools, as the hosted service has them."""

_QUANTITY = r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]i?)?"
_NO_QUANTITY = "is a quantity, such as 500m or 4Gi"
_NO_IMAGE = "needs the name of an image"
_FORMS: Final = {
    "name": (
        NAME,
        "the name of a pool has small letters, digits and hyphens, begins with a letter and has at "
        "most 63 characters",
    ),
    "server": (re.compile("https?://.+"), "needs the URL of this server as Pods reach it"),
    "worker_image": (re.compile(".+"), _NO_IMAGE),
    "engine_image": (re.compile(".+"), _NO_IMAGE),
    "isolation": (re.compile("|".join(ISOLATIONS)), f"is one of {', '.join(ISOLATIONS)}"),
    "pull_policy": (re.compile("|".join(PULL_POLICIES)), f"is one of {', '.join(PULL_POLICIES)}"),
    "cpu": (re.compile(_QUANTITY), _NO_QUANTITY),
    "memory": (re.compile(_QUANTITY), _NO_QUANTITY),
    "disk": (re.compile(f"({_QUANTITY})?"), _NO_QUANTITY),
}
_RANGES: Final = {"max_builds": (1, 10_000), "spare": (0, 1000), "cpu_request_percent": (1, 100)}
_TOLERATION = re.compile(
    rf"(?P<key>[^=:]+)(?:=(?P<value>[^:]*))?(?::(?P<effect>{'|'.join(EFFECTS)}))?"
)


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one pool.

    Attributes:
        name: as ``options.pool.name`` selects it.
        projects: the projects whose builds may use it; empty for all.
        namespace: where its Jobs are.
        server: URL of this server as Pods reach it.
        worker_image: image of the worker.
        engine_image: image of the build's Docker engine.
        pull_policy: when a node pulls these images: ``IfNotPresent``, ``Always`` or ``Never``.
        pull_secrets: names of Secrets with logins for the registry of these images.
        service_account: the account of the Pods. It needs no rights.
        max_builds: how many of its builds run at the same time.
        spare: how many Pods wait for builds, ready to run one each. They count for `max_builds`.
        cpu, memory: the resources of a build without ``options.machineType``.
        disk: the most that the Pod of a build without ``options.diskSizeGb`` writes to the disk of
            its node; empty sets no limit.
        cpu_request_percent: share of the processors that are reserved for a build. Builds may use
            the others while no other Pod needs them.
        isolation: one of `ISOLATIONS`.
        node_selector: labels that a node must have.
        tolerations: taints of nodes that are accepted: ``KEY``, ``KEY=VALUE`` or
            ``KEY=VALUE:EFFECT``.
        runtime_class: of the Pods, for a sandboxed runtime (Kata, gVisor).
        priority_class: of the Pods.
        queue: queue of Kueue that admits the Jobs; empty without Kueue.
        mirror: URL of a registry that the engines use as a mirror of Docker Hub.
        owner: a Role of the namespace that owns the Jobs, so that they are deleted with it; empty
            for none.
    """

    name: str
    server: str
    worker_image: str
    engine_image: str
    projects: tuple[str, ...] = ()
    namespace: str = "default"
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    service_account: str = "default"
    max_builds: int = 10
    spare: int = 0
    cpu: str = "2"
    memory: str = "4Gi"
    disk: str = "50Gi"
    cpu_request_percent: int = 100
    isolation: str = "user-namespace"
    node_selector: dict[str, str] = {}
    tolerations: tuple[str, ...] = ()
    runtime_class: str = ""
    priority_class: str = ""
    queue: str = ""
    mirror: str = ""
    owner: str = ""


def pool_problems(pool: Pool) -> Iterator[tuple[str, str]]:
    """Yield each setting that no cluster accepts, with its allowed values."""
    for key, (form, needs) in _FORMS.items():
        if not form.fullmatch(getattr(pool, key)):
            yield key, needs
    for key, (least, most) in _RANGES.items():
        if not least <= getattr(pool, key) <= most:
            yield key, f"is a number from {least} to {most}"
    if pool.spare > pool.max_builds:
        yield "spare", f"is at most max_builds, which is {pool.max_builds}"
    for toleration in pool.tolerations:
        if parse_toleration(toleration) is None:
            yield (
                "tolerations",
                f"{toleration!r} has another form than KEY, KEY=VALUE or KEY=VALUE:EFFECT, where "
                f"EFFECT is one of {', '.join(EFFECTS)}",
            )


def parse_toleration(text: str) -> dict[str, str] | None:
    """Return a toleration as Pods have it; None if the text has another form.

    Args:
        text: ``KEY`` or ``KEY=VALUE``, either with ``:EFFECT``.
    """
    found = _TOLERATION.fullmatch(text)
    if found is None:
        return None
    toleration = {"key": found["key"], "operator": "Exists"}
    if found["value"] is not None:
        toleration.update(operator="Equal", value=found["value"])
    if found["effect"]:
        toleration["effect"] = found["effect"]
    return toleration
