"""The Job of a build: its Pod runs a worker, and a Docker engine of the build's own. Pure.

The engine is a sidecar: Kubernetes starts it before the worker, and ends it after the worker. All
steps run in its control group, so its limits are the limits of the build. The worker talks to it
over a socket in a shared folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import msgspec

from buildrunner.addresses import Egress
from buildrunner.builders.catalog import GATEWAY_PORT
from buildrunner.kubernetes.pool import Pool, parse_toleration
from buildrunner.plan.build_plan import ResourceLimits

LABEL_BUILD: Final = "buildrunner.dev/build"
LABEL_POOL: Final = "buildrunner.dev/pool"
"""Labels of Jobs and Pods: the build and its pool."""

LABEL_SPARE: Final = "buildrunner.dev/spare"
LABEL_SERVER: Final = "buildrunner.dev/server"
"""Labels of spare Jobs: a digest of what their Pods are made of, and one of the server's URL."""

LABELS: Final = {"app.kubernetes.io/managed-by": "buildrunner"}
"""Labels of all Jobs and Pods of builds."""

WORKER: Final = "worker"
ENGINE: Final = "engine"
"""Names of the containers."""

AUDIENCE: Final = "buildrunner"
"""Audience of the token by which the worker of a Pod shows who it is."""

TOKEN_FOLDER: Final = "/var/run/secrets/buildrunner"  # noqa: S105
SHARED_FOLDER: Final = "/run/buildrunner"
SOCKET: Final = f"{SHARED_FOLDER}/docker.sock"
WORKSPACE: Final = "/workspace"
ENGINE_DATA: Final = "/var/lib/docker"
ENGINE_VOLUMES: Final = "/var/lib/engine-volumes"
HOME_FOLDER: Final = "/var/lib/buildrunner"

_TTL_S = 600
_BACKSTOP = timedelta(minutes=15)
_GRACE_S = 30
_NODE_LOST_S = 30
_TOKEN_S = 3600
_LAST_WORDS = "FallbackToLogsOnError"  # the end of its log says why a container failed
_SHARED_SIZE = "16Mi"  # it has sockets only
_WORKER_LIMITS = {"cpu": "1", "memory": "512Mi"}
_WORKER_REQUESTS = {"cpu": "50m", "memory": "128Mi"}

# Debian's Docker needs these besides the ones that every container has.
_ENGINE_CAPABILITIES = ("AUDIT_WRITE", "MKNOD", "NET_ADMIN", "NET_RAW", "SYS_ADMIN")
# Its start script enters a user namespace that belongs to another user.
_NAMESPACE_CAPABILITIES = ("SYS_PTRACE",)
# Steps leave files of any owner in the workspace, which the worker reads and removes.
_WORKER_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER")

_CPU = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)(?P<milli>m?)")


class PodBuild(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of a build that its Job needs.

    Attributes:
        id: of the build; empty for a spare Pod, whose build is not known yet.
        timeout: of the whole build; None for a spare Pod.
        limits: those of ``options.machineType``.
        disk_gb: ``options.diskSizeGb``; 0 if the build sets no size.
        egress: networks that the settings of its project deny.
    """

    id: str
    timeout: timedelta | None
    limits: ResourceLimits = ResourceLimits()
    disk_gb: int = 0
    egress: Egress = Egress()


def job_name(build_id: str) -> str:
    """Return the name of a build's Job."""
    return f"build-{build_id}"


def spare_name(pool: Pool, number: str) -> str:
    """Return the name of a spare Job.

    Args:
        pool: the pool.
        number: a UUID.
    """
    return f"spare-{pool_digest(pool)}-{number}"


def is_spare_name(name: str) -> bool:
    """Return whether a Job is a spare one, by its name."""
    return name.startswith("spare-")


def pool_digest(pool: Pool) -> str:
    """Return the part of the names of spare Jobs that names their pool: at most 63 fit."""
    return _digest(pool.name)


def server_digest(pool: Pool) -> str:
    """Return the label of spare Jobs that names their server, as several may share a namespace."""
    return _digest(pool.server)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def spare_version(pool: Pool, egress: Egress) -> str:
    """Return a digest of what the spare Pods of a pool are made of."""
    return _digest(repr(_pod(_spare_build(egress), pool)))


def _spare_build(egress: Egress) -> PodBuild:
    return PodBuild(id="", timeout=None, egress=egress)


def spare_manifest(
    pool: Pool, number: str, egress: Egress, owner: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the Job that waits for a build of its pool, runs it, and ends.

    Args:
        pool: where it is.
        number: a UUID.
        egress: networks that the settings deny to all projects without settings of their own.
        owner: see `job_manifest`.
    """
    labels = {LABEL_SPARE: spare_version(pool, egress), LABEL_SERVER: server_digest(pool)}
    return _job(spare_name(pool, number), labels, _spare_build(egress), pool, owner)


def job_manifest(
    build: PodBuild, pool: Pool, owner: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the Job that runs one build, once.

    A Job never runs a build again: the server decides on that, because it knows whether a step
    has begun.

    Args:
        build: the build.
        pool: where it runs.
        owner: the object that the Job is deleted with; see `KubernetesApi.owner`.
    """
    return _job(job_name(build.id), {LABEL_BUILD: build.id}, build, pool, owner)


def _job(
    name: str,
    of_job: Mapping[str, str],
    build: PodBuild,
    pool: Pool,
    owner: Mapping[str, str] | None,
) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/name": "buildrunner-build",
        **LABELS,
        **of_job,
        LABEL_POOL: pool.name,
    }
    job: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": pool.namespace,
            "labels": {**labels, **_queue(pool)},
        },
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "ttlSecondsAfterFinished": _TTL_S,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    }
                ]
            },
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                        "karpenter.sh/do-not-disrupt": "true",
                    },
                },
                "spec": _pod(build, pool),
            },
        },
    }
    if owner:
        job["metadata"]["ownerReferences"] = [dict(owner)]
    if pool.queue:
        job["spec"]["suspend"] = True  # until Kueue admits it
    return job


