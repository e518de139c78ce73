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
from buildrunner.kubernetes.reasons import BuildJob
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


class Decisions(msgspec.Struct, frozen=True, kw_only=True):
    """The actions of one pass of the provisioner.

    Attributes:
        create: builds that get a Job, in this order.
        delete: Jobs to delete.
        lost: builds whose Pod is gone, each with the reason.
        waits: why builds wait, by id, as a sentence.
    """

    create: tuple[WaitingBuild, ...]
    delete: tuple[BuildJob, ...]
    lost: tuple[tuple[ClaimedBuild, str], ...]
    waits: Mapping[str, str]


def decide(now: Situation) -> Decisions:
    """Return what to do in a situation."""
    jobs = {job.build_id: job for job in now.jobs}
    held = [
        build
        for build in now.claimed
        if build.pool in now.pools and build.worker.startswith(_HELD_BY_POD)
    ]
    waits: dict[str, str] = {}
    delete = [
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
    create, limited = _new_jobs(now, jobs, held)
    return Decisions(
        create=create,
        delete=tuple(delete),
        lost=tuple(_lost(held, jobs, now.now)),
        waits={**waits, **limited},
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


def _new_jobs(
    now: Situation, jobs: Mapping[str, BuildJob], held: Sequence[ClaimedBuild]
) -> tuple[tuple[WaitingBuild, ...], dict[str, str]]:
    """Return the builds that get a Job, and the reasons why others do not.

    As with claims, a build of the project that has the fewest comes first. A Pod counts
    for the limit of its pool until it has ended, which is later than its build. A build whose Job
    was refused waits for a while. It does not count for the pool, but for its project: otherwise
    the project would keep the fewest builds, and its refused ones would hold back the others.
    """
    of_pool = Counter(build.pool for build in held)
    over = {*now.ended, *(build.id for build in now.waiting if build.id not in jobs)}
    of_pool.update(pool for build_id, pool in now.pods.items() if build_id in over)
    of_project = Counter(build.project for build in now.claimed)
    of_group = Counter((build.project, build.group) for build in now.claimed)
    candidates = []
    waits: dict[str, str] = {}
    for build in now.waiting:
        if build.id in jobs:
            _count(build, of_pool, of_project, of_group)
        elif build.id in now.refused and now.now - now.refused[build.id] < RETRY:
            of_project[build.project] += 1
        elif build.untrusted and build.pool in now.too_weak:
            waits[build.id] = (
                f"The pool {build.pool} isolates builds by {now.pools[build.pool].isolation}, which"
                " is too weak for builds of forks."
            )
        else:
            candidates.append(build)
    chosen: list[WaitingBuild] = []
    while candidates:
        full = {name for name, pool in now.pools.items() if of_pool[name] >= pool.max_builds}
        for build in candidates:
            if build.pool in full:
                most = now.pools[build.pool].max_builds
                waits[build.id] = f"No more than {_builds(most)} of the pool {build.pool} may run."
        candidates = [build for build in candidates if build.pool not in full]
        if not candidates:
            break
        build = min(candidates, key=lambda one: of_project[one.project])
        candidates.remove(build)
        if build.group and 0 < build.group_limit <= of_group[build.project, build.group]:
            waits[build.id] = f"No more than {_builds(build.group_limit)} of its group may run."
        else:
            _count(build, of_pool, of_project, of_group)
            chosen.append(build)
    return tuple(chosen), waits


def _builds(number: int) -> str:
    return "1 build" if number == 1 else f"{number} builds"


def _count(
    build: WaitingBuild,
    of_pool: Counter[str],
    of_project: Counter[str],
    of_group: Counter[tuple[str, str]],
) -> None:
    of_pool[build.pool] += 1
    of_project[build.project] += 1
    of_group[build.project, build.group] += 1
