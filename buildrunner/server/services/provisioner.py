"""The provisioner: creates the Jobs of builds whose pool is on Kubernetes, and deletes them.

Only one of several servers runs it. `decisions` decides what to do; this module does it.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

from msgspec.structs import replace

from buildrunner.addresses import Egress
from buildrunner.errors import KubernetesError, NotFound
from buildrunner.kubernetes.decisions import RETRY, Decisions, Situation, decide, sentence
from buildrunner.kubernetes.manifest import (
    LABEL_SPARE,
    LABELS,
    PodBuild,
    is_spare_name,
    job_manifest,
    server_digest,
    spare_manifest,
    spare_version,
)
from buildrunner.kubernetes.pool import Pool
from buildrunner.kubernetes.reasons import (
    BuildJob,
    SpareJob,
    build_jobs,
    disruptions,
    live_pods,
    spare_jobs,
)
from buildrunner.plan.build_plan import ResourceLimits
from buildrunner.plan.compile import DEFAULT_TIMEOUT_S, MACHINE_LIMITS
from buildrunner.sandboxes.protocol import isolates
from buildrunner.server.loop import Loop
from buildrunner.spec.model.build import FINAL_STATUSES, Build, BuildOptions
from buildrunner.spec.reading.decode import decode_message
from buildrunner.store.model.builds import ClaimedBuild, Lease, StoredBuild, WaitingBuild
from buildrunner.store.sql.store import ServerStore

TASK: Final = "kubernetes jobs"
"""Name of the task that only one of several servers runs."""

_LOOK_S: Final = 2.0
_LOOKED_AT: Final = 100
# Reasons of a refusal that apply to every Job of the namespace.
_OF_NAMESPACE: Final = ("Quota", "NoNamespace", "Forbidden", "Unavailable")

_log = logging.getLogger("buildrunner.server")


class Cluster(Protocol):
    """The part of `KubernetesApi` that the provisioner uses."""

    def create_job(self, manifest: Mapping[str, Any]) -> None:
        """See `KubernetesApi.create_job`."""
        ...

    def owner(self, namespace: str, role: str) -> dict[str, str]:
        """See `KubernetesApi.owner`."""
        ...

    def delete_job(self, namespace: str, name: str) -> None:
        """See `KubernetesApi.delete_job`."""
        ...

    def jobs(self, namespace: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """See `KubernetesApi.jobs`."""
        ...

    def pods(self, namespace: str, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """See `KubernetesApi.pods`."""
        ...

    def warnings(self, namespace: str) -> list[dict[str, Any]]:
        """See `KubernetesApi.warnings`."""
        ...


class Provisioner:
    """The loop that compares builds with Jobs. Call `start` and `stop` once; `wake` is thread-safe.

    Args:
        store: the server's store.
        cluster: the cluster of the Jobs.
        pools: the pools of the settings, by name.
        report_lost: called with the lease of a build whose Pod is gone, and the reason.
        clock: returns the time, aware UTC.
        isolation: isolation that builds of forks require; see `ServerSettings.isolation`.
        egress: returns the networks that builds of a project may not reach.
    """

    def __init__(
        self,
        store: ServerStore,
        cluster: Cluster,
        pools: Mapping[str, Pool],
        report_lost: Callable[[Lease, str], None],
        clock: Callable[[], datetime],
        *,
        isolation: str = "",
        egress: Callable[[str], Egress] = lambda _: Egress(),
    ) -> None:
        self._egress = egress
        self._too_weak = frozenset(
            name for name, pool in pools.items() if not isolates(pool.isolation, isolation)
        )
        self._store = store
        self._cluster = cluster
        self._pools = pools
        self._report_lost = report_lost
        self._clock = clock
        self._leadership = store.leadership(TASK)
        self._problem = ""
        self._refused: dict[str, datetime] = {}
        # Kept here, since a Pod is deleted soon after its status gives the reason.
        self._disrupted: dict[str, str] = {}
        self._no_spares: dict[str, datetime] = {}  # pools whose spare Job the cluster refused
        self._fits: dict[str, bool] = {}
        self._loop = Loop("provisioner", self.turn, _LOOK_S)

    def start(self) -> None:
        """Start the thread."""
        self._loop.start()

    def wake(self) -> None:
        """Check the queue at once. Cheap."""
        self._loop.wake()

    def stop(self) -> None:
        """Finish the current turn and leave the task to another server. Idempotent."""
        self._loop.stop()
        self._leadership.close()

    def turn(self) -> None:
        """Compare builds and Jobs once, and act on the differences.

        Raises:
            StoreError: the database does not answer.
        """
        if not self._leadership.leads():
            return
        queue = self._store.queue
        rested = self._clock() - RETRY
        self._refused = {one: at for one, at in self._refused.items() if at > rested}
        waiting = queue.waiting_in(self._pools, no_forks=self._too_weak, resting=self._refused)
        claimed = queue.claimed()
        try:
            jobs, pods, spares = self._found()
        except KubernetesError as error:
            self._note_problem(str(error))
            self._note_waits(waiting, dict.fromkeys((one.id for one in waiting), str(error)))
            return
        self._note_problem("")
        known = {one.id for one in waiting} | {one.id for one in claimed}
        if hidden := ({job.build_id for job in jobs} | pods.keys()) - known:
            waiting += queue.waiting_in(self._pools, hidden)
        situation = Situation(
            pools=self._pools,
            waiting=waiting,
            claimed=claimed,
            jobs=jobs,
            pods=pods,
            ended=self._ended(waiting, claimed, jobs, pods),
            now=self._clock(),
            too_weak=self._too_weak,
            refused=self._refused,
            spares=spares,
            versions={
                name: spare_version(pool, self._egress(""))
                for name, pool in self._pools.items()
                if pool.spare
            },
            fitting=self._fitting(waiting),
        )
        self._do(decide(situation), waiting)

    def _fitting(self, waiting: list[WaitingBuild]) -> frozenset[str]:
        """Return the ids of builds that a spare Pod can run."""
        requested = [one.id for one in waiting if self._pools[one.pool].spare]
        self._fits = {one: fits for one, fits in self._fits.items() if one in set(requested)}
        for build_id in requested[:_LOOKED_AT]:
            if build_id not in self._fits:
                try:
                    stored = self._store.builds.find(build_id)
                except NotFound:
                    continue
                self._fits[build_id] = fits_spare(stored, egress=self._egress)
        return frozenset(one for one, fits in self._fits.items() if fits)

    def _found(self) -> tuple[list[BuildJob], dict[str, str], list[SpareJob]]:
        """Return the Jobs of builds, `live_pods`, and the spare Jobs of this server's pools."""
        found: list[BuildJob] = []
        spares: list[SpareJob] = []
        live: dict[str, str] = {}
        for namespace in sorted({pool.namespace for pool in self._pools.values()}):
            jobs = self._cluster.jobs(namespace, LABELS)
            pods = self._cluster.pods(namespace, LABELS)
            claims = self._store.queue.spare_claims(_spare_names([*jobs, *pods]))
            spares += spare_jobs(jobs, pods, claims)
            live |= live_pods(pods, claims)
            self._disrupted |= disruptions(pods, claims)
            start = len(pods) < len(jobs) or any(map(_is_pending, pods))
            # A namespace may have many events: only the reasons why no Pod starts are read there.
            warnings = self._cluster.warnings(namespace) if start else ()
            found += build_jobs(jobs, pods, warnings, self._disrupted, claims)
        known = {job.build_id for job in found}
        self._disrupted = {one: why for one, why in self._disrupted.items() if one in known}
        ours = {name: (pool.namespace, server_digest(pool)) for name, pool in self._pools.items()}
        return found, live, [one for one in spares if ours.get(one.pool) == _place(one)]

    def _ended(
        self,
        waiting: list[WaitingBuild],
        claimed: list[ClaimedBuild],
        jobs: list[BuildJob],
        pods: Mapping[str, str],
    ) -> dict[str, datetime]:
        known = {one.id for one in waiting} | {one.id for one in claimed}
        active = {job.build_id for job in jobs if job.ended_at is None}
        of_spares = {job.build_id for job in jobs if is_spare_name(job.name)}
        ended = {}
        for build_id in (active | pods.keys()) - known:
            try:
                build = self._store.builds.find(build_id)
            except NotFound:
                if build_id in of_spares:  # the server deleted the build after its end
                    ended[build_id] = datetime.min.replace(tzinfo=UTC)
                continue
            at = build.document.get("finishTime")
            if build.status in FINAL_STATUSES and at:
                ended[build.id] = datetime.fromisoformat(str(at))
        return ended

    def _do(self, decisions: Decisions, waiting: list[WaitingBuild]) -> None:
        for build, reason in decisions.lost:
            _log.warning("build %s has lost its Pod: %s", build.id, reason)
            self._report_lost(Lease(build.id, build.fence), reason)
        for job in decisions.delete:
            try:
                self._cluster.delete_job(job.namespace, job.name)
            except KubernetesError as error:
                self._note_problem(str(error))
        waits = dict(decisions.waits)
        full: dict[str, str] = {}
        for chosen in decisions.create:
            pool = self._pools[chosen.pool]
            if pool.namespace not in full:
                refused = self._create(chosen, pool)
                if refused is not None and refused.reason in _OF_NAMESPACE:
                    full[pool.namespace] = str(refused)
                elif refused is not None:
                    self._refused[chosen.id] = self._clock()
                waits[chosen.id] = str(refused) if refused else "its Pod starts"
            else:
                waits[chosen.id] = full[pool.namespace]
        for name in decisions.spares:
            if self._pools[name].namespace not in full:
                self._create_spare(name)
        self._note_waits(waiting, waits)

    def _create_spare(self, name: str) -> None:
        """Create a spare Job, unless the cluster refused one a short time ago."""
        pool, now = self._pools[name], self._clock()
        if name in self._no_spares and now - self._no_spares[name] < RETRY:
            return
        try:
            owner = self._cluster.owner(pool.namespace, pool.owner) if pool.owner else None
            number = str(uuid.uuid4())
            self._cluster.create_job(spare_manifest(pool, number, self._egress(""), owner))
        except KubernetesError as error:
            self._no_spares[name] = now
            self._note_problem(str(error))

    def _create(self, waiting: WaitingBuild, pool: Pool) -> KubernetesError | None:
        try:
            stored = self._store.builds.find(waiting.id)
            # Read each time: a Job whose owner does not exist is deleted at once.
            owner = self._cluster.owner(pool.namespace, pool.owner) if pool.owner else None
            place = self._reached(pool, stored)
            egress = self._egress(str(stored.document.get("projectId", "")))
            build = replace(pod_build(stored), egress=egress)
            self._cluster.create_job(job_manifest(build, place, owner))
        except NotFound:
            return None  # the build was just deleted
        except KubernetesError as error:
            self._note_problem(str(error))
            return error
        return None

    def _reached(self, pool: Pool, stored: StoredBuild) -> Pool:
        """Return the pool, with the address of the server that has the build's upload, if any."""
        servers = self._store.servers.all() if stored.only_worker else []
        for server in servers if len(servers) > 1 else ():
            if server.name == stored.only_worker:
                return replace(pool, server=server.url)
        return pool

    def _note_waits(self, waiting: list[WaitingBuild], waits: Mapping[str, str]) -> None:
        texts = {}
        for build in waiting:
            text = waits.get(build.id, "")
            text = sentence(text) if text and not text.endswith(".") else text
            if text and text != build.waits_for:
                texts[build.id] = text
        self._store.queue.note_waits(texts)

    def _note_problem(self, text: str) -> None:
        if text and text != self._problem:
            _log.warning("Kubernetes: %s; it is tried again", text)
        self._problem = text


