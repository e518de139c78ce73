"""Builds in the server's store, the queue for workers, and known servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol, TypeAlias

import msgspec

from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.store.build_store import Document
from buildrunner.store.model.deployments import RecordedDeployment
from buildrunner.triggers.labels import BUILT_REF, NAMED_COMMIT, TRIGGER_NAME

CANCELLED_BY: Final = "cancelled_by"
"""The label with the origin of a cancellation: ``cancelled by TOKEN``."""

LOST_WORKER: Final = "lost_worker"
"""The label of a build that starts again, since its worker was lost before any step ran."""

WAITS_FOR: Final = "waits_for"
"""The label of a pool's build with the reason why it waits, as a sentence."""

TRIGGER_GROUP: Final = "trigger:"
"""Prefix of the default concurrency group of a trigger's builds; the trigger's id follows."""


class NewBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build to store.

    Attributes:
        document: the Build at its creation: id, projectId, createTime and status (QUEUED;
            PENDING if it waits for an approval; FAILURE if it can't run) are set.
        request: the Build as the caller sent it; a retry starts from it.
        location: ``global`` or a region.
        request_id: idempotency key of the caller; empty for none. A second creation with the same
            key and project returns the first build.
        priority: builds of a project with a higher priority run first; among equals, the oldest
            runs first.
        group: builds of a project in one concurrency group share ``group_limit``; empty for none
            (a trigger's group is ``trigger:ID`` unless it names another).
        group_limit: maximum number of concurrent builds of the group; 0 for no limit.
        supersede: on creation, ``cancel_queued`` cancels the group's queued builds, ``cancel_all``
            also its running ones; empty cancels none.
        expires_at: time at which the build becomes EXPIRED if it still waits (``queueTtl``).
        push: push images at the end.
        untrusted: the config's author may not have secrets or the socket.
        only_worker: name of the server that has its uploaded source or the workspace with which it
            begins. Only that server, and workers that can read its files, may claim the build.
            Empty for any.
        pool: only workers of this pool may claim it; empty: only workers without a pool may.
        labels: further facts for triggers and pages (submitter, delivery id, ...).
        attempt_of: id of the first try, if this build is a retry; that build's label ``attempts``
            then lists this build. Empty for a first try.
    """

    document: dict[str, Any]
    request: dict[str, Any]
    expires_at: datetime
    location: str = "global"
    request_id: str = ""
    priority: int = 0
    group: str = ""
    group_limit: int = 0
    supersede: str = ""
    push: bool = True
    untrusted: bool = False
    only_worker: str = ""
    pool: str = ""
    labels: dict[str, str] = {}
    attempt_of: str = ""


class StoredBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build in the store.

    Attributes:
        document: the present Build.
        request: the Build as the caller sent it.
        location: ``global`` or a region.
        worker: holder of the lease, the ``worker_name`` of `BuildQueue.claim`; empty for none.
        process: the process that runs it (`process_owner`); empty for none.
        fence: fence of the last claim; 0 if it was never claimed.
        lease_until: end of the lease unless renewed.
        attempts: number of claims.
        cancel_requested: its cancellation is requested.
        push, untrusted, priority, group, group_limit, only_worker, pool, labels: see `NewBuild`.
    """

    document: dict[str, Any]
    request: dict[str, Any]
    location: str = "global"
    worker: str = ""
    process: str = ""
    fence: int = 0
    lease_until: datetime | None = None
    attempts: int = 0
    cancel_requested: bool = False
    push: bool = True
    untrusted: bool = False
    priority: int = 0
    group: str = ""
    group_limit: int = 0
    only_worker: str = ""
    pool: str = ""
    labels: dict[str, str] = {}

    @property
    def cancel_reason(self) -> str:
        """Return the origin of the cancellation request, as text for users; empty without one."""
        return cancel_reason(self.labels) if self.cancel_requested else ""

    @property
    def id(self) -> str:
        """The build's id."""
        return str(self.document["id"])

    @property
    def status(self) -> str:
        """The name of its status."""
        return str(self.document["status"])


class ListedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build for lists on pages, without its document, which may be large.

    Attributes:
        id, project, status, trigger_id: of the build.
        create_time: time of its creation.
    """

    id: str
    project: str
    status: str
    trigger_id: str
    create_time: datetime


class ClaimedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build that a worker has claimed, without its document.

    Attributes:
        id, project, status: of the build.
        start_time: time at which its process recorded WORKING; None before that.
        worker, process, fence, lease_until, cancel_requested, labels, pool, group: see
            `StoredBuild`.
    """

    id: str
    project: str
    status: str
    start_time: datetime | None
    worker: str
    process: str
    fence: int
    lease_until: datetime | None
    cancel_requested: bool
    labels: dict[str, str]
    pool: str = ""
    group: str = ""


class WaitingBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build that waits for a worker, without its document.

    Attributes:
        id, project: of the build.
        pool, group, group_limit, untrusted: see `NewBuild`.
        waits_for: see `WAITS_FOR`.
        create_time: time of its creation.
    """

    id: str
    project: str
    pool: str
    group: str = ""
    group_limit: int = 0
    untrusted: bool = False
    waits_for: str = ""
    create_time: datetime | None = None


class Lease(msgspec.Struct, frozen=True):
    """The right to write one build's document, until another process claims the build."""

    build_id: str
    fence: int


class ClaimScope(msgspec.Struct, frozen=True, kw_only=True):
    """The builds that a worker may claim.

    Attributes:
        pool: the worker's pool: it claims only builds of this pool. Empty: builds without a pool.
        projects: the projects whose builds it may claim; empty for all.
        build_id: the only build that it may claim; empty for any.
        servers: the servers whose uploads and kept workspaces the worker can read: the one that it
            asks, then the others. The log is where the build's files are, else on the first one.
            Empty for the worker of a server.
        trusted_only: untrusted builds wait.
        spare: the spare Job that claims. It claims nothing more after its first build.
    """

    pool: str = ""
    projects: tuple[str, ...] = ()
    build_id: str = ""
    servers: tuple[str, ...] = ()
    trusted_only: bool = False
    spare: str = ""


WITHOUT_POOL: Final = ClaimScope()
"""All builds without a pool."""


LEASE_S: Final = 30.0
"""Duration of a lease unless its holder renews it."""

RETURNS_S: Final = 45.0
"""How long a remote worker may be absent after its lease's end, once steps have begun."""


BuildCondition: TypeAlias = Callable[[Document, Mapping[str, str]], bool]
"""Whether a build belongs to a list, by its document and its labels."""


class BuildPage(msgspec.Struct, frozen=True):
    """Some builds, newest first, and the token of the next page; empty on the last one."""

    builds: tuple[StoredBuild, ...]
    next_page_token: str


class WaitReason(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a build has not begun.

    Attributes:
        kind: ``approval``, ``server_limit``, ``group_limit``, ``turn`` (it is next),
            ``pool`` (it waits for a worker of its pool) or ``no_worker``.
        text: one sentence for the user.
        ahead: ids of the builds of its own project that it waits for, at most ten: running builds
            first, then earlier ones.
        position: place in the queue, from 1; 0 if it is not in the queue.
    """

    kind: str
    text: str
    ahead: tuple[str, ...] = ()
    position: int = 0


def cancel_reason(labels: Mapping[str, str]) -> str:
    """Return the origin of a cancellation, as text for users, from the build's labels."""
    return labels.get(CANCELLED_BY, "cancelled")


class BuildQueue(Protocol):
    """The queue of builds for a worker: builds are claimed, run under a lease, and ended.

    `SqlQueue` implements it on a database; a worker that reaches its server over HTTPS needs these
    methods and no others.
    """

    def claim(
        self,
        worker_name: str,
        *,
        now: datetime,
        lease_s: float,
        limit: int,
        scope: ClaimScope = WITHOUT_POOL,
    ) -> tuple[StoredBuild, Lease] | None:
        """Claim the next build that may run.

        It is a build of the project with the fewest claimed builds; among several such projects,
        of the one with the oldest last claim. In the project, the highest priority comes first,
        then the oldest build.

        Returns None if no build may run: the queue is empty, ``limit`` builds are WORKING on this
        server's worker, or every candidate waits for its group or for another worker, or is
        outside of ``scope``. The document stays QUEUED until the build's process records WORKING.
        """
        ...

    def claim_again(
        self,
        build_id: str,
        worker_name: str,
        *,
        now: datetime,
        lease_s: float,
        instead_of: int = 0,
    ) -> tuple[StoredBuild, Lease]:
        """Take over a claimed build whose process is dead, with a new fence.

        Args:
            build_id: the build.
            worker_name: name of the new holder.
            now: the time.
            lease_s: duration of the lease in seconds.
            instead_of: the fence of the dead process, so that only one of several servers gets
                the build. 0 takes the build from any holder.

        Raises:
            NotFound: no such build.
            Conflict: the build has ended, was never claimed, or was taken over by another server.
        """
        ...

    def set_process(self, lease: Lease, process: str) -> None:
        """Record the process that runs the build.

        Raises:
            LeaseLost: the lease is another holder's, or another process began the build under it.
        """
        ...

    def renew(self, lease: Lease, *, now: datetime, lease_s: float) -> str:
        """Renew the lease; return `StoredBuild.cancel_reason`. Raises `LeaseLost`."""
        ...

    def record(self, lease: Lease, document: Document) -> None:
        """Replace the document; a final status ends the lease. Raises `LeaseLost`, `Conflict`."""
        ...

    def record_plan(self, lease: Lease, plan: bytes) -> None:
        """Store the compiled plan (JSON). Raises `LeaseLost`."""
        ...

    def record_deployments(self, lease: Lease, made: Sequence[RecordedDeployment]) -> None:
        """Record deployments of the build's steps. Idempotent.

        Deployments of untrusted builds are not recorded: the records are the project's statement
        of what runs at its targets.

        Raises:
            LeaseLost: the lease is another worker's.
            InvalidRecord: a record breaks a rule of `Deployment`, or the build would have more
                than `MOST_OF_BUILD`; none is recorded.
        """
        ...

    def claimed(self, worker_name: str | None = None) -> list[ClaimedBuild]:
        """Return builds with a lease that have not ended, of one worker or all."""
        ...

    def expire(self, *, now: datetime) -> list[str]:
        """Expire QUEUED builds that were not claimed in time. Returns their ids.

        A call takes a few seconds at most, and leaves the rest to the next call. It also ends
        superseded builds.

        Source: the queue's time does not include the wait for an approval (O-6).
        """
        ...


class KnownServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that uses the database.

    Attributes:
        name: the name of its worker; the same after a restart.
        url: its URL for other servers, without a slash at its end.
        started_at: time of its last start.
    """

    name: str
    url: str
    started_at: datetime


def build_asker(stored: StoredBuild, default_project: str) -> Asker:
    """Return the asker of a build's secrets, from the server's facts and not from its config.

    Args:
        stored: the build.
        default_project: the project of a build that names no project.
    """
    trigger = str(stored.document.get("buildTriggerId", ""))
    name = stored.labels.get(TRIGGER_NAME, "")
    return Asker(
        use=Use.BUILD,
        project=str(stored.document.get("projectId", default_project)),
        trusted=not stored.untrusted,
        triggers=tuple(filter(None, (trigger, name))) if trigger else (),
        ref=stored.labels.get(BUILT_REF, "") if trigger else "",
        is_named_commit=NAMED_COMMIT in stored.labels,
    )
