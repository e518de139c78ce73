"""Builds in SQL: create, read, cancel, approve."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    delete,
    func,
    insert,
    literal,
    select,
    true,
    update,
)

from buildrunner.errors import Conflict, NotFound, QuotaExceeded
from buildrunner.store.build_store import Document
from buildrunner.store.list_filter import Expression
from buildrunner.store.model.builds import (
    CANCELLED_BY,
    BuildCondition,
    BuildPage,
    ListedBuild,
    NewBuild,
    StoredBuild,
)
from buildrunner.store.records import instant_of, microseconds
from buildrunner.store.sql.database import (
    Database,
    SqlPart,
    insert_new,
    insert_selected,
    lock_queue,
    within_time,
)
from buildrunner.store.sql.filter import PageTokens, bounded
from buildrunner.store.sql.outbox import note_change, note_new
from buildrunner.store.sql.rows import (
    COLUMNS,
    LISTED_COLUMNS,
    MOST_PAGE_BYTES,
    AnyRow,
    bytes_of,
    document_columns,
    ended_columns,
    listed_build,
    new_row,
    page_of,
    phase_of,
    stored_build,
    streamed,
    tags_of,
)
from buildrunner.store.sql.schema import (
    CLAIMED,
    ENDED,
    PENDING,
    WAITING,
    build_tags,
    builds,
    in_phase,
    is_claimed,
    is_ended,
    is_ongoing,
    is_waiting,
    plans,
    superseded,
    trigger_settings,
    triggers,
)
from buildrunner.store.sql.servers import notify_servers
from buildrunner.triggers.labels import DELIVERY

_WAITS_FOR = {WAITING: "in the queue", PENDING: "for an approval"}
_SUPERSEDED = {"cancel_queued": (WAITING,), "cancel_all": (WAITING, CLAIMED)}


class SqlBuilds(SqlPart):
    """Builds: create, read, list, cancel, approve."""

    def __init__(self, database: Database, page_tokens: PageTokens) -> None:
        super().__init__(database)
        self._page_tokens = page_tokens

    def create(self, new: NewBuild, *, most_waiting: int = 0) -> StoredBuild:
        """Store a new build, or return the one with the same ``request_id``.

        Builds that it supersedes are not claimed any more; each ends in its own transaction.

        Args:
            new: the build.
            most_waiting: maximum number of builds of its project that may wait in the queue, and
                that may wait for an approval. Builds of forks have a separate limit of the same
                number. 0 sets no limit.

        Raises:
            Conflict: a build of that id exists.
            QuotaExceeded: too many builds of the project wait.
        """
        row = new_row(new)
        with self._database.write() as connection:
            if new.supersede:
                lock_queue(connection)
            if not insert_new(connection, builds, row):
                return _made_before(connection, new)
            if most_waiting and row["phase"] in _WAITS_FOR:
                _check_waiting(connection, row, most_waiting)
            note_new(connection, row)
            put_tags(connection, row["id"], tags_of(new.document))
            if new.group:
                _supersede(connection, new)
            if new.attempt_of:
                _note_attempt(connection, new.attempt_of, row["id"])
            made = _one(connection, builds.c.id == row["id"])
        if new.group and new.supersede:
            end_superseded(self._database, instant_of(row["create_time"]))
        return made

    def get(self, project_id: str, build_id: str) -> StoredBuild:
        """Return one build. Raises `NotFound`."""
        with self._database.read() as connection:
            return _one(connection, (builds.c.id == build_id) & (builds.c.project_id == project_id))

    def find(self, build_id: str) -> StoredBuild:
        """Return one build by id alone, of any project. Raises `NotFound`."""
        with self._database.read() as connection:
            return _one(connection, builds.c.id == build_id)

    def request_cancel(
        self, project_id: str, build_id: str, *, now: datetime, reason: str = "cancelled"
    ) -> StoredBuild:
        """Cancel a build: a waiting one at once, a claimed one by its process.

        The first ``reason`` ("cancelled by TOKEN") stays.

        Raises:
            NotFound: no such build.
            Conflict: it has ended.
        """
        which = (builds.c.id == build_id) & (builds.c.project_id == project_id)
        with self._database.write() as connection:
            phase = _locked_phase(connection, which)
            columns = select(builds.c.status, builds.c.labels, builds.c.document)
            row = connection.execute(columns.where(which)).one()
            if phase == ENDED:
                raise Conflict(f"build {build_id} has ended already, with status {row.status}")
            if phase == CLAIMED:
                _ask_to_cancel(connection, build_id, row.labels, reason)
            else:
                detail = f"{reason} before it began"
                end_waiting(connection, build_id, row.document, "CANCELLED", now, detail)
            return _one(connection, which)

    def decide_approval(
        self,
        project_id: str,
        build_id: str,
        document: Document,
        *,
        approved: bool,
        expires_at: datetime | None = None,
    ) -> StoredBuild:
        """Replace a PENDING build's document: QUEUED, or CANCELLED if rejected.

        Args:
            project_id: the build's project.
            build_id: the build.
            document: the document with its new status.
            approved: whether it may run.
            expires_at: time at which it becomes EXPIRED; None keeps the time from its creation.

        Raises:
            NotFound: no such build.
            Conflict: it is not PENDING.
        """
        columns = document_columns(document)
        if columns["status"] != ("QUEUED" if approved else "CANCELLED"):
            raise Conflict(f"a build can't become {columns['status']} by an approval")
        if expires_at is not None:
            columns["expires_at"] = microseconds(expires_at)
        which = (builds.c.id == build_id) & (builds.c.project_id == project_id)
        with self._database.write() as connection:
            phase = _locked_phase(connection, which)
            if phase != PENDING:
                status = _one(connection, which).status
                raise Conflict(f"build {build_id} waits for no approval: it is {status}")
            del columns["create_time"]  # as it was created
            columns["phase"] = phase_of(columns["status"])
            note_change(connection, which, columns)
            connection.execute(update(builds).where(which).values(columns))
            put_tags(connection, build_id, tags_of(document))
            return _one(connection, which)

    def recent(
        self, project_id: str, trigger_ids: Sequence[str], *, count: int
    ) -> dict[str, list[ListedBuild]]:
        """Return the newest builds of several triggers, newest first, with one query.

        Args:
            project_id: the project.
            trigger_ids: ids of existing triggers.
            count: maximum number of builds of each.

        Returns:
            Builds by trigger; triggers without builds are missing.
        """
        older = builds.alias()
        since = (
            select(older.c.create_time)
            .where(older.c.project_id == triggers.c.project_id)
            .where(older.c.trigger_id == triggers.c.id)
            .order_by(older.c.create_time.desc(), older.c.id)
            .limit(1)
            .offset(count - 1)
            .correlate(triggers)
            .scalar_subquery()
        )
        # Materialized, so that SQLite starts here, with a short index search for each trigger.
        wanted = (
            select(triggers.c.id, func.coalesce(since, 0).label("since"))
            .where(triggers.c.project_id == project_id, triggers.c.id.in_(trigger_ids))
            .cte("wanted")
            .prefix_with("MATERIALIZED")
        )
        of_it = (builds.c.trigger_id == wanted.c.id) & (builds.c.create_time >= wanted.c.since)
        found = (
            select(*LISTED_COLUMNS)
            .select_from(wanted.join(builds, of_it))
            .where(builds.c.project_id == project_id)
            .order_by(builds.c.create_time.desc(), builds.c.id)
        )
        recent: dict[str, list[ListedBuild]] = {}
        with self._database.read() as connection:
            for row in connection.execute(found):
                made = recent.setdefault(row.trigger_id, [])
                if len(made) < count:  # several builds of the same microsecond may exceed it
                    made.append(listed_build(row))
        return recent

    def pending(self) -> list[ListedBuild]:
        """Return the builds that wait for an approval, by project and trigger.

        Builds of triggers without settings are not included.
        """
        beside = (trigger_settings.c.project_id == builds.c.project_id) & (
            trigger_settings.c.trigger_id == builds.c.trigger_id
        )
        found = (
            select(*LISTED_COLUMNS)
            .select_from(builds.join(trigger_settings, beside))
            # There is an index for builds that have not ended.
            .where(is_ongoing, builds.c.phase == PENDING)
            .order_by(builds.c.project_id, builds.c.trigger_id)
        )
        with self._database.read() as connection:
            return [listed_build(row) for row in connection.execute(found)]

    def labels(self, project_id: str, build_id: str) -> dict[str, str]:
        """Return the labels of a build; none if there is no such build."""
        found = select(builds.c.labels).where(
            builds.c.id == build_id, builds.c.project_id == project_id
        )
        with self._database.read() as connection:
            row = connection.execute(found).first()
        labels: dict[str, str] = {} if row is None else msgspec.json.decode(row.labels)
        return labels

    def plan(self, build_id: str) -> bytes | None:
        """Return the compiled plan; None before the build is planned. Raises `NotFound`."""
        found = (
            select(plans.c.plan).select_from(builds.outerjoin(plans)).where(builds.c.id == build_id)
        )
        with self._database.read() as connection:
            row = connection.execute(found).first()
        if row is None:
            raise _not_found(build_id)
        return None if row.plan is None else bytes(row.plan)

    def ended_before(self, moment: datetime, *, limit: int = 1000) -> list[str]:
        """Return ids of builds that ended before a time, oldest first (for retention)."""
        found = (
            select(builds.c.id)
            .where(is_ended, builds.c.ended_at < microseconds(moment))
            .order_by(builds.c.ended_at, builds.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            return list(connection.execute(found).scalars())

    def newest(
        self,
        project_id: str,
        filter: str,
        *,
        page_size: int = 1,
        most_pages: int = 3,
        accepts: BuildCondition | None = None,
    ) -> Iterator[StoredBuild]:
        """Yield the newest builds of a filter, from a few pages at most. Raises like `page`."""
        token = ""
        for _ in range(most_pages):
            page = self.page(
                project_id, filter=filter, page_size=page_size, page_token=token, accepts=accepts
            )
            yield from page.builds
            token = page.next_page_token
            if not token:
                return

    def page(
        self,
        project_id: str,
        *,
        location: str | None = None,
        filter: str = "",
        page_size: int = 50,
        page_token: str = "",
        look_at: int = 5000,
        accepts: BuildCondition | None = None,
    ) -> BuildPage:
        """Return builds of a project, newest first; of one location unless None.

        With ``accepts``, only builds for which it is true.

        New builds don't shift pages. A page may be short, even empty, although more pages
        follow: for a filter without an index, a call reads only ``look_at`` builds. A page has at
        most 1000 builds.

        Raises:
            FilterError: the filter is invalid; see `parse_filter`.
            PageTokenError: the token is invalid, or belongs to another filter or project.
        """
        # Imported here, since the process of a build lists nothing.
        from buildrunner.store.list_filter import parse_filter
        from buildrunner.store.sql.filter import condition_of, needed_tag, only_ongoing

        expression = parse_filter(filter)
        condition = condition_of(expression)
        size = bounded(page_size)
        parent = ("builds", project_id, location, filter)
        listing = _listing(project_id, needed_tag(expression))
        if location is not None:
            listing = listing.where(builds.c.location == location)
        if condition.sql is not None:
            listing = listing.where(condition.sql)
        if only_ongoing(expression):
            listing = listing.where(is_ongoing)  # these few have an index
        if page_token:
            listing = listing.behind(*self._page_tokens.read(page_token, parent, (int, str)))
        with self._database.read(streams=True) as connection:
            if condition.exact and accepts is None:
                rows, goes_on = page_of(connection, listing.rows, size)
                last = rows[-1] if goes_on else None
            else:
                rows, last = _search(connection, listing, expression, accepts, size, look_at)
        token = "" if last is None else self._page_tokens.write(parent, (last.create_time, last.id))
        return BuildPage(tuple(stored_build(row) for row in rows), token)


def put_tags(connection: Connection, build_id: str, tags: list[str]) -> None:
    """Set the tags of a build; writes only differences."""
    found = select(build_tags.c.tag).where(build_tags.c.build_id == build_id)
    had = set(connection.execute(found).scalars())
    gone, added = had.difference(tags), [tag for tag in tags if tag not in had]
    if gone:
        which = (build_tags.c.build_id == build_id) & build_tags.c.tag.in_(gone)
        connection.execute(delete(build_tags).where(which))
    if added:
        found = select(builds.c.project_id, builds.c.create_time).where(builds.c.id == build_id)
        same = {"build_id": build_id, **connection.execute(found).mappings().one()}
        connection.execute(insert(build_tags), [{**same, "tag": tag} for tag in added])


def _one(connection: Connection, which: ColumnElement[bool]) -> StoredBuild:
    row = connection.execute(select(*COLUMNS).where(which)).first()
    if row is None:
        raise _not_found()
    return stored_build(row)


def _not_found(build_id: str = "") -> NotFound:
    return NotFound(f"there is no build {build_id or 'of that id'} here")


def _locked_phase(connection: Connection, which: ColumnElement[bool]) -> str:
    """Return the build's phase, locked until the transaction ends."""
    phase = connection.execute(select(builds.c.phase).where(which).with_for_update()).scalar()
    if phase is None:
        raise _not_found()
    return str(phase)