def _is_pending(pod: Mapping[str, Any]) -> bool:
    return (pod.get("status") or {}).get("phase") == "Pending"


def _spare_names(objects: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the names of spare Jobs, from Jobs and Pods."""
    names = set()
    for one in objects:
        labels = one["metadata"].get("labels") or {}
        if LABEL_SPARE in labels:
            names.add(labels.get("batch.kubernetes.io/job-name") or one["metadata"]["name"])
    return names


def _place(spare: SpareJob) -> tuple[str, str]:
    return spare.namespace, spare.server


def fits_spare(stored: StoredBuild, *, egress: Callable[[str], Egress]) -> bool:
    """Return whether a spare Pod can run a build.

    The build must use the default resources and networks, since the spare Pod has those.

    Args:
        stored: the build.
        egress: see `Provisioner`.
    """
    build = pod_build(stored)
    project = str(stored.document.get("projectId", ""))
    own = (build.limits, build.disk_gb, egress(project))
    return own == (ResourceLimits(), 0, egress(""))


def pod_build(stored: StoredBuild) -> PodBuild:
    """Return the facts of a build that its Job needs."""
    build = decode_message(Build, stored.document).value
    options = build.options or BuildOptions()
    return PodBuild(
        id=stored.id,
        timeout=build.timeout or timedelta(seconds=DEFAULT_TIMEOUT_S),
        limits=MACHINE_LIMITS[options.machine_type],
        disk_gb=options.disk_size_gb,
    )
