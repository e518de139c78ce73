"""Which Jobs to create and to delete, and which builds are lost. Pure.

The module compares Jobs in the cluster and builds in the database, in both directions. A Job of a
build that is not in this database belongs to another server, and stays unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

import msgspec

from buildrunner.kubernetes.pool import Pool
from buildrunner.kubernetes.reasons import BuildJob, SpareJob
from buildrunner.store.model.builds import LEASE_S, RETURNS_S, ClaimedBuild, WaitingBuild
from buildrunner.store.model.remote import REMOTE

POD: Final = "pod:"
"""Prefix of the names of workers that are in the Pod of a build; the Pod's UID follows."""

RETRY: Final = timedelta(seconds=30)
"""How long a build waits for its next Job, after one that ended or was refused."""

_HELD_BY_POD: Final = f"{REMOTE}{POD}"
_ENDS_ITSELF: Final = timedelta(seconds=15)
_SILENT: Final = timedelta(seconds=LEASE_S - 10)
# The network of a node may be cut for a while. The server then gives the build up anyway.
_RETURNS: Final = timedelta(seconds=RETURNS_S - 5)
# A ready spare Pod claims a build at once, unless something is wrong with it.
_SPARE_CLAIMS: Final = timedelta(seconds=5)


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """Builds and Jobs at one time. The builds were read first.

    Attributes:
        pools: the pools of the settings, by name.
        waiting: the builds of these pools that wait, in the order of the queue.
        claimed: all builds that are claimed.
        jobs: the Jobs of builds in the namespaces of the pools.
        pods: the pool of each Pod there that has not ended, by the id of its build.
        ended: when a build ended, for builds of active Jobs and of such Pods that neither wait nor
            are claimed.
        now: the time.
        too_weak: the pools that isolate builds less than the server demands for forks.
        refused: when the cluster refused the Job of a build for a reason of its own, by build id.
        spares: the spare Jobs of these pools that have claimed no build.
        versions: the version that spare Jobs of a pool must have, by the name of the pool.
        fitting: ids of waiting builds that a spare Pod can run.
    """

    pools: Mapping[str, Pool]
    waiting: Sequence[WaitingBuild]
    claimed: Sequence[ClaimedBuild]
    jobs: Sequence[BuildJob]
    pods: Mapping[str, str]
    ended: Mapping[str, datetime]
    now: datetime
    too_weak: frozenset[str] = frozenset()
    refused: Mapping[str, datetime] = {}
    spares: Sequence[SpareJob] = ()
    versions: Mapping[str, str] = {}
    fitting: frozenset[str] = frozenset()


class Decisions(msgspec.Struct, frozen=True, kw_only=True):
    """The actions of one pass of the provisioner.

    Attributes:
        create: builds that get a Job, in this order.
        delete: Jobs to delete.
        lost: builds whose Pod is gone, each with the reason.
        waits: why builds wait, by id, as a sentence.
        spares: the pools that get another spare Job, each as often as it gets one.
    """

    create: tuple[WaitingBuild, ...]
    delete: tuple[BuildJob | SpareJob, ...]
    lost: tuple[tuple[ClaimedBuild, str], ...]
    waits: Mapping[str, str]
    spares: tuple[str, ...] = ()


def decide(now: Situation) -> Decisions:
    """Return what to do in a situation."""
    jobs = {job.build_id: job for job in now.jobs}
    held = [
        build
        for build in now.claimed
        if build.pool in now.pools and build.worker.startswith(_HELD_BY_POD)
    ]
    waits: dict[str, str] = {}
    delete: list[BuildJob | SpareJob] = [
        job
        for job in now.jobs
        if job.build_id in now.ended
        and job.ended_at is None
        and now.now - now.ended[job.build_id] >= _ENDS_ITSELF
    ]
    for build in now.waiting:
        if (job := jobs.get(build.id)) is None:
            continue
        if job.ended_at is None:
            waits[build.id] = sentence(job.reason or "its Pod starts")
            if job.disrupted or job.node_lost:
                delete.append(job)
            continue
        reason = job.reason or "its Pod ended before it began the build"
        waits[build.id] = f"{sentence(reason)} Another Pod follows."
        if now.now - job.ended_at >= RETRY:
            delete.append(job)
    by_id = {build.id for build in held}
    # A spare Pod has claimed the build of this Job, which is no more needed.
    delete += [
        job
        for job in now.jobs
        if job.build_id in by_id and job.ended_at is None and job is not jobs[job.build_id]
    ]
    plan = _Plan(now, jobs, held)
    plan.choose()
    delete += plan.surplus
    return Decisions(
        create=tuple(plan.chosen),
        delete=tuple(delete),
        lost=tuple(_lost(held, jobs, now.now)),
        waits={**waits, **plan.waits},
        spares=tuple(plan.spares),
    )


def sentence(text: str) -> str:
    """Return a reason as a sentence."""
    return f"{text[:1].upper()}{text[1:]}."


def _is_silent(build: ClaimedBuild, now: datetime) -> bool:
    """Return whether the worker of a build missed two renewals of its lease.

    A worker that renews it lives, whatever the cluster says: its Job may be in another namespace,
    which the settings named before.
    """
    return build.lease_until is not None and build.lease_until - now <= _SILENT


