"""Deletes builds in SQL."""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    delete,
    exists,
    func,
    insert,
    not_,
    or_,
    select,
)

from buildrunner.errors import Conflict, NotFound
from buildrunner.store.keep_rule import KeepRule
from buildrunner.store.model.outbox import WAITING
from buildrunner.store.records import FROM_BUILD, microseconds
from buildrunner.store.sql.database import SqlPart
from buildrunner.store.sql.schema import (
    builds,
    deleted_builds,
    is_ended,
    is_ongoing,
    outbox,
    spare_claims,
    triggers,
)

_GRACE = timedelta(hours=1)


class SqlRetention(SqlPart):
    """Deletes builds that have ended, with their tags, plans and messages that no longer wait.

    A build's log and workspace are files in the folder of the server that ran it. The ids of
    deleted builds are kept for a while, so that each server of the database can delete its files.
    """

    def delete(self, project_id: str, build_id: str, *, now: datetime) -> None:
        """Delete a build.

        Raises:
            NotFound: no such build.
            Conflict: it has not ended, or an ongoing build resumes it.
        """
        which = (builds.c.id == build_id) & (builds.c.project_id == project_id)
        found = select(builds.c.status, is_ended.label("ended")).where(which).with_for_update()
        with self._database.write() as connection:
            row = connection.execute(found).first()
            if row is None:
                raise NotFound(f"there is no build {build_id} here")
            if not row.ended:
                raise Conflict(f"build {build_id} has not ended: it is {row.status}")
            if build_id in _resumed(connection, project_id):
                raise Conflict(f"a build that has not ended resumes build {build_id}")
            _delete(connection, [build_id], now)

    def projects(self) -> list[str]:
        """Return the projects with builds."""
        found: list[str] = []
        # From one project to the next along the index, instead of over all builds.
        following = select(func.min(builds.c.project_id))
        with self._database.read() as connection:
            project = connection.execute(following).scalar()
            while project is not None:
                found.append(project)
                after = following.where(builds.c.project_id > project)
                project = connection.execute(after).scalar()
        return found

    def delete_old(self, project_id: str, rule: KeepRule, *, now: datetime, limit: int) -> int:
        """Delete the oldest builds that a rule does not keep, up to ``limit``.

        Returns their number.

        Builds that ended within the last hour are kept, since their viewers may still read them.
        So are the last success of each existing trigger, and builds that an ongoing build resumes.
        """
        with self._database.read() as connection:
            which = _beyond(connection, project_id, rule, now)
            if which is None:
                return 0
            oldest = (
                select(builds.c.id)
                .where(which)
                .order_by(builds.c.create_time, builds.c.id.desc())
                .limit(limit)
            )
            ids = list(connection.execute(oldest).scalars())
        if not ids:
            return 0
        still = select(builds.c.id).where(which, builds.c.id.in_(ids)).with_for_update()
        with self._database.write() as connection:
            ids = list(connection.execute(still).scalars())
            _delete(connection, ids, now)
        return len(ids)

    def deleted_since(self, moment: datetime) -> list[str]:
        """Return ids of builds that were deleted at that time or later."""
        at = microseconds(moment)
        found = select(deleted_builds.c.build_id).where(deleted_builds.c.deleted_at >= at)
        with self._database.read() as connection:
            return list(connection.execute(found).scalars())

    def forget(self, *, before: datetime) -> int:
        """Delete the ids of builds that were deleted before a time. Returns their number.

        Also deletes the claims of the spare Jobs that ran these builds. A claim stays until then,
        so that the token of the Job's Pod can't claim a second build.
        """
        old = deleted_builds.c.deleted_at < microseconds(before)
        of_old = spare_claims.c.build_id.in_(select(deleted_builds.c.build_id).where(old))
        with self._database.write() as connection:
            connection.execute(delete(spare_claims).where(of_old))
            return connection.execute(delete(deleted_builds).where(old)).rowcount


def _beyond(
    connection: Connection, project_id: str, rule: KeepRule, now: datetime
) -> ColumnElement[bool] | None:
    """Return the condition for builds that a rule does not keep; None if it keeps all."""
    of_project = builds.c.project_id == project_id
    beyond: list[ColumnElement[bool]] = []
    newest_beyond = 0
    if rule.max_age is not None:
        cutoff = microseconds(now - rule.max_age)
        beyond.append(builds.c.ended_at < cutoff)
        newest_beyond = cutoff
    if rule.max_count is not None:
        first = (
            select(builds.c.create_time, builds.c.id)
            .where(of_project, is_ended)
            .order_by(builds.c.create_time.desc(), builds.c.id)
            .offset(rule.max_count)
            .limit(1)
        )
        row = connection.execute(first).first()
        if row is not None:
            same_time = and_(builds.c.create_time == row.create_time, builds.c.id >= row.id)
            beyond.append(or_(builds.c.create_time < row.create_time, same_time))
            newest_beyond = max(newest_beyond, row.create_time)
    if not beyond:
        return None
    return and_(
        of_project,
        builds.c.create_time <= newest_beyond,  # ends the search along the index
        is_ended,
        builds.c.ended_at < microseconds(now - _GRACE),
        or_(*beyond),
        not_(_is_last_success()),
        builds.c.id.not_in(_resumed(connection, project_id)),
    )


def _resumed(connection: Connection, project_id: str) -> set[str]:
    """Return the ids of builds whose kept workspace an ongoing build still needs."""
    ongoing = select(builds.c.labels).where(is_ongoing, builds.c.project_id == project_id)
    found = (
        msgspec.json.decode(labels, type=dict[str, str])
        for labels in connection.execute(ongoing).scalars()
    )
    return {labels[FROM_BUILD] for labels in found if FROM_BUILD in labels}


def _is_last_success() -> ColumnElement[bool]:
    """Return the condition for the last success of an existing trigger."""
    newer = builds.alias()
    is_newer = or_(
        newer.c.create_time > builds.c.create_time,
        and_(newer.c.create_time == builds.c.create_time, newer.c.id < builds.c.id),
    )
    return and_(
        builds.c.status == "SUCCESS",
        exists().where(
            triggers.c.project_id == builds.c.project_id, triggers.c.id == builds.c.trigger_id
        ),
        not_(
            exists().where(
                newer.c.project_id == builds.c.project_id,
                newer.c.trigger_id == builds.c.trigger_id,
                newer.c.status == "SUCCESS",
                is_newer,
            )
        ),
    )


def _delete(connection: Connection, ids: list[str], now: datetime) -> None:
    if not ids:
        return
    of_builds = and_(outbox.c.build_id.in_(ids), outbox.c.state != WAITING)
    connection.execute(delete(outbox).where(of_builds))
    connection.execute(delete(deleted_builds).where(deleted_builds.c.build_id.in_(ids)))
    at = microseconds(now)
    connection.execute(
        insert(deleted_builds), [{"build_id": build_id, "deleted_at": at} for build_id in ids]
    )
    connection.execute(delete(builds).where(builds.c.id.in_(ids)))