def _made_before(connection: Connection, new: NewBuild) -> StoredBuild:
    """Return the earlier build of the same request. Raises `Conflict` if there is none."""
    project_id = new.document["projectId"]
    if new.request_id:
        same = (builds.c.project_id == project_id) & (builds.c.request_id == new.request_id)
        row = connection.execute(select(*COLUMNS).where(same)).first()
        if row is not None:
            return stored_build(row)
    raise Conflict(f"a build {new.document['id']} exists already")


def _note_attempt(connection: Connection, first_id: str, build_id: str) -> None:
    """Record a retry in the first try of a build."""
    which = builds.c.id == first_id
    labels = connection.execute(select(builds.c.labels).where(which).with_for_update()).scalar()
    if labels is None:
        return  # retention deleted it
    known = msgspec.json.decode(labels, type=dict[str, str])
    known["attempts"] = f"{known.get('attempts', '')} {build_id}".strip()
    connection.execute(update(builds).where(which).values(labels=msgspec.json.encode(known)))


def _check_waiting(connection: Connection, row: Mapping[str, Any], most: int) -> None:
    """Refuse a build if too many builds of its project wait; forks count separately."""
    beside = (
        select(builds.c.id)
        .where(
            builds.c.project_id == row["project_id"],
            in_phase(row["phase"]),
            builds.c.untrusted.is_(row["untrusted"]),
        )
        .limit(most + 1)
    )
    if connection.execute(select(func.count()).select_from(beside.subquery())).scalar_one() > most:
        kind = "builds of forks" if row["untrusted"] else "builds"
        raise QuotaExceeded(
            f"{most} {kind} of project {row['project_id']} wait {_WAITS_FOR[row['phase']]}, as many"
            " as may wait (serve --max-waiting-builds)",
            hint="cancel builds that nobody needs, or try again when some have begun or expired",
        )


