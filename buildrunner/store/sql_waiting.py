"""Why a build waits: the queue as a person asks about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, func, or_, select

from buildrunner.errors import NotFound
from buildrunner.store.sql_part import SqlPart
from buildrunner.store.sql_queue import QUEUE_ORDER
from buildrunner.store.sql_schema import PENDING, WAITING, builds, is_claimed, is_waiting
from buildrunner.store.stored_build import TRIGGER_GROUP, WaitReason

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection

    from buildrunner.store.sql_rows import AnyRow

_NAMED = 10


class SqlWaiting(SqlPart):
    """The part of `ServerStore` that tells why a build has not begun."""

    def why_waiting(self, build_id: str, *, now: datetime, limit: int) -> WaitReason | None:  # noqa: ARG002
        """See `ServerStore.why_waiting`."""
        found = select(
            builds.c.id,
            builds.c.phase,
            builds.c.project_id,
            builds.c.priority,
            builds.c.create_time,
            builds.c.group_name,
            builds.c.group_limit,
        ).where(builds.c.id == build_id)
        with self._database.read() as connection:
            row = connection.execute(found).first()
            if row is None:
                raise NotFound(f"there is no build {build_id} here")
            if row.phase == PENDING:
                return WaitReason(kind="approval", text="It waits for an approval.")
            if row.phase != WAITING:
                return None
            return _reason(connection, row, limit)


def _reason(connection: Connection, row: AnyRow, limit: int) -> WaitReason:
    before = _before(row)
    waiting = select(func.count()).select_from(builds).where(before)
    position = int(connection.execute(waiting).scalar_one()) + 1
    if limit <= 0:
        text = "No worker takes builds now."
        return WaitReason(kind="no_worker", text=text, position=position)
    # All of them, and chosen from here: they are few, and SQLite would take a worse index.
    running = connection.execute(_running).all()
    in_group = [one.id for one in running if _group(one) == _group(row)]
    if row.group_name and 0 < row.group_limit <= len(in_group):
        same = (builds.c.group_name == row.group_name) & (builds.c.project_id == row.project_id)
        return WaitReason(
            kind="group_limit",
            text=_running_builds(len(in_group), _whose(row.group_name))
            + f", and no more than {row.group_limit} may; it is number {position} in the queue.",
            ahead=_ahead(connection, in_group, before & same),
            position=position,
        )
    if len(running) >= limit:
        return WaitReason(
            kind="server_limit",
            text=f"{_running_builds(len(running))}, as many as the server lets; it is number"
            f" {position} in the queue.",
            ahead=_ahead(connection, [one.id for one in running], before),
            position=position,
        )
    text = "It is next." if position == 1 else f"It is number {position} in the queue."
    ahead = _ahead(connection, [], before)
    return WaitReason(kind="turn", text=text, ahead=ahead, position=position)


_running = (
    select(builds.c.id, builds.c.project_id, builds.c.group_name)
    .where(is_claimed)
    .order_by(*QUEUE_ORDER)
)


def _group(row: AnyRow) -> tuple[str, str]:
    return row.project_id, row.group_name


def _before(row: AnyRow) -> ColumnElement[bool]:
    """Those that wait too and are taken first."""
    older = or_(
        builds.c.create_time < row.create_time,
        and_(builds.c.create_time == row.create_time, builds.c.id < row.id),
    )
    return and_(
        is_waiting,
        or_(
            builds.c.priority > row.priority,
            and_(builds.c.priority == row.priority, older),
        ),
    )


def _ahead(
    connection: Connection, running: list[str], before: ColumnElement[bool]
) -> tuple[str, ...]:
    """Ids of at most ten builds: those that run, then those that come first."""
    left = max(_NAMED - len(running), 0)
    found = select(builds.c.id).where(before).order_by(*QUEUE_ORDER).limit(left)
    return tuple(running[:_NAMED]) + tuple(connection.execute(found).scalars())


def _whose(group: str) -> str:
    own = group.startswith(TRIGGER_GROUP)
    return " of this trigger" if own else f' of group "{group}"'


def _running_builds(number: int, which: str = "") -> str:
    return f"1 build{which} runs" if number == 1 else f"{number} builds{which} run"
