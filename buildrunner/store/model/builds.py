"""A build as the server's store returns it, the queue as a worker sees it, and known servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

import msgspec

from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.store.build_store import Document
from buildrunner.store.model.deployments import RecordedDeployment
from buildrunner.triggers.labels import BUILT_REF, TRIGGER_NAME

CANCELLED_BY: Final = "cancelled_by"
"""The label that says who cancelled a build: ``cancelled by TOKEN``."""

LOST_WORKER: Final = "lost_worker"
"""The label of a build that begins again, since its worker was lost before any step began."""

WAITS_FOR: Final = "waits_for"
"""The label of a build of a pool that says why it waits, as a sentence."""

TRIGGER_GROUP: Final = "trigger:"
"""And a trigger's id: the group of its builds, unless it names another."""


class NewBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build to keep.

    Attributes:
        document: the Build as of its creation: id, projectId, createTime and status (QUEUED;
            PENDING when it waits for an approval; FAILURE when it can't run) are set.
        request: the Build as the caller sent it; what ``retry`` starts from.
        location: ``global`` or a region.
        request_id: idempotency key of the caller; empty for none. A second creation with the same
            key and project returns the first build.
        priority: higher runs earlier than other builds of the project; among equals the older one
            does.
        group: builds of a project in one concurrency group share ``group_limit``; empty for none
            (a trigger's group is ``trigger:ID`` unless it names another).
        group_limit: how many of the group may run at the same time; 0 for no limit.
        supersede: on creation, ``cancel_queued`` cancels the group's queued builds, ``cancel_all``
            its running ones too, empty none.
        expires_at: when a build that still waits becomes EXPIRED (``queueTtl``).
        push: push images at the end.
        untrusted: the config comes from somebody who may not have secrets or the socket.
        only_worker: the one worker that may claim it, by its name: the source lies in a folder of
            that server; empty for any.
        pool: only workers of this pool may claim it; empty: only workers without a pool may.
        labels: free facts for triggers and pages (who submitted it, delivery id, ...).
        attempt_of: the first try of what this build tries again; that build's label ``attempts``
            then lists this one, too. Empty for a first try.
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
    """A build as it is in the store.

    Attributes:
        document: the resource as of now.
        request: as it came in.
        location: ``global`` or a region.
        worker: who holds the lease, as ``worker_name`` of `ServerStore.claim`; empty for nobody.
        process: the process that runs it (`process_owner`); empty for none.
        fence: of the last claim; 0 when it was never claimed.
        lease_until: when the lease ends unless renewed.
        attempts: how often it was claimed.
        cancel_requested: somebody wants it cancelled.
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
        """The origin of the request to cancel, as text for users; empty without such a request."""
        return cancel_reason(self.labels) if self.cancel_requested else ""

    @property
    def id(self) -> str:
        """The build's id."""
        return str(self.document["id"])

    @property
    def status(self) -> str:
        """Name of its status."""
        return str(self.document["status"])


class ListedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build as the lists of pages show it, without its document, whose size is up to its author.

    Attributes:
        id, project, status, trigger_id: of the build.
        create_time: when it was created.
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
        start_time: when its process recorded WORKING; None before that.
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
        create_time: when it was created.
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
    """The right to write one build's document, until somebody else claims it."""

    build_id: str
    fence: int


class ClaimScope(msgspec.Struct, frozen=True, kw_only=True):
    """The builds that a worker may claim.

    Attributes:
        pool: the worker's pool: it claims the builds of this pool alone. Empty: builds without one.
        projects: the projects whose builds it may claim; empty for all.
        build_id: the only build that it may claim; empty for any.
        uploads_of: name of the server's own worker, whose uploads this worker can read, too.
        trusted_only: untrusted builds wait.
        spare: the spare Job that claims. It claims nothing more after its first build.
    """

    pool: str = ""
    projects: tuple[str, ...] = ()
    build_id: str = ""
    uploads_of: str = ""
    trusted_only: bool = False
    spare: str = ""


WITHOUT_POOL: Final = ClaimScope()
"""Every build that has no pool."""


LEASE_S: Final = 30.0
"""How long a lease lasts unless its holder renews it."""

RETURNS_S: Final = 45.0
"""How long a worker on another host may stay away after its lease, once steps have begun."""


class BuildPage(msgspec.Struct, frozen=True):
    """Some builds, newest first, and the token of the next page; empty on the last one."""

    builds: tuple[StoredBuild, ...]
    next_page_token: str


class WaitReason(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a build has not begun.

    Attributes:
        kind: ``approval``, ``server_limit``, ``group_limit``, ``turn`` (it is simply next),
            ``pool`` (it waits for a worker of its pool) or ``no_worker``.
        text: one sentence for a person.
        ahead: ids of the builds that it waits for, at most ten: those that run first, then those of
            its project.
        position: place in the queue, from 1; 0 when it is not in the queue.
    """

    kind: str
    text: str
    ahead: tuple[str, ...] = ()
    position: int = 0


def cancel_reason(labels: Mapping[str, str]) -> str:
    """Return the origin of a cancellation, as text for users, from the build's labels."""
    return labels.get(CANCELLED_BY, "cancelled")


class BuildQueue(Protocol):
    """The queue of builds as a worker sees it: builds are claimed, run under a lease, and ended.

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
        """Take the next build that may run.

        It is one of the project with the fewest claimed builds; among several such projects, of the
        one whose last claim is the longest ago. In the project, the highest priority comes first,
        then the oldest build.

        Returns None if no build may run: the queue is empty, ``limit`` builds are WORKING on this
        server's worker, or every candidate waits for its group or for another worker, or is
        outside of ``scope``. The document stays QUEUED until the
        build's process records WORKING.
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
            worker_name: who takes it.
            now: the time.
            lease_s: how long the lease holds, in seconds.
            instead_of: the fence of the dead process. Of several servers that saw it die, one gets
                the build. 0 takes the build from any holder.

        Raises:
            NotFound: no such build.
            Conflict: it has ended, was never claimed, or was taken over by somebody else.
        """
        ...

    def set_process(self, lease: Lease, process: str) -> None:
        """Note which process runs the build.

        Raises:
            LeaseLost: the lease is somebody else's, or another process began the build under it.
        """
        ...

    def renew(self, lease: Lease, *, now: datetime, lease_s: float) -> str:
        """Renew the lease; return `StoredBuild.cancel_reason`. Raises `LeaseLost`."""
        ...

    def record(self, lease: Lease, document: Document) -> None:
        """Replace the document; a final status ends the lease. Raises `LeaseLost`, `Conflict`."""
        ...

    def record_plan(self, lease: Lease, plan: bytes) -> None:
        """Keep the compiled plan (JSON). Raises `LeaseLost`."""
        ...

    def record_deployments(self, lease: Lease, made: Sequence[RecordedDeployment]) -> None:
        """Record what steps of the build deployed; again changes nothing.

        Builds of strangers' code (``untrusted``) deploy nothing that counts: the records are the
        project's word on what runs at its targets.

        Raises:
            LeaseLost: the lease is another worker's.
            InvalidRecord: a record breaks a rule of `Deployment`, or the build would have more
                than `MOST_OF_BUILD`; none is recorded.
        """
        ...

    def claimed(self, worker_name: str | None = None) -> list[ClaimedBuild]:
        """Builds with a lease that have not ended: those of one worker, or all."""
        ...

    def expire(self, *, now: datetime) -> list[str]:
        """Make QUEUED builds EXPIRED that were not claimed in time; return their ids.

        A call takes a few seconds at most, and leaves what is over then to the next call. It ends
        superseded builds, too.

        Source: the queue's time does not run while a build waits for an approval (O-6).
        """
        ...


class KnownServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that uses the database.

    Attributes:
        name: the name of its worker; the same after a restart.
        url: where the other servers reach it, without a slash at its end.
        started_at: when it was started last.
    """

    name: str
    url: str
    started_at: datetime


def build_asker(stored: StoredBuild, default_project: str) -> Asker:
    """Return what the server knows of a build that asks for secrets, not what its config says.

    Args:
        stored: the build.
        default_project: the project of a build that names none.
    """
    trigger = str(stored.document.get("buildTriggerId", ""))
    name = stored.labels.get(TRIGGER_NAME, "")
    return Asker(
        use=Use.BUILD,
        project=str(stored.document.get("projectId", default_project)),
        trusted=not stored.untrusted,
        triggers=tuple(filter(None, (trigger, name))) if trigger else (),
        ref=stored.labels.get(BUILT_REF, "") if trigger else "",
    )