def _supersede(connection: Connection, new: NewBuild) -> None:
    """Mark the builds that a new one supersedes, without reading or writing documents."""
    phases = _SUPERSEDED.get(new.supersede, ())
    # Pull requests of strangers must not end builds of users with write access.
    among = builds.c.untrusted if new.untrusted else true()
    build_id = new.document["id"]
    others = and_(
        among,
        builds.c.project_id == new.document["projectId"],
        builds.c.group_name == new.group,
        builds.c.id != build_id,
    )
    others = and_(others, builds.c.id.not_in(_of_newer_events(connection, new, others)))
    if WAITING in phases:
        waiting = select(builds.c.id, literal(build_id)).where(is_waiting, others)
        insert_selected(connection, superseded, ("build_id", "by_build"), waiting)
    if CLAIMED in phases:
        claimed = select(builds.c.id, builds.c.labels).where(is_claimed, others)
        for row in connection.execute(claimed.order_by(builds.c.id).with_for_update()).all():
            _ask_to_cancel(connection, row.id, row.labels, f"superseded by build {build_id}")


def _of_newer_events(
    connection: Connection, new: NewBuild, others: ColumnElement[bool]
) -> list[str]:
    """Return those builds whose event arrived after the event of a new build.

    The delivery of an event may be handled after later ones. A retry is as new as its request.
    """
    number = 0 if new.attempt_of else _delivery(new.labels)
    if not number or not new.supersede:
        return []
    found = connection.execute(select(builds.c.id, builds.c.labels).where(is_ongoing, others))
    return [row.id for row in found if _delivery(msgspec.json.decode(row.labels)) > number]