def _queue(pool: Pool) -> dict[str, str]:
    return {"kueue.x-k8s.io/queue-name": pool.queue} if pool.queue else {}


def _pod(build: PodBuild, pool: Pool) -> dict[str, Any]:
    lost = [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": _NODE_LOST_S,
        }
        for state in ("not-ready", "unreachable")
    ]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "serviceAccountName": pool.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _GRACE_S,
        "tolerations": [*lost, *map(parse_toleration, pool.tolerations)],
        "initContainers": [_engine(build, pool)],
        "containers": [_worker(build, pool)],
        "volumes": [_disk(build, pool), *_volumes()],
    }
    optional = {
        # Counted from the start on a node: a Pod may wait for a node as long as its build waits.
        "activeDeadlineSeconds": int((build.timeout + _BACKSTOP).total_seconds())
        if build.timeout is not None
        else 0,
        "nodeSelector": pool.node_selector,
        "runtimeClassName": pool.runtime_class,
        "priorityClassName": pool.priority_class,
        "imagePullSecrets": [{"name": name} for name in pool.pull_secrets],
    }
    return {**pod, **{key: value for key, value in optional.items() if value}}


def _engine(build: PodBuild, pool: Pool) -> dict[str, Any]:
    """The sidecar with the build's engine. It answers on `SOCKET` once it is up."""
    mirror = [f"--registry-mirror={pool.mirror}"] if pool.mirror else []
    return {
        "name": ENGINE,
        "image": pool.engine_image,
        "imagePullPolicy": pool.pull_policy,
        "restartPolicy": "Always",  # what makes it a sidecar
        "terminationMessagePolicy": _LAST_WORDS,
        "args": [
            "--host=unix:///var/run/docker.sock",
            "--host=fd://",  # `SOCKET`, in a folder that is then read-only for the engine
            "--storage-driver=overlay2",
            "--group=0",
            "--log-level=warn",
            *mirror,
        ],
        "env": [
            {"name": "ISOLATION", "value": pool.isolation},
            {"name": "GATEWAY_PORT", "value": str(GATEWAY_PORT)},
            {"name": "POD_DENY", "value": " ".join(Egress().deny)},
            {"name": "EGRESS_DENY", "value": " ".join(_egress(build, pool).deny)},
            {"name": "EGRESS_ALLOW", "value": " ".join(_egress(build, pool).allow)},
        ],
        "resources": _resources(build, pool),
        "securityContext": _engine_rights(pool),
        "volumeMounts": [
            {"name": "disk", "mountPath": ENGINE_DATA, "subPath": "engine"},
            {"name": "disk", "mountPath": f"{ENGINE_DATA}/volumes", "subPath": "volumes"},
            {"name": "disk", "mountPath": WORKSPACE, "subPath": "workspace"},
            {"name": "shared", "mountPath": SHARED_FOLDER},
        ],
    }