def _lost(
    held: Sequence[ClaimedBuild], jobs: Mapping[str, BuildJob], now: datetime
) -> list[tuple[ClaimedBuild, str]]:
    """Return the builds whose Pod is gone. The store refuses those that end meanwhile."""
    lost = []
    for build in held:
        if build.lease_until is None or not _is_silent(build, now):
            continue
        job = jobs.get(build.id)
        silent = now - build.lease_until
        if job is None:
            lost.append((build, "its Job was deleted"))
        elif job.ended_at is not None:
            lost.append((build, job.reason or "its Pod ended before the build"))
        elif (job.disrupted and silent >= timedelta(0)) or (job.node_lost and silent >= _RETURNS):
            lost.append((build, job.reason))
    return lost


class _Plan:
    """The builds that get a Job, the reasons why others do not, and the spare Jobs.

    As with claims, a build of the project that has the fewest comes first. A Pod counts
    for the limit of its pool until it has ended, which is later than its build. A build whose Job
    was refused waits for a while. It does not count for the pool, but for its project: otherwise
    the project would keep the fewest builds, and its refused ones would hold back the others.

    A build that fits a spare Pod gets no Job while one is ready for it. Another build gets the
    place of a spare Pod where its pool is full.
    """

    def __init__(
        self, now: Situation, jobs: Mapping[str, BuildJob], held: Sequence[ClaimedBuild]
    ) -> None:
        self.chosen: list[WaitingBuild] = []
        self.waits: dict[str, str] = {}
        self.surplus: list[SpareJob] = []
        self.spares: list[str] = []
        self._now = now
        self._jobs = jobs
        self._active = [one for one in now.spares if one.ended_at is None]
        self._idle = {
            name: [
                one
                for one in self._active
                if one.pool == name and not one.gone and one.version == now.versions.get(name)
            ]
            for name in now.pools
        }
        self._of_pool = Counter(build.pool for build in held)
        over = {*now.ended, *(build.id for build in now.waiting if build.id not in jobs)}
        self._of_pool.update(pool for build_id, pool in now.pods.items() if build_id in over)
        self._of_pool.update(one.pool for one in self._active)
        self._of_project = Counter(build.project for build in now.claimed)
        self._of_group = Counter((build.project, build.group) for build in now.claimed)

    def choose(self) -> None:
        """Fill `chosen`, `waits`, `surplus` and `spares`."""
        candidates = self._candidates()
        while candidates:
            full = {
                name
                for name, pool in self._now.pools.items()
                if self._of_pool[name] >= pool.max_builds
            }
            for build in candidates:
                if build.pool in full and not self._takes(build):
                    most = self._now.pools[build.pool].max_builds
                    self.waits[build.id] = (
                        f"No more than {_builds(most)} of the pool {build.pool} may run."
                    )
                    if self._idle[build.pool]:  # its place is free once its Pod has ended
                        self.surplus.append(self._idle[build.pool].pop())
            candidates = [one for one in candidates if one.pool not in full or self._takes(one)]
            if not candidates:
                break
            build = min(candidates, key=lambda one: self._of_project[one.project])
            candidates.remove(build)
            if build.group and 0 < build.group_limit <= self._of_group[build.project, build.group]:
                self.waits[build.id] = (
                    f"No more than {_builds(build.group_limit)} of its group may run."
                )
                continue
            self._of_project[build.project] += 1
            self._of_group[build.project, build.group] += 1
            if self._takes(build):
                spare = next(one for one in self._idle[build.pool] if one.ready)
                self._idle[build.pool].remove(spare)
                self.waits[build.id] = "A spare Pod of its pool takes it."
            else:
                self._of_pool[build.pool] += 1
                self.chosen.append(build)
        self._keep_spares()

    def _candidates(self) -> list[WaitingBuild]:
        candidates = []
        for build in self._now.waiting:
            if build.id in self._jobs:
                self._of_pool[build.pool] += 1
                self._of_project[build.project] += 1
                self._of_group[build.project, build.group] += 1
            elif self._is_refused(build):
                self._of_project[build.project] += 1
            elif build.untrusted and build.pool in self._now.too_weak:
                self.waits[build.id] = (
                    f"The pool {build.pool} isolates builds by"
                    f" {self._now.pools[build.pool].isolation}, which is too weak for builds of"
                    " forks."
                )
            else:
                candidates.append(build)
        return candidates

    def _is_refused(self, build: WaitingBuild) -> bool:
        refused_at = self._now.refused.get(build.id)
        return refused_at is not None and self._now.now - refused_at < RETRY

    def _takes(self, build: WaitingBuild) -> bool:
        """Return whether a spare Pod is about to claim a build."""
        return (
            build.id in self._now.fitting
            and build.create_time is not None
            and self._now.now - build.create_time < _SPARE_CLAIMS
            and any(one.ready for one in self._idle[build.pool])
        )

    def _keep_spares(self) -> None:
        """Replace spare Pods that were claimed, are too many, or are made of something else."""
        now = self._now
        for name, pool in now.pools.items():
            idle = self._idle[name]
            self.surplus += idle[pool.spare :]
            self.surplus += [
                one
                for one in self._active
                if one.pool == name and not one.gone and one.version != now.versions.get(name)
            ]
            failed = sum(
                one.pool == name and one.ended_at is not None and now.now - one.ended_at < RETRY
                for one in now.spares
            )
            missing = min(pool.spare - len(idle) - failed, pool.max_builds - self._of_pool[name])
            if not any(one.pool == name for one in self.surplus):
                self.spares += [name] * missing


def _builds(number: int) -> str:
    return "1 build" if number == 1 else f"{number} builds"
