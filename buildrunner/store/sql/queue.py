"""The queue in SQL: claims and leases of builds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    false,
    func,
    insert,
    not_,
    or_,
    select,
    true,
    update,
)

from buildrunner.engine.deployments import MOST_OF_BUILD
from buildrunner.errors import Conflict, InvalidRecord, LeaseLost, NotFound, StoreError
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.store.build_store import Document
from buildrunner.store.model.builds import (
    LOST_WORKER,
    TRIGGER_GROUP,
    WAITS_FOR,
    WITHOUT_POOL,
    BuildQueue,
    ClaimedBuild,
    ClaimScope,
    Lease,
    StoredBuild,
    WaitingBuild,
    WaitReason,
    cancel_reason,
)
from buildrunner.store.model.deployments import RecordedDeployment, checked
from buildrunner.store.model.remote import REMOTE
from buildrunner.store.records import instant_of, microseconds, requeued_document, reused_steps_of
from buildrunner.store.sql.builds import end_superseded, end_waiting, put_tags
from buildrunner.store.sql.database import SqlPart, insert_new, lock_queue, within_time
from buildrunner.store.sql.deployments import ids_of_build
from buildrunner.store.sql.deployments import record as record_deployment
from buildrunner.store.sql.outbox import note_change
from buildrunner.store.sql.rows import (
    CLAIMED_COLUMNS,
    COLUMNS,
    AnyRow,
    claimed_build,
    document_columns,
    lease_of,
    stored_build,
    tags_of,
)
from buildrunner.store.sql.schema import (
    CLAIMED,
    ENDED,
    FENCE,
    PENDING,
    WAITING,
    builds,
    counters,
    is_claimed,
    is_waiting,
    plans,
    project_turns,
    spare_claims,
    superseded,
)
from buildrunner.store.sql.servers import forget_log_home, note_log_home, notify_servers

# Recorded in one transaction, since other requests may write between transactions.
_DEPLOYMENTS_AT_ONCE = 25

QUEUE_ORDER = (builds.c.priority.desc(), builds.c.create_time, builds.c.id)
_EXPIRED_AT_ONCE = 1000
_LISTED_AT_ONCE = 1000
_LISTED_OF_PROJECT = 100  # in one pool


class SqlQueue(SqlPart, BuildQueue):
    """The queue of builds in SQL. `BuildQueue` documents the methods that workers call."""

    def claim(
        self,
        worker_name: str,
        *,
        now: datetime,
        lease_s: float,
        limit: int,
        scope: ClaimScope = WITHOUT_POOL,
    ) -> tuple[StoredBuild, Lease] | None:
        claimable = _claimable(worker_name, scope)
        with self._database.read() as connection:  # most calls find nothing, and must not lock
            if connection.execute(select(builds.c.id).where(claimable).limit(1)).first() is None:
                return None
            mine = select(func.count()).where(is_claimed, builds.c.worker == worker_name)
            if connection.execute(mine).scalar_one() >= limit:
                return None
        with self._database.write() as connection:
            fence = lock_queue(connection) + 1
            running = connection.execute(_running_groups(worker_name)).all()
            if sum(one.of_worker for one in running) >= limit:
                return None
            if scope.spare and _spare_claim(connection, scope.spare):
                return None
            candidates = select(builds.c.id, builds.c.only_worker).where(
                claimable, not_(_in_full_group(running))
            )
            first = candidates.order_by(*QUEUE_ORDER).limit(1).with_for_update(skip_locked=True)
            claimed = Counter[str]()
            for one in running:
                claimed[one.project_id] += one.number
            for turn in _turns(connection, claimed):
                if scope.projects and turn.project not in scope.projects:
                    continue
                of_project = first.where(builds.c.project_id == turn.project)
                found = connection.execute(of_project).first()
                if found is not None:
                    build_id, home = found
                    _note_turn(connection, turn.project, fence)
                    note_log_home(connection, build_id, home or (*scope.servers, worker_name)[0])
                    if scope.spare:
                        values = {"job": scope.spare, "build_id": build_id}
                        connection.execute(insert(spare_claims).values(values))
                    return _give(connection, build_id, fence, worker_name, now, lease_s)
            return None

    def claim_again(
        self,
        build_id: str,
        worker_name: str,
        *,
        now: datetime,
        lease_s: float,
        instead_of: int = 0,
    ) -> tuple[StoredBuild, Lease]:
        with self._database.write() as connection:
            fence = lock_queue(connection) + 1
            found = (
                select(builds.c.phase, builds.c.status, builds.c.fence)
                .where(builds.c.id == build_id)
                .with_for_update()
            )
            row = connection.execute(found).first()
            if row is None:
                raise NotFound(f"there is no build {build_id} here")
            if row.phase == ENDED:
                raise Conflict(f"build {build_id} has ended already, with status {row.status}")
            if row.phase != CLAIMED:
                raise Conflict(f"build {build_id} was never claimed")
            if instead_of and row.fence != instead_of:
                raise Conflict(f"build {build_id} was taken over by another process")
            if not worker_name.startswith(REMOTE):  # such a worker stores no logs
                note_log_home(connection, build_id, worker_name)
            return _give(connection, build_id, fence, worker_name, now, lease_s)

    def run_again(
        self, build_id: str, *, instead_of: int, now: datetime, reason: str
    ) -> StoredBuild:
        """Queue a claimed build again, from its first step: its worker is lost.

        Its time in the queue starts again. A build whose cancellation is requested becomes
        CANCELLED. The next server that claims the build has its log from then on.

        Args:
            build_id: the build.
            instead_of: the fence of the lost worker, whose lease ends.
            now: the time.
            reason: the reason, for the label `LOST_WORKER`; empty for no label, if no process
                began.

        Raises:
            Conflict: no such build, it has ended, or another worker has it.
        """
        held = _held(Lease(build_id, instead_of))
        with self._database.write() as connection:
            fence = lock_queue(connection) + 1
            found = select(*COLUMNS, builds.c.expires_at, builds.c.create_time)
            row = connection.execute(found.where(held).with_for_update()).first()
            if row is None:
                raise Conflict(f"build {build_id} has ended, or another worker has it")
            build = stored_build(row)
            columns = document_columns(
                requeued_document(build.document, reused_steps_of(build.labels))
            )
            labels = {**build.labels, LOST_WORKER: reason} if reason else build.labels
            note_change(connection, held, columns)
            _note_fence(connection, fence)
            connection.execute(
                update(builds)
                .where(held)
                .values(
                    **columns,
                    fence=fence,
                    phase=WAITING,
                    worker="",
                    process="",
                    lease_until=None,
                    # A claim without a process counts, since `supervisor` gives up after some.
                    attempts=0 if reason else build.attempts,
                    labels=msgspec.json.encode(labels),
                    expires_at=microseconds(now) + row.expires_at - row.create_time,
                )
            )
            if build.cancel_requested:
                detail = f"{build.cancel_reason} before it began"
                end_waiting(connection, build_id, columns["document"], "CANCELLED", now, detail)
            else:
                forget_log_home(connection, build_id)
                notify_servers(connection)  # the status may be the same
            of_id = select(*COLUMNS).where(builds.c.id == build_id)
            return stored_build(connection.execute(of_id).one())

    def set_process(self, lease: Lease, process: str) -> None:
        with self._database.write() as connection:
            changed = connection.execute(
                update(builds)
                .where(_held(lease), builds.c.process.in_(("", process)))
                .values(process=process)
            ).rowcount
            if not changed:
                raise _lost(lease)

    def renew(self, lease: Lease, *, now: datetime, lease_s: float) -> str:
        until = microseconds(now + timedelta(seconds=lease_s))
        with self._database.write() as connection:
            row = connection.execute(
                update(builds)
                .where(_held(lease))
                .values(lease_until=until)
                .returning(builds.c.cancel_requested, builds.c.labels)
            ).first()
            if row is None:
                raise _lost(lease)
            labels = msgspec.json.decode(row.labels, type=dict[str, str])
            return cancel_reason(labels) if row.cancel_requested else ""

    def record(self, lease: Lease, document: Document) -> None:
        if document.get("id") != lease.build_id:
            raise StoreError(f"this is not the document of build {lease.build_id}")
        columns = document_columns(document)
        del columns["create_time"]  # as it was created
        if columns["status"] in FINAL_STATUSES:
            columns.update(phase=ENDED, worker="", process="", lease_until=None)
        # Both decide a build's rights, so no holder of a lease may change them.
        same = (
            builds.c.project_id == document.get("projectId", ""),
            builds.c.trigger_id == columns["trigger_id"],
        )
        with self._database.write() as connection:
            note_change(connection, _held(lease), columns)
            changed = connection.execute(
                update(builds).where(_held(lease), *same).values(columns)
            ).rowcount
            if not changed:
                raise _refused(connection, lease)
            put_tags(connection, lease.build_id, tags_of(document))

    def record_plan(self, lease: Lease, plan: bytes) -> None:
        with self._database.write() as connection:
            held = select(builds.c.id).where(_held(lease)).with_for_update()
            if connection.execute(held).first() is None:
                raise _lost(lease)
            values = {"build_id": lease.build_id, "plan": plan}
            if not insert_new(connection, plans, values):
                which = plans.c.build_id == lease.build_id
                connection.execute(update(plans).where(which).values(plan=plan))

    def record_deployments(self, lease: Lease, made: Sequence[RecordedDeployment]) -> None:
        held = select(builds.c.project_id, builds.c.untrusted).where(_held(lease))
        with self._database.read() as connection:
            row = connection.execute(held).first()
            known = ids_of_build(connection, lease.build_id)
        if row is None:
            raise _lost(lease)
        if row.untrusted:
            return
        own = [checked(one, project_id=row.project_id, build_id=lease.build_id) for one in made]
        new = [one for one in own if one.id not in known]
        _check_number(len(known) + len(new))
        for begin in range(0, len(new), _DEPLOYMENTS_AT_ONCE):
            few = new[begin : begin + _DEPLOYMENTS_AT_ONCE]
            with self._database.write() as connection:
                if connection.execute(held.with_for_update()).first() is None:
                    raise _lost(lease)
                _check_number(len(ids_of_build(connection, lease.build_id)) + len(few))
                for one in few:
                    record_deployment(connection, one)

    def claimed(self, worker_name: str | None = None) -> list[ClaimedBuild]:
        found = select(*CLAIMED_COLUMNS).where(is_claimed).order_by(builds.c.fence)
        if worker_name is not None:
            found = found.where(builds.c.worker == worker_name)
        with self._database.read() as connection:
            return [claimed_build(row) for row in connection.execute(found)]

    def holder(self, lease: Lease) -> ClaimedBuild | None:
        """Return the claimed build of a lease; None once the lease is lost."""
        with self._database.read() as connection:
            row = connection.execute(select(*CLAIMED_COLUMNS).where(_held(lease))).first()
            return None if row is None else claimed_build(row)

    def undisturbed(self) -> set[Lease]:
        """Return the leases of claimed builds without a cancellation request."""
        found = select(builds.c.id, builds.c.fence).where(is_claimed, ~builds.c.cancel_requested)
        with self._database.read() as connection:
            return {Lease(row.id, row.fence) for row in connection.execute(found)}

    def expire(self, *, now: datetime) -> list[str]:
        end_superseded(self._database, now)
        over = is_waiting & (builds.c.expires_at <= microseconds(now))
        with self._database.read() as connection:
            found = select(builds.c.id).where(over).order_by(*QUEUE_ORDER).limit(_EXPIRED_AT_ONCE)
            ids = connection.execute(found).scalars().all()
        expired = []
        for build_id in within_time(ids):
            still = select(builds.c.document).where(builds.c.id == build_id, over)
            with self._database.write() as connection:
                document = connection.execute(still.with_for_update(skip_locked=True)).scalar()
                if document is not None:  # it was neither claimed nor ended meanwhile
                    detail = "it waited longer than queueTtl"
                    end_waiting(connection, build_id, document, "EXPIRED", now, detail)
                    expired.append(build_id)
        return expired

    def waiting_in(
        self,
        pools: Collection[str],
        ids: Collection[str] | None = None,
        *,
        no_forks: Collection[str] = (),
        resting: Collection[str] = (),
    ) -> list[WaitingBuild]:
        """Return the builds of some pools that wait for a worker, at most a thousand.

        The first build of each project in each pool comes first, then the second ones, and so on,
        so that many builds of one project don't crowd out builds of others. Projects are in the
        order of their turns, builds of a project in the order of the queue. The last builds of a
        project are those that can't start, since enough builds of their group come first, or for a
        reason below.

        Args:
            pools: the pools.
            ids: return these builds only, if they wait in such a pool.
            no_forks: the pools where untrusted builds can't start.
            resting: ids of builds that can't start.
        """
        turn = func.coalesce(project_turns.c.fence, 0)
        of_group = (builds.c.project_id, builds.c.group_name)
        place = func.row_number().over(partition_by=of_group, order_by=QUEUE_ORDER)
        waiting = (
            select(
                builds.c.id,
                builds.c.project_id,
                builds.c.pool,
                builds.c.group_name,
                builds.c.group_limit,
                builds.c.untrusted,
                builds.c.labels,
                builds.c.priority,
                builds.c.create_time,
                place.label("place"),
                turn.label("turn"),
            )
            .outerjoin(project_turns, project_turns.c.project_id == builds.c.project_id)
            .where(
                is_waiting,
                builds.c.pool.in_(list(pools)),
                builds.c.id.not_in(select(superseded.c.build_id)),
                true() if ids is None else builds.c.id.in_(list(ids)),
            )
            .subquery()
        )
        one = waiting.c
        can_not_start = or_(
            (one.group_name != "") & (one.group_limit > 0) & (one.place > one.group_limit),
            one.untrusted & one.pool.in_(list(no_forks)),
            one.id.in_(list(resting)),
        )
        order = (case((can_not_start, 1), else_=0), one.priority.desc(), one.create_time, one.id)
        rank = func.row_number().over(partition_by=(one.pool, one.project_id), order_by=order)
        ranked = select(waiting, rank.label("rank")).subquery()
        found = (
            select(ranked)
            .where(ranked.c.rank <= _LISTED_OF_PROJECT)
            .order_by(ranked.c.rank, ranked.c.turn, ranked.c.create_time, ranked.c.id)
            .limit(_LISTED_AT_ONCE)
        )
        with self._database.read() as connection:
            return [
                WaitingBuild(
                    id=row.id,
                    project=row.project_id,
                    pool=row.pool,
                    group=row.group_name,
                    group_limit=row.group_limit,
                    untrusted=row.untrusted,
                    waits_for=msgspec.json.decode(row.labels).get(WAITS_FOR, ""),
                    create_time=instant_of(row.create_time),
                )
                for row in connection.execute(found)
            ]

    def spare_claim(self, job: str) -> str:
        """Return the id of the build that a spare Job has claimed; empty if it has claimed none."""
        with self._database.read() as connection:
            return _spare_claim(connection, job)

    def spare_claims(self, jobs: Collection[str]) -> dict[str, str]:
        """Return the id of the build that each of some spare Jobs has claimed, if it has."""
        if not jobs:
            return {}
        found = select(spare_claims).where(spare_claims.c.job.in_(list(jobs)))
        with self._database.read() as connection:
            return {row.job: row.build_id for row in connection.execute(found)}

    def note_waits(self, texts: Mapping[str, str]) -> None:
        """Record why builds of pools wait: id -> sentence. Skips claimed builds."""
        if not texts:
            return
        waiting = is_waiting & builds.c.id.in_(list(texts))
        found = select(builds.c.id, builds.c.labels).where(waiting).order_by(builds.c.id)
        with self._database.write() as connection:
            for row in connection.execute(found.with_for_update(skip_locked=True)).all():
                labels = {**msgspec.json.decode(row.labels), WAITS_FOR: texts[row.id]}
                mine = update(builds).where(builds.c.id == row.id)
                connection.execute(mine.values(labels=msgspec.json.encode(labels)))

    def length(self) -> int:
        """Count the builds that are QUEUED and unclaimed."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).where(is_waiting)).scalar_one())

    def running(self) -> int:
        """Count the builds that are claimed and have not ended."""
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).where(is_claimed)).scalar_one())

    def why_waiting(
        self,
        build_id: str,
        *,
        now: datetime,  # noqa: ARG002
        limit: int,
        worker: str = "",
    ) -> WaitReason | None:
        """Return why a build has not begun; None if it has.

        Args:
            build_id: the build.
            now: the time.
            limit: maximum number of concurrent builds of the server; 0 if it runs none.
            worker: name of the server's worker; empty: all running builds count.

        Raises:
            NotFound: no such build.
        """
        found = select(
            builds.c.id,
            builds.c.phase,
            builds.c.project_id,
            builds.c.priority,
            builds.c.create_time,
            builds.c.group_name,
            builds.c.group_limit,
            builds.c.pool,
            builds.c.labels,
        ).where(builds.c.id == build_id)
        with self._database.read() as connection:
            row = connection.execute(found).first()
            if row is None:
                raise NotFound(f"there is no build {build_id} here")
            if row.phase == PENDING:
                return WaitReason(kind="approval", text="It waits for an approval.")
            if row.phase != WAITING:
                return None
            return _reason(connection, row, limit, worker)


