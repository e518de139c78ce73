"""The seam between the server and the database: deleting builds, and what is left of them.

Rules as in `server_store`; contract suite: tests/contract/test_retention_store.py.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from buildrunner.store.keep_rule import KeepRule


class RetentionStore(Protocol):
    """Deletes builds that have ended, with their tags, plans and sent messages.

    A build's log and workspace are files in the folder of the server that ran it. So that each
    server of the database can delete its files, the id of a deleted build is kept for a while.
    """

    def delete_build(self, project_id: str, build_id: str, *, now: datetime) -> None:
        """Delete a build.

        Raises:
            NotFound: no such build.
            Conflict: it has not ended, or a build that has not ended resumes it.
        """
        ...

    def build_projects(self) -> list[str]:
        """The projects that have builds."""
        ...

    def delete_old_builds(
        self, project_id: str, rule: KeepRule, *, now: datetime, limit: int
    ) -> int:
        """Delete the oldest builds that a rule does not keep, up to ``limit``; how many.

        Builds that ended within the last hour are kept, since their viewers may still read them.
        So are the last success of each trigger that exists, and what an ongoing build resumes.
        """
        ...

    def builds_deleted_since(self, moment: datetime) -> list[str]:
        """Ids of builds that were deleted at that moment or later."""
        ...

    def forget_deleted_builds(self, *, before: datetime) -> int:
        """Forget the ids of builds that were deleted before a moment; how many."""
        ...