def _delivery(labels: Mapping[str, str]) -> int:
    """Return the number of the delivery that made a build; 0 for none."""
    number = labels.get(DELIVERY, "")
    return int(number) if number.isdecimal() else 0


def end_superseded(database: Database, now: datetime) -> None:
    """End waiting builds that newer ones supersede, one after the other.

    A call takes two seconds at most. The next call, of any server, continues.
    """

    def end(connection: Connection, build_id: str, by_build: str) -> None:
        waits = and_(builds.c.id == build_id, is_waiting)
        locked = select(builds.c.document).where(waits).with_for_update()
        document = connection.execute(locked).scalar()
        if document is not None:  # it was not cancelled meanwhile
            detail = f"superseded by build {by_build}"
            end_waiting(connection, build_id, document, "CANCELLED", now, detail)
        connection.execute(delete(superseded).where(superseded.c.build_id == build_id))

    with database.read() as connection:
        found = connection.execute(select(superseded).order_by(superseded.c.build_id)).all()
    for row in within_time(found):
        with database.write() as connection:
            end(connection, row.build_id, row.by_build)


def end_waiting(
    connection: Connection,
    build_id: str,
    document: bytes,
    status: str,
    now: datetime,
    detail: str,
) -> None:
    """End a waiting build with ``status``, CANCELLED or EXPIRED, for a reason."""
    columns = ended_columns(msgspec.json.decode(document), status, now, detail)
    which = builds.c.id == build_id
    note_change(connection, which, columns)
    cancelled = {"cancel_requested": True} if status == "CANCELLED" else {}
    connection.execute(update(builds).where(which).values(**cancelled, **columns))