def _check_number(deployments: int) -> None:
    if deployments > MOST_OF_BUILD:
        raise InvalidRecord(f"a build has at most {MOST_OF_BUILD:,} deployments that count")


def _claimable(worker_name: str, scope: ClaimScope) -> ColumnElement[bool]:
    """Return the condition for builds that a worker may claim, ignoring limits of groups."""
    return and_(
        is_waiting,
        builds.c.id.not_in(select(superseded.c.build_id)),
        builds.c.only_worker.in_({"", worker_name, *scope.servers}),
        builds.c.pool == scope.pool,
        builds.c.project_id.in_(scope.projects) if scope.projects else true(),
        not_(builds.c.untrusted) if scope.trusted_only else true(),
        builds.c.id == scope.build_id if scope.build_id else true(),
    )


def _spare_claim(connection: Connection, job: str) -> str:
    found = select(spare_claims.c.build_id).where(spare_claims.c.job == job)
    return str(connection.execute(found).scalar() or "")


class _Turn(NamedTuple):
    """A project with waiting builds. The project with the smallest turn starts its next build.

    Attributes:
        running: builds of the project that are claimed.
        fence: fence of its last claim; 0 for none.
        since: creation time of its oldest waiting build.
        project: the project.
        waiting: number of waiting builds.
    """

    running: int
    fence: int
    since: int
    project: str
    waiting: int


