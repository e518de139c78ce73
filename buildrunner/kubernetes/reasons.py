"""Why a Job failed or its Pod does not run, as text, from the objects of the cluster. Pure.

Source: https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/ and
https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

import msgspec

from buildrunner.kubernetes.manifest import (
    ENGINE,
    LABEL_BUILD,
    LABEL_POOL,
    LABEL_SERVER,
    LABEL_SPARE,
)

Object = Mapping[str, Any]

_DISRUPTIONS: Final = {
    "PreemptionByScheduler": "was preempted by a Pod with a higher priority",
    "EvictionByEvictionAPI": "was evicted, as when a node is drained",
    "DeletionByTaintManager": "was deleted: its node is lost, or has a new taint",
    "DeletionByPodGC": "was deleted: its node does not exist any more",
    "TerminationByKubelet": "was stopped by its node",
}
# Source: pkg/kubelet/eviction/eviction_manager.go of Kubernetes
_OVER_LIMIT: Final = (
    "Pod ephemeral local storage usage exceeds the total limit",
    "exceeded its local ephemeral storage limit",
    "Usage of EmptyDir volume",
)
_MOST: Final = 500
_PARTS: Final = {ENGINE: "the engine in its Pod"}
_WORKER: Final = "the worker in its Pod"


class BuildJob(msgspec.Struct, frozen=True, kw_only=True):
    """The Job of a build as it is in the cluster.

    Attributes:
        build_id: the build.
        namespace, name: of the Job.
        ended_at: when it completed or failed; None while it is active.
        reason: why the Job has failed, or why its Pod does not run; empty if there is none.
        disrupted: whether Kubernetes ends its Pod. On a lost node, no Pod ends: its Job stays
            active until the node returns.
        node_lost: whether the node of its Pod is not ready. Kubernetes ends no Pod while all nodes
            of a zone are not ready.
    """

    build_id: str
    namespace: str
    name: str
    ended_at: datetime | None = None
    reason: str = ""
    disrupted: bool = False
    node_lost: bool = False


class SpareJob(msgspec.Struct, frozen=True, kw_only=True):
    """A spare Job that has claimed no build, as it is in the cluster.

    Attributes:
        pool: the pool whose builds its Pod waits for.
        namespace, name: of the Job.
        version, server: see `manifest.LABEL_SPARE` and `LABEL_SERVER`.
        ended_at: when it completed or failed; None while it is active.
        ready: whether its Pod can claim a build.
        gone: whether it is being deleted. Its Pod may still run.
    """

    pool: str
    namespace: str
    name: str
    version: str
    server: str
    ended_at: datetime | None = None
    ready: bool = False
    gone: bool = False


def spare_jobs(
    jobs: Iterable[Object], pods: Iterable[Object], claims: Mapping[str, str]
) -> list[SpareJob]:
    """Return the spare Jobs that have claimed no build, and those whose Pods outlive them.

    Args:
        jobs: Jobs of one namespace.
        pods: Pods of that namespace.
        claims: the builds that spare Jobs have claimed, by the name of the Job.
    """
    own = {_owner(pod): pod for pod in pods if _is_live(pod)}
    found = {}
    for job in jobs:
        metadata = job["metadata"]
        pod = own.get(metadata["name"], {})
        ready = {"type": "Ready", "status": "True"}.items()
        found[metadata["name"]] = _spare_job(
            metadata,
            ended_at=_ended_at(job),
            ready=any(ready <= one.items() for one in _true_conditions(pod)),
            gone=bool(metadata.get("deletionTimestamp") or _disruption(pod) or _is_node_lost(pod)),
        )
    for name, pod in own.items():
        if name not in found:
            found[name] = msgspec.structs.replace(_spare_job(pod["metadata"], gone=True), name=name)
    return [one for one in found.values() if one.version and one.name not in claims]


def _spare_job(metadata: Object, **facts: Any) -> SpareJob:
    labels = metadata.get("labels") or {}
    return SpareJob(
        pool=labels.get(LABEL_POOL, ""),
        namespace=metadata["namespace"],
        name=metadata["name"],
        version=labels.get(LABEL_SPARE, ""),
        server=labels.get(LABEL_SERVER, ""),
        **facts,
    )


def _is_live(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")


_NO_CLAIMS: Final[Mapping[str, str]] = MappingProxyType({})


def build_jobs(
    jobs: Iterable[Object],
    pods: Iterable[Object],
    warnings: Iterable[Object],
    disrupted: Mapping[str, str] = MappingProxyType({}),
    claims: Mapping[str, str] = _NO_CLAIMS,
) -> list[BuildJob]:
    """Return the Jobs of builds. Spare Jobs that have claimed a build come last.

    Args:
        jobs: Jobs of one namespace.
        pods: Pods of that namespace.
        warnings: events of that namespace.
        disrupted: an earlier answer of `disruptions`, for Pods that are gone by now.
        claims: see `spare_jobs`.
    """
    pods, warnings = list(pods), list(warnings)
    found = []
    for job in sorted(jobs, key=lambda one: one["metadata"]["name"] in claims):
        metadata = job["metadata"]
        own_build = (metadata.get("labels") or {}).get(LABEL_BUILD, "")
        build_id = claims.get(metadata["name"], own_build)
        if not build_id or metadata.get("deletionTimestamp"):
            continue
        own = [pod for pod in pods if _owner(pod) == metadata["name"]]
        pod = max(own, key=lambda one: str(one["metadata"].get("creationTimestamp")), default=None)
        found.append(
            BuildJob(
                build_id=build_id,
                namespace=metadata["namespace"],
                name=metadata["name"],
                ended_at=_ended_at(job),
                reason=_reason(job, pod, warnings, disrupted.get(build_id, "")),
                disrupted=pod is not None and bool(_disruption(pod)),
                node_lost=pod is not None and _is_node_lost(pod),
            )
        )
    return found


def live_pods(pods: Iterable[Object], claims: Mapping[str, str] = _NO_CLAIMS) -> dict[str, str]:
    """Return the pool of each Pod that has not ended, by the id of its build.

    Args:
        pods: Pods of one namespace.
        claims: see `spare_jobs`.
    """
    live = {}
    for pod in pods:
        labels = pod["metadata"].get("labels") or {}
        if _is_live(pod):
            live[_build_of(pod, claims)] = labels.get(LABEL_POOL, "")
    live.pop("", None)
    return live


def disruptions(pods: Iterable[Object], claims: Mapping[str, str] = _NO_CLAIMS) -> dict[str, str]:
    """Return why Kubernetes ends Pods, by the id of their build.

    Args:
        pods: Pods of one namespace.
        claims: see `spare_jobs`.
    """
    found = {}
    for pod in pods:
        if text := _disruption(pod):
            found[_build_of(pod, claims)] = text
    return found


def _build_of(pod: Object, claims: Mapping[str, str]) -> str:
    labels = pod["metadata"].get("labels") or {}
    return claims.get(_owner(pod), "") or str(labels.get(LABEL_BUILD, ""))


def _owner(pod: Object) -> str:
    labels = pod["metadata"].get("labels") or {}
    return str(labels.get("batch.kubernetes.io/job-name") or labels.get("job-name", ""))


def _ended_at(job: Object) -> datetime | None:
    for condition in _true_conditions(job):
        if condition["type"] in ("Complete", "Failed", "FailureTarget"):
            return _instant(condition.get("lastTransitionTime"))
    return None


def _instant(value: object) -> datetime | None:
    return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))


def _reason(job: Object, pod: Object | None, warnings: Sequence[Object], disrupted: str) -> str:
    failed = {one["type"]: one for one in _true_conditions(job)}.get("Failed")
    if pod is not None and (text := _pod_reason(pod)):
        return text
    if pod is None and disrupted and _ended_at(job):
        return disrupted
    if failed is not None and pod is None:
        message = failed.get("message", "")
        is_disrupted = failed.get("reason") == "PodFailurePolicy"
        return f"its Pod was deleted: {message}" if is_disrupted else "its Pod was deleted"
    if failed is not None:
        return f"its Job failed: {failed.get('message') or failed.get('reason')}"
    if (job.get("spec") or {}).get("suspend"):
        labels = job["metadata"].get("labels") or {}
        queue = labels.get("kueue.x-k8s.io/queue-name", "")
        return f"its Job waits for the queue {queue} of Kueue" if queue else "its Job is suspended"
    about = job["metadata"]["name"] if pod is None else pod["metadata"]["name"]
    if pod is None or (pod.get("status") or {}).get("phase") == "Pending":
        return _last_warning(about, warnings)
    return ""


def _pod_reason(pod: Object) -> str:
    """Return why a Pod failed or does not run, as text; empty if it is fine."""
    status = pod.get("status") or {}
    containers = [
        *(status.get("initContainerStatuses") or ()),
        *(status.get("containerStatuses") or ()),
    ]
    if text := _out_of_memory(pod, containers):
        return text
    if status.get("reason") == "DeadlineExceeded":
        return "its Pod ran longer than the timeout of the build, and was stopped"
    if text := _disruption(pod):
        return text
    if _is_node_lost(pod):
        return f"its node {(pod.get('spec') or {}).get('nodeName', '')} is not ready"
    if text := _container_reason(containers):
        return text
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition.get("status") == "False":
            return _with("its Pod can't be scheduled", condition.get("message"))
    return _with("its Pod failed", status.get("message")) if status.get("phase") == "Failed" else ""


def _disruption(pod: Object) -> str:
    """Return why Kubernetes ends a Pod; empty if it does not."""
    status = pod.get("status") or {}
    node = (pod.get("spec") or {}).get("nodeName", "")
    if status.get("reason") == "Evicted":
        message = str(status.get("message", ""))
        if any(part in message for part in _OVER_LIMIT):
            size = _limits(pod, ENGINE).get("ephemeral-storage", "")
            limit = f" (its limit is {size})" if size else ""
            text = f"the build wrote more to the disk than it may{limit}: its Pod was evicted"
            return _with(text, message)
        where = f" from the node {node}" if node else ""
        return _with(f"its Pod was evicted{where}", message)
    for condition in _true_conditions(pod):
        if condition["type"] == "DisruptionTarget":
            found = _DISRUPTIONS.get(condition.get("reason", ""), "was disrupted")
            where = f" (node {node})" if node else ""
            return _with(f"its Pod {found}{where}", condition.get("message"))
    return ""


def _is_node_lost(pod: Object) -> bool:
    """Return whether the node of a Pod is not ready.

    The controller of nodes then marks the Pod as not ready, although its containers are ready. A
    kubelet never does so for the Pod of a build, which has no readiness gates.
    """
    states = {
        one["type"]: one.get("status") for one in (pod.get("status") or {}).get("conditions") or ()
    }
    return (states.get("Ready"), states.get("ContainersReady")) == ("False", "True")


def _container_reason(statuses: Sequence[Object]) -> str:
    for container in statuses:
        state = container.get("state") or {}
        part = _PARTS.get(container["name"], _WORKER)
        ended, waiting = state.get("terminated"), state.get("waiting")
        if ended and ended.get("exitCode"):
            text = f"{part} ended with exit code {ended['exitCode']}"
            return _with(text, ended.get("message"))
        if waiting and waiting.get("reason") not in ("ContainerCreating", "PodInitializing", None):
            text = f"{part} does not start: {waiting['reason']}"
            return _with(text, waiting.get("message"))
    return ""


def _out_of_memory(pod: Object, statuses: Sequence[Object]) -> str:
    for container in statuses:
        for state in (container.get("state") or {}, container.get("lastState") or {}):
            if (state.get("terminated") or {}).get("reason") != "OOMKilled":
                continue
            memory = _limits(pod, container["name"]).get("memory", "")
            limit = f" (its limit is {memory})" if memory else ""
            return f"{_PARTS.get(container['name'], _WORKER)} ran out of memory{limit}"
    return ""


def _limits(pod: Object, container: str) -> Object:
    """Return the limits of a container of a Pod."""
    spec = pod.get("spec") or {}
    for one in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        if one["name"] == container:
            return (one.get("resources") or {}).get("limits") or {}
    return {}


def _last_warning(name: str, warnings: Sequence[Object]) -> str:
    own = [one for one in warnings if (one.get("involvedObject") or {}).get("name") == name]
    if not own:
        return ""
    last = max(own, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime")))
    return _with("its Pod does not start", last.get("message") or last.get("reason"))


def _true_conditions(found: Object) -> list[Object]:
    conditions = (found.get("status") or {}).get("conditions") or ()
    return [one for one in conditions if one.get("status") == "True"]


def _with(text: str, message: object) -> str:
    words = " ".join(str(message or "").split()).rstrip(".")
    if len(words) > _MOST:  # the end of a log says more than its beginning
        words = f"…{words[-_MOST:]}"
    return f"{text}: {words}" if words else text