def _ask_to_cancel(connection: Connection, build_id: str, labels: bytes, reason: str) -> None:
    """Request a claimed build's process to cancel it. The first reason stays."""
    known = msgspec.json.encode({CANCELLED_BY: reason, **msgspec.json.decode(labels)})
    change = update(builds).where(builds.c.id == build_id)
    connection.execute(change.values(cancel_requested=True, labels=known))
    notify_servers(connection)


_LONGEST_S = 2.0
"""The longest search for the builds of one page; the next page continues there."""


class _Listing(NamedTuple):
    """The query for builds, newest first, with the columns that order them."""

    rows: Select[Any]
    create_time: ColumnElement[int]
    id: ColumnElement[str]

    def where(self, *conditions: ColumnElement[bool]) -> _Listing:
        return self._replace(rows=self.rows.where(*conditions))

    def behind(self, create_time: int, build_id: str) -> _Listing:
        """Return the listing of the builds after one build."""
        older = self.create_time < create_time
        same = (self.create_time == create_time) & (self.id > build_id)
        # The first condition follows from the second, and can use the index.
        return self.where(self.create_time <= create_time, older | same)


def _listing(project_id: str, tag: str | None) -> _Listing:
    """Return the query for the builds of a project; with a tag, it uses the tag's ordered index."""
    found = select(builds.c.create_time, builds.c.id, *COLUMNS)
    table = builds if tag is None else build_tags
    build_id = builds.c.id if tag is None else build_tags.c.build_id
    if tag is not None:
        joined = build_tags.join(builds, builds.c.id == build_id)
        found = found.select_from(joined).where(build_tags.c.tag == tag)
    rows = found.where(table.c.project_id == project_id)
    ordered = rows.order_by(table.c.create_time.desc(), build_id)
    return _Listing(ordered, table.c.create_time, build_id)


def _search(
    connection: Connection,
    listing: _Listing,
    expression: Expression | None,
    accepts: BuildCondition | None,
    size: int,
    look_at: int,
) -> tuple[list[AnyRow], AnyRow | None]:
    """Return rows whose documents match, and the row to continue after; None at the end."""
    from buildrunner.store.list_filter import matches
    from buildrunner.store.sql.filter import needed_text

    needed = needed_text(expression)
    matching: list[AnyRow] = []
    room = MOST_PAGE_BYTES
    until = time.monotonic() + _LONGEST_S
    before: AnyRow | None = None
    for read, row in enumerate(streamed(connection, listing.rows.limit(look_at + 1))):
        if read and (time.monotonic() > until or read >= look_at):
            return matching, before
        before = row
        if needed and needed not in row.document.decode().casefold():
            continue  # ten times as fast as decoding it
        document = msgspec.json.decode(row.document)
        if accepts is not None and not accepts(document, msgspec.json.decode(row.labels)):
            continue
        if matches(expression, document):
            room -= bytes_of(row)
            if len(matching) == size or (matching and room < 0):
                return matching, matching[-1]
            matching.append(row)
    return matching, None