def _turns(connection: Connection, claimed: Mapping[str, int]) -> list[_Turn]:
    """Return the projects with waiting builds, in the order of their turns.

    Args:
        connection: the connection.
        claimed: number of claimed builds of each project that has some.
    """
    found = (
        select(
            builds.c.project_id,
            func.count().label("waiting"),
            func.min(builds.c.create_time).label("since"),
        )
        .where(is_waiting)
        .group_by(builds.c.project_id)
        .subquery()
    )
    fence = func.coalesce(project_turns.c.fence, 0).label("fence")
    joined = found.outerjoin(project_turns, project_turns.c.project_id == found.c.project_id)
    waiting = connection.execute(select(*found.c, fence).select_from(joined)).all()
    return sorted(
        _Turn(
            running=claimed.get(row.project_id, 0),
            fence=row.fence,
            since=row.since,
            project=row.project_id,
            waiting=row.waiting,
        )
        for row in waiting
    )


def _note_turn(connection: Connection, project: str, fence: int) -> None:
    mine = project_turns.c.project_id == project
    if not connection.execute(update(project_turns).where(mine).values(fence=fence)).rowcount:
        connection.execute(insert(project_turns).values(project_id=project, fence=fence))


def _in_full_group(running: Sequence[AnyRow]) -> ColumnElement[bool]:
    """Return the condition for waiting builds whose group has reached its limit.

    Args:
        running: rows of `_running_groups`.
    """
    full = [
        and_(
            builds.c.project_id == one.project_id,
            builds.c.group_name == one.group_name,
            builds.c.group_limit.between(1, one.number),
        )
        for one in running
        if one.group_name
    ]
    return or_(false(), *full)


