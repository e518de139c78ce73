"""The seam between the server, its workers and the database they share.

A build is kept as its *document* (the Build resource in protobuf JSON form, camelCase keys), as in
`build_store`. Beside it the store keeps what is not the resource's: the request as it came in, the
place in the queue, the lease of the process that runs it, the plan, the wish to cancel.

Rules for every implementation (contract suite: tests/contract/test_server_store.py):

* Thread-safe; several processes on one database; no method blocks for longer than a statement.
* Each method is one transaction. What it returned is durable, also against a power cut.
* Only the holder of a build's lease writes its document while it is WORKING. Each claim gets a
  higher *fence* than all before it; a write with an older one raises `LeaseLost`.
* A final status is never left; the first writer of it wins.
* Every failure is a `StoreError`; instants are aware UTC datetimes; ``now`` is always an argument.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from buildrunner.store.delivery_store import DeliveryStore
from buildrunner.store.outbox_store import NotifierStore, OutboxStore
from buildrunner.store.schedule_store import ScheduleStore

if TYPE_CHECKING:
    from buildrunner.store.build_store import Document


class NewBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build to keep.

    Attributes:
        document: the Build as of its creation: id, projectId, createTime and status (QUEUED, or
            PENDING when it waits for an approval) are set.
        request: the Build as the caller sent it; what ``retry`` starts from.
        location: ``global`` or a region.
        request_id: idempotency key of the caller; empty for none. A second creation with the same
            key and project returns the first build.
        priority: higher runs earlier; among equals the older one does.
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
        push, untrusted, priority, group, group_limit, only_worker, labels: see `NewBuild`.
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
    labels: dict[str, str] = {}

    @property
    def id(self) -> str:
        """The build's id."""
        return str(self.document["id"])

    @property
    def status(self) -> str:
        """Name of its status."""
        return str(self.document["status"])


class Lease(msgspec.Struct, frozen=True):
    """The right to write one build's document, until somebody else claims it."""

    build_id: str
    fence: int


class BuildPage(msgspec.Struct, frozen=True):
    """Some builds, newest first, and the token of the next page; empty on the last one."""

    builds: tuple[StoredBuild, ...]
    next_page_token: str


