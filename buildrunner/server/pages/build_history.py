"""What went before a build: how long its trigger's builds took, the last success, its attempts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from buildrunner.errors import NotFound
from buildrunner.server.pages.estimate import LOOKED_AT, usual_seconds
from buildrunner.server.pages.revision import revision_of
from buildrunner.store.attempt_labels import ATTEMPTS, FIRST_ATTEMPT, FROM_BUILD, FROM_STEP

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext
    from buildrunner.server.pages.build_view import BuildView
    from buildrunner.store.stored_build import StoredBuild

_GREENS = 20
_MOST_ATTEMPTS = 30


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One try of the same build: its id, how it ended, who wanted it, and whether it is shown."""

    id: str
    status: str
    submitter: str
    create_time: str
    from_step: str
    is_this: bool


class BuildHistory:
    """Asks the store. Every question is answered off an index."""

    def __init__(self, context: ServerContext) -> None:
        self._store = context.store

    def usual_s(self, project: str, trigger_id: str) -> float | None:
        """How long the builds of a trigger take that succeed; None without any."""
        if not trigger_id:
            return None
        wanted = f'trigger_id="{trigger_id}" AND status="SUCCESS"'
        found = self._store.list_builds(project, filter=wanted, page_size=LOOKED_AT)
        whole = (one for one in found.builds if FROM_BUILD not in one.labels)
        return usual_seconds(one.document for one in whole)

    def last_green(self, stored: StoredBuild, build: BuildView) -> StoredBuild | None:
        """The last build of its trigger before it that succeeded, of its branch if there is one."""
        if not build.trigger_id:
            return None
        wanted = (
            f'trigger_id="{build.trigger_id}" AND status="SUCCESS"'
            f' AND create_time<"{stored.document.get("createTime", "")}"'
        )
        found = self._store.list_builds(build.project, filter=wanted, page_size=_GREENS).builds
        ref = build.revision.ref
        same = (one for one in found if revision_of(one.document).ref == ref)
        return next(same, found[0] if found else None)

    def attempts(self, stored: StoredBuild) -> list[Attempt]:
        """All tries of the same build, the first one first; empty when there is only one."""
        project = stored.document["projectId"]
        first = self._build(project, stored.labels.get(FIRST_ATTEMPT, "")) or stored
        ids = first.labels.get(ATTEMPTS, "").split()[-_MOST_ATTEMPTS:]
        tried = [self._build(project, one) for one in ids]
        found = [first, *(one for one in tried if one is not None)]
        if len(found) == 1:
            return []
        return [
            Attempt(
                id=one.id,
                status=one.status,
                submitter=one.labels.get("submitter", ""),
                create_time=one.document.get("createTime", ""),
                from_step=one.labels.get(FROM_STEP, ""),
                is_this=one.id == stored.id,
            )
            for one in found
        ]

    def _build(self, project: str, build_id: str) -> StoredBuild | None:
        """One build; None when retention took it."""
        try:
            return self._store.get_build(project, build_id) if build_id else None
        except NotFound:
            return None