def _give(
    connection: Connection,
    build_id: str,
    fence: int,
    worker_name: str,
    now: datetime,
    lease_s: float,
) -> tuple[StoredBuild, Lease]:
    _note_fence(connection, fence)
    row = connection.execute(
        update(builds)
        .where(builds.c.id == build_id)
        .values(
            phase=CLAIMED,
            worker=worker_name,
            process="",
            fence=fence,
            lease_until=microseconds(now + timedelta(seconds=lease_s)),
            attempts=builds.c.attempts + 1,
        )
        .returning(*COLUMNS)
    ).one()
    build = stored_build(row)
    return build, lease_of(build)


def _note_fence(connection: Connection, fence: int) -> None:
    connection.execute(update(counters).where(counters.c.name == FENCE).values(value=fence))


def _held(lease: Lease) -> ColumnElement[bool]:
    return and_(builds.c.id == lease.build_id, builds.c.fence == lease.fence, is_claimed)


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"another process runs build {lease.build_id} by now, or it has ended")


def _refused(connection: Connection, lease: Lease) -> StoreError:
    """Return the error for a document that could not be written."""
    found = select(builds.c.fence, builds.c.status, builds.c.phase)
    row = connection.execute(found.where(builds.c.id == lease.build_id)).first()
    if row is not None and row.fence == lease.fence:
        if row.phase == CLAIMED:
            text = f"build {lease.build_id} is of another project or trigger than this document"
            return StoreError(text)
        return Conflict(f"build {lease.build_id} has ended already, with status {row.status}")
    return _lost(lease)