class WaitReason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a build has not begun.

    Attributes:
        kind: ``approval``, ``server_limit``, ``group_limit``, ``turn`` (it is simply next) or
            ``no_worker``.
        text: one sentence for a person.
        ahead: ids of the builds that it waits for, at most ten, those that run first.
        position: place in the queue, from 1; 0 when it is not in the queue.
    """

    kind: str
    text: str
    ahead: tuple[str, ...] = ()
    position: int = 0


class BuildQueue(Protocol):
    """What a worker needs."""

    def claim(
        self, worker_name: str, *, now: datetime, lease_s: float, limit: int
    ) -> tuple[StoredBuild, Lease] | None:
        """Take the next build that may run: highest priority, then oldest.

        None when nothing may run: queue empty, ``limit`` builds WORKING on this server's worker, or
        every candidate's group full or kept for another worker. The document stays QUEUED until
        its process records WORKING.
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
            instead_of: the fence of the dead process; of several who saw it dead only one gets the
                build. 0 takes it from whoever has it.

        Raises:
            NotFound: no such build.
            Conflict: it has ended, was never claimed, or was taken over by somebody else.
        """
        ...

    def set_process(self, lease: Lease, process: str) -> None:
        """Note which process runs the build. Raises `LeaseLost`."""
        ...

    def renew(self, lease: Lease, *, now: datetime, lease_s: float) -> bool:
        """Keep the lease; whether the build is to be cancelled. Raises `LeaseLost`."""
        ...

    def record(self, lease: Lease, document: Document) -> None:
        """Replace the document; a final status ends the lease. Raises `LeaseLost`, `Conflict`."""
        ...

    def record_plan(self, lease: Lease, plan: bytes) -> None:
        """Keep the compiled plan (JSON). Raises `LeaseLost`."""
        ...

    def claimed(self, worker_name: str | None = None) -> list[StoredBuild]:
        """Builds with a lease that have not ended: those of one worker, or all."""
        ...

    def expire(self, *, now: datetime) -> list[str]:
        """Make QUEUED builds that nobody claimed EXPIRED when their time is over; their ids.

        Source: the queue's time does not run while a build waits for an approval (O-6).
        """
        ...


class ServerStore(BuildQueue, ScheduleStore, OutboxStore, NotifierStore, DeliveryStore, Protocol):
    """Builds, queue, triggers, schedules, outbox, deliveries, tokens, audit log."""

    def create_build(self, new: NewBuild) -> StoredBuild:
        """Keep a new build, or return the one made with the same ``request_id``.

        Raises:
            Conflict: a build of that id exists.
        """
        ...

    def get_build(self, project_id: str, build_id: str) -> StoredBuild:
        """One build. Raises `NotFound`."""
        ...

    def find_build(self, build_id: str) -> StoredBuild:
        """One build by id alone, whatever its project. Raises `NotFound`."""
        ...

    def list_builds(
        self,
        project_id: str,
        *,
        location: str | None = None,
        filter: str = "",
        page_size: int = 50,
        page_token: str = "",
        look_at: int = 5000,
    ) -> BuildPage:
        """Builds of a project, newest first; of one location unless None.

        New builds don't shift pages. A page may be short, even empty, although there is a next one:
        when a filter asks for what has no index, a call looks at ``look_at`` builds. At most 1000
        builds come at once.

        Raises:
            FilterError: the filter is not of the grammar, or names an unknown field.
            PageTokenError: the token is not one of ours, or belongs to another filter or project.
        """
        ...

    def request_cancel(self, project_id: str, build_id: str, *, now: datetime) -> StoredBuild:
        """Cancel: a build that waits is CANCELLED at once, a claimed one by its process.

        Raises:
            NotFound: no such build.
            Conflict: it has ended.
        """
        ...

    def decide_approval(
        self,
        project_id: str,
        build_id: str,
        document: Document,
        *,
        approved: bool,
        expires_at: datetime | None = None,
    ) -> StoredBuild:
        """Replace a PENDING build's document: now QUEUED, or CANCELLED when rejected.

        Args:
            project_id: the build's project.
            build_id: the build.
            document: with its new status.
            approved: whether it may run.
            expires_at: when it becomes EXPIRED, counted from now on; None for as it was created.

        Raises:
            NotFound: no such build.
            Conflict: it is not PENDING.
        """
        ...

    def pending(self) -> list[StoredBuild]:
        """All builds that wait for an approval."""
        ...

    def why_waiting(self, build_id: str, *, now: datetime, limit: int) -> WaitReason | None:
        """Why it has not begun; None when it has. Raises `NotFound`."""
        ...

    def plan(self, build_id: str) -> bytes | None:
        """The compiled plan; None before there is one. Raises `NotFound`."""
        ...

    def queue_length(self) -> int:
        """How many builds are QUEUED and unclaimed."""
        ...

    def ended_before(self, moment: datetime, *, limit: int = 1000) -> list[str]:
        """Ids of builds that ended before a moment, oldest first (for retention)."""
        ...

    def forget(self, build_id: str) -> None:
        """Delete an ended build. Idempotent."""
        ...

    # Triggers: documents of BuildTrigger resources.

    def create_trigger(self, project_id: str, location: str, document: Document) -> Document:
        """Keep a trigger; its ``id`` and ``createTime`` are set. Raises `Conflict` on its name."""
        ...

    def get_trigger(self, project_id: str, id_or_name: str) -> Document:
        """One trigger. Raises `NotFound`."""
        ...

    def list_triggers(
        self, project_id: str, *, page_size: int = 50, page_token: str = ""
    ) -> tuple[list[Document], str]:
        """Triggers by name, and the next page's token. Raises `PageTokenError`."""
        ...

    def replace_trigger(self, project_id: str, trigger_id: str, document: Document) -> Document:
        """Replace a trigger's document. Raises `NotFound`, `Conflict` on its name."""
        ...

    def delete_trigger(self, project_id: str, id_or_name: str) -> None:
        """Delete a trigger; its builds remain. Raises `NotFound`."""
        ...

    # Access.

    def create_token(self, token: AccessToken) -> None:
        """Keep a token (its hash). Raises `Conflict` on its name."""
        ...

    def find_token(self, hash_hex: str) -> AccessToken | None:
        """The token of that hash, revoked or not; None when unknown."""
        ...

    def list_tokens(self) -> list[AccessToken]:
        """All tokens, by name."""
        ...

    def revoke_token(self, name: str, *, now: datetime) -> None:
        """Make a token useless. Raises `NotFound`."""
        ...

    def audit(self, entry: AuditEntry) -> None:
        """Append to the audit log."""
        ...

    def audit_log(self, *, limit: int = 100, before_id: int = 0) -> list[AuditEntry]:
        """The newest entries first; only those older than entry ``before_id`` when given."""
        ...

    def ping(self) -> None:
        """Raise `StoreError` unless the database answers."""
        ...

    def close(self) -> None:
        """Let go of the database. Idempotent."""
        ...


class AccessToken(msgspec.Struct, frozen=True, kw_only=True):
    """Who may do what, with the hash of a secret that only its bearer has.

    Attributes:
        name: unique, for people.
        hash_hex: SHA-256 of the token, in hex (a token has 256 random bits: no salt is needed).
        scopes: of ``read``, ``submit``, ``approve``, ``admin``; admin includes all.
        projects: project ids it is good for; empty for all.
        create_time: when it was made.
        revoke_time: when it was revoked; None while it is good.
    """

    name: str
    hash_hex: str
    scopes: tuple[str, ...]
    projects: tuple[str, ...] = ()
    create_time: datetime
    revoke_time: datetime | None = None


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what to what, and what came of it.

    Attributes:
        id: rising; 0 before it is stored.
        at: when.
        who: the token's name, ``local`` without authentication, or ``server``.
        action: ``builds.create``, ``triggers.delete``, ...
        target: project and id of what it was done to.
        outcome: HTTP status, or ``ok``.
        address: where the request came from.
    """

    at: datetime
    who: str
    action: str
    target: str
    outcome: str
    address: str = ""
    id: int = 0
