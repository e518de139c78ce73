"""The seam between the server, its workers and the database they share.

A build is kept as its *document* (the Build resource in protobuf JSON form, camelCase keys), as in
`build_store`. Beside it the store keeps what is not the resource's (`stored_build`): the request as
it came in, the place in the queue, the lease of the process that runs it, the plan, the wish to
cancel.

Rules for every implementation (contract suite: tests/contract/test_server_store.py):

* Thread-safe; several processes on one database; no method blocks for longer than a statement.
* Each method is one transaction. What it returned is durable, also against a power cut.
* Only the holder of a build's lease writes its document while it is WORKING. Each claim gets a
  higher *fence* than all before it; a write with an older one raises `LeaseLost`.
* A final status is never left; the first writer of it wins.
* Every failure is a `StoreError`; instants are aware UTC datetimes; ``now`` is always an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from buildrunner.store.build_store import Document
from buildrunner.store.protocols.access import AccessStore
from buildrunner.store.protocols.deliveries import DeliveryStore
from buildrunner.store.protocols.outbox import NotifierStore, OutboxStore
from buildrunner.store.protocols.retention import RetentionStore
from buildrunner.store.protocols.schedules import ScheduleStore
from buildrunner.store.protocols.stored_build import (
    BuildPage,
    Lease,
    NewBuild,
    StoredBuild,
    WaitReason,
)
from buildrunner.store.protocols.triggers import TriggerStore


class BuildQueue(Protocol):
    """What a worker needs."""

    def claim(
        self,
        worker_name: str,
        *,
        now: datetime,
        lease_s: float,
        limit: int,
        trusted_only: bool = False,
    ) -> tuple[StoredBuild, Lease] | None:
        """Take the next build that may run: highest priority, then oldest.

        None when nothing may run: queue empty, ``limit`` builds WORKING on this server's worker, or
        every candidate's group full or kept for another worker, or untrusted where ``trusted_only``
        leaves those waiting. The document stays QUEUED until
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

    def renew(self, lease: Lease, *, now: datetime, lease_s: float) -> str:
        """Keep the lease; `StoredBuild.cancel_reason`. Raises `LeaseLost`."""
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


class ServerStore(
    BuildQueue,
    TriggerStore,
    ScheduleStore,
    OutboxStore,
    NotifierStore,
    DeliveryStore,
    AccessStore,
    RetentionStore,
    Protocol,
):
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

    def request_cancel(
        self, project_id: str, build_id: str, *, now: datetime, reason: str = "cancelled"
    ) -> StoredBuild:
        """Cancel: a build that waits is CANCELLED at once, a claimed one by its process.

        The first ``reason`` ("cancelled by TOKEN") stays.

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

    def recent_builds(
        self, project_id: str, trigger_ids: Sequence[str], *, count: int
    ) -> dict[str, list[StoredBuild]]:
        """The newest builds of each of some triggers, newest first: one question for all.

        Args:
            project_id: the project.
            trigger_ids: of triggers that exist.
            count: how many of each.

        Returns:
            Builds by trigger; nothing of those that have none.
        """
        ...

    def pending(self) -> list[tuple[StoredBuild, Document]]:
        """The builds that wait for an approval, with the settings beside their triggers.

        Builds of triggers without settings are not among them.
        """
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

    def ping(self) -> None:
        """Raise `StoreError` unless the database answers."""
        ...

    def close(self) -> None:
        """Let go of the database. Idempotent."""
        ...