_NAMED = 10


def _reason(connection: Connection, row: AnyRow, limit: int, worker: str) -> WaitReason:
    before = _before(row)
    # All of them, and filtered here: they are few, and SQLite would choose a worse index.
    running = connection.execute(_running).all()
    waiting = select(func.count()).select_from(builds).where(before)
    rank = int(connection.execute(waiting).scalar_one())
    turns = _turns(connection, Counter(one.project_id for one in running))
    position = _position(turns, row.project_id, rank)
    if row.pool:
        noted = msgspec.json.decode(row.labels, type=dict[str, str]).get(WAITS_FOR)
        text = noted or f"It waits for a worker of the pool {row.pool}."
        return WaitReason(kind="pool", text=text, position=position)
    if limit <= 0:
        text = "It waits for a worker on another machine, since this server runs no builds."
        return WaitReason(kind="no_worker", text=text, position=position)
    in_group = [one.id for one in running if _group(one) == _group(row)]
    if row.group_name and 0 < row.group_limit <= len(in_group):
        same = builds.c.group_name == row.group_name
        return WaitReason(
            kind="group_limit",
            text=_running_builds(len(in_group), _whose(row.group_name))
            + f", and no more than {row.group_limit} may; it is number {position} in the queue.",
            ahead=_ahead(connection, in_group, before & same),
            position=position,
        )
    here = [one for one in running if worker in ("", one.worker)]
    if len(here) >= limit:
        own = [one.id for one in here if one.project_id == row.project_id]
        return WaitReason(
            kind="server_limit",
            text=f"{_running_builds(len(here))}, as many as the server lets; it is number"
            f" {position} in the queue.",
            ahead=_ahead(connection, own, before),
            position=position,
        )
    text = "It is next." if position == 1 else f"It is number {position} in the queue."
    ahead = _ahead(connection, [], before)
    return WaitReason(kind="turn", text=text, ahead=ahead, position=position)


