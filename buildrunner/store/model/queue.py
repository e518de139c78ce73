"""What a worker asks of the queue of builds; `buildrunner.store.sql.store` has the rules."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from buildrunner.store.build_store import Document
from buildrunner.store.model.stored_build import (
    Lease,
    StoredBuild,
)


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