def _egress(build: PodBuild, pool: Pool) -> Egress:
    """The networks that steps do not reach.

    In another isolation, a step that breaks out of the engine can change the rules: the worker then
    refuses builds that may not reach some network.
    """
    return build.egress if pool.isolation == "user-namespace" else Egress()


def _engine_rights(pool: Pool) -> dict[str, Any]:
    """The rights of the engine on its node, which `pool.isolation` decides."""
    if pool.isolation == "privileged":
        return {"privileged": True}
    more = _NAMESPACE_CAPABILITIES if pool.isolation == "user-namespace" else ()
    return {
        "capabilities": {"add": [*_ENGINE_CAPABILITIES, *more]},
        # An engine mounts file systems and makes namespaces, which the default profiles forbid.
        "seccompProfile": {"type": "Unconfined"},
        "appArmorProfile": {"type": "Unconfined"},
    }


def _resources(build: PodBuild, pool: Pool) -> dict[str, Any]:
    cpu = str(build.limits.cpus) if build.limits.cpus else pool.cpu
    memory = str(build.limits.memory_bytes) if build.limits.memory_bytes else pool.memory
    limits = {"cpu": _whole(cpu), "memory": memory}
    requests = {"cpu": _share(cpu, pool.cpu_request_percent), "memory": memory}
    if size := _disk_size(build, pool):
        # Limits all that the Pod writes, also beside the volume: no other container has a limit. A
        # node must have the disk that a build requests, and need not have all of the pool's limit.
        limits["ephemeral-storage"] = size
        requests["ephemeral-storage"] = size if build.disk_gb else "0"
    return {"limits": limits, "requests": requests}


def _disk_size(build: PodBuild, pool: Pool) -> str:
    return f"{build.disk_gb}G" if build.disk_gb else pool.disk


def _whole(cpu: str) -> str:
    return cpu.removesuffix(".0")


def _share(cpu: str, percent: int) -> str:
    found = _CPU.fullmatch(cpu)
    assert found is not None  # noqa: S101  (`pool_problems` finds others)
    milli = float(found["number"]) * (1 if found["milli"] else 1000)
    return f"{max(1, round(milli * percent / 100))}m"


def _worker(build: PodBuild, pool: Pool) -> dict[str, Any]:
    """The container that claims the build, runs it, and ends with it."""
    return {
        "name": WORKER,
        "image": pool.worker_image,
        "terminationMessagePolicy": _LAST_WORDS,
        "imagePullPolicy": pool.pull_policy,
        "args": [
            "worker",
            f"--server={pool.server}",
            f"--token-file={TOKEN_FOLDER}/token",
            f"--pool={pool.name}",
            *([f"--build={build.id}"] if build.id else []),
            "--once",
            "--sandbox=pod",
            f"--pod-isolation={pool.isolation}",
            f"--pod-egress-deny={' '.join(_egress(build, pool).deny)}",
            f"--pod-egress-allow={' '.join(_egress(build, pool).allow)}",
        ],
        "env": [
            {"name": "DOCKER_HOST", "value": f"unix://{SOCKET}"},
            {"name": "HOME", "value": HOME_FOLDER},
        ],
        "resources": {"limits": _WORKER_LIMITS, "requests": _WORKER_REQUESTS},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": list(_WORKER_CAPABILITIES)},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [
            {"name": "disk", "mountPath": WORKSPACE, "subPath": "workspace"},
            {"name": "disk", "mountPath": ENGINE_VOLUMES, "subPath": "volumes"},
            {"name": "disk", "mountPath": HOME_FOLDER, "subPath": "worker"},
            {"name": "disk", "mountPath": "/tmp", "subPath": "tmp"},  # noqa: S108
            {"name": "shared", "mountPath": SHARED_FOLDER},
            {"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True},
        ],
    }


def _disk(build: PodBuild, pool: Pool) -> dict[str, Any]:
    """Return the disk for all that the build writes: its images, containers, workspace and log."""
    size = _disk_size(build, pool)
    return {"name": "disk", "emptyDir": {"sizeLimit": size} if size else {}}


def _volumes() -> list[dict[str, Any]]:
    return [
        {"name": "shared", "emptyDir": {"sizeLimit": _SHARED_SIZE}},
        {
            "name": "token",
            "projected": {
                "defaultMode": 0o400,
                "sources": [
                    {
                        "serviceAccountToken": {
                            "audience": AUDIENCE,
                            "expirationSeconds": _TOKEN_S,
                            "path": "token",
                        }
                    }
                ],
            },
        },
    ]