def _position(turns: Sequence[_Turn], project: str, rank: int) -> int:
    """Return the place in the queue of a build that waits after ``rank`` builds of its project.

    Builds of other projects come first while their project has fewer running builds than the
    build's project will have at its turn, or as many and an earlier turn.
    """
    own = next((turn for turn in turns if turn.project == project), None)
    if own is None:  # it was just claimed
        return 1
    load = own.running + rank

    def claimed_before(other: _Turn) -> int:
        is_first = (other.running > own.running) or (other.running == own.running and other < own)
        return min(other.waiting, max(0, load - other.running + is_first))

    return 1 + rank + sum(claimed_before(turn) for turn in turns if turn.project != project)


_running = (
    select(builds.c.id, builds.c.project_id, builds.c.group_name, builds.c.worker)
    .where(is_claimed)
    .order_by(*QUEUE_ORDER)
)


def _running_groups(worker_name: str) -> Select[Any]:
    """Return the query for the groups of claimed builds, with their sizes."""
    group = (builds.c.project_id, builds.c.group_name)
    of_worker = func.sum(case((builds.c.worker == worker_name, 1), else_=0))
    sizes = (func.count().label("number"), of_worker.label("of_worker"))
    return select(*group, *sizes).where(is_claimed).group_by(*group)


def _group(row: AnyRow) -> tuple[str, str]:
    return row.project_id, row.group_name


def _before(row: AnyRow) -> ColumnElement[bool]:
    """Return the waiting builds of the same project that are claimed first."""
    older = or_(
        builds.c.create_time < row.create_time,
        and_(builds.c.create_time == row.create_time, builds.c.id < row.id),
    )
    return and_(
        is_waiting,
        builds.c.project_id == row.project_id,
        or_(
            builds.c.priority > row.priority,
            and_(builds.c.priority == row.priority, older),
        ),
    )


def _ahead(
    connection: Connection, running: list[str], before: ColumnElement[bool]
) -> tuple[str, ...]:
    """Return the ids of at most ten builds: running ones, then earlier ones of the project."""
    left = max(_NAMED - len(running), 0)
    found = select(builds.c.id).where(before).order_by(*QUEUE_ORDER).limit(left)
    return tuple(running[:_NAMED]) + tuple(connection.execute(found).scalars())


def _whose(group: str) -> str:
    own = group.startswith(TRIGGER_GROUP)
    return " of this trigger" if own else f' of group "{group}"'


def _running_builds(number: int, which: str = "") -> str:
    return f"1 build{which} runs" if number == 1 else f"{number} builds{which} run"
