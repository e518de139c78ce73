"""Changes of builds, messages of the outbox, and notifiers, in SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import msgspec
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    not_,
    select,
    true,
    update,
)
from sqlalchemy.exc import SQLAlchemyError

from buildrunner.errors import Conflict, NotFound, QuotaExceeded, StoreError
from buildrunner.store.build_store import Document
from buildrunner.store.model.outbox import (
    DELIVERED,
    GIVEN_UP,
    WAITING,
    BuildChange,
    Message,
    NewMessage,
)
from buildrunner.store.records import instant_of, microseconds
from buildrunner.store.sql.claims import claim
from buildrunner.store.sql.database import SqlPart, delete_some, insert_new
from buildrunner.store.sql.rows import AnyRow, shown_document
from buildrunner.store.sql.schema import build_changes, builds, notifiers, outbox
from buildrunner.store.sql.servers import notify_servers

MOST_NOTIFIERS: Final = 100
"""The maximum number of notifiers of a project."""
MOST_NOTIFIER_BYTES: Final = 1 << 20
"""The maximum size of all notifiers of a project as JSON, in bytes."""

_LONGEST_ERROR = 1000
_NOTHING = b"{}"
# Lists of messages do not need their content.
_LISTED = [
    *(column for column in outbox.c if column.name != "message"),
    literal(_NOTHING).label("message"),
]


class SqlOutbox(SqlPart):
    """Messages to other machines, sent at least once, and the changes that they report."""

    def changes(self, *, limit: int) -> list[BuildChange]:
        """Return pending changes, without documents.

        The changes of a project come oldest first, and projects alternate.
        """
        turn = func.row_number().over(
            partition_by=build_changes.c.project_id, order_by=build_changes.c.id
        )
        new = select(build_changes.c.id, turn.label("turn")).where(_is_new).subquery("new_changes")
        found = (
            select(
                build_changes.c.id,
                build_changes.c.project_id,
                build_changes.c.build_id,
                build_changes.c.status,
                *(builds.c[name] for name in _OF_BUILD),
            )
            .select_from(
                new.join(build_changes, build_changes.c.id == new.c.id).outerjoin(
                    builds, builds.c.id == build_changes.c.build_id
                )
            )
            .order_by(new.c.turn, build_changes.c.id)
            .limit(limit)
        )
        with self._database.read() as connection:
            return [_change(connection, row) for row in connection.execute(found).all()]

    def changed_build(self, change_id: int) -> Document | None:
        """Return the Build as of a change; None if the change was deleted."""
        found = select(build_changes.c.document).where(build_changes.c.id == change_id)
        with self._database.read() as connection:
            document = connection.execute(found).scalar()
        return None if document is None else shown_document(document)

    def before(self, project_id: str, build_id: str) -> tuple[str | None, bool]:
        """See `BuildChange`: the id of the previous build, and whether the build is overtaken."""
        columns = (builds.c[name] for name in _OF_BUILD)
        found = select(*columns).where(builds.c.id == build_id, builds.c.project_id == project_id)
        with self._database.read() as connection:
            row = connection.execute(found).first()
            if row is None or not row.trigger_id:
                return None, False
            previous, overtaken = _neighbours(connection, project_id, row)
            return None if previous is None else previous[0], overtaken

    def announce(
        self,
        changes: Sequence[BuildChange],
        messages: Sequence[tuple[int, NewMessage]],
        *,
        now: datetime,
        on_refusal: Callable[[NewMessage, StoreError], None] | None = None,
    ) -> int:
        """Replace changes by their messages, in one transaction.

        A change is deleted, or, if messages refer to it, kept until they have arrived.

        Args:
            changes: the handled changes. If several servers handle the same change, one of them
                counts.
            messages: messages, each with the id of its change.
            now: the time; the messages are due at once.
            on_refusal: called for each message that the database refuses; the others are stored.
                Without it, the refusal is raised, and nothing is stored.

        Returns:
            The number of new messages.
        """
        try:
            return self._announce(changes, messages, partial(_insert, now=now))
        except StoreError as error:
            if on_refusal is None or not error.is_refusal:
                raise

        def insert_apart(connection: Connection, message: NewMessage) -> bool:
            try:
                with connection.begin_nested():
                    return _insert(connection, message, now)
            except (SQLAlchemyError, OverflowError) as error:
                refusal = self._database.explained(error)
                if not refusal.is_refusal:
                    raise
            on_refusal(message, refusal)
            return False

        return self._announce(changes, messages, insert_apart)

    def _announce(
        self,
        changes: Sequence[BuildChange],
        messages: Sequence[tuple[int, NewMessage]],
        insert: Callable[[Connection, NewMessage], bool],
    ) -> int:
        ids = [change.id for change in changes]
        needed = {message.change_id for _, message in messages}
        mine = build_changes.c.id.in_(ids) & _is_new
        with self._database.write() as connection:
            locked = select(build_changes.c.id).where(mine).with_for_update()
            taken = set(connection.execute(locked).scalars())
            made = [message for change_id, message in messages if change_id in taken]
            number = sum(insert(connection, message) for message in made)
            kept = build_changes.c.id.in_(taken & needed)
            connection.execute(update(build_changes).where(kept).values(announced=true()))
            gone = build_changes.c.id.in_(taken - needed)
            connection.execute(delete(build_changes).where(gone))
            return number

    def put(self, new: NewMessage, *, now: datetime) -> Message:
        """Add a message without a change.

        Raises:
            Conflict: a message with that key exists.
        """
        with self._database.write() as connection:
            if not _insert(connection, new, now):
                raise Conflict(f"there is a message {new.key} already")
            found = select(outbox).where(outbox.c.key == new.key)
            return _message(connection.execute(found).one())

    def claim(
        self,
        *,
        now: datetime,
        lease_s: float,
        limit: int,
        share: int | None = None,
        in_hand: Mapping[str, int] | None = None,
    ) -> list[Message]:
        """Claim due messages, at most the first of each lane.

        Projects alternate: the next message is one of the project with the fewest claimed ones.
        A message that is neither delivered, put off nor given up within the lease is claimed again.

        Args:
            now: the time.
            lease_s: duration of the claim in seconds.
            limit: maximum number of messages.
            share: maximum number of messages of one project, including those of ``in_hand``.
            in_hand: number of messages of each project that the caller has already.
        """
        moment = microseconds(now)
        earlier = outbox.alias()
        first = not_(
            exists().where(
                earlier.c.lane == outbox.c.lane,
                earlier.c.state == WAITING,
                earlier.c.id < outbox.c.id,
            )
        )
        due = and_(
            outbox.c.state == WAITING,
            outbox.c.next_try <= moment,
            outbox.c.claimed_until <= moment,
            first,
        )
        order = (outbox.c.next_try, outbox.c.id)
        turn: ColumnElement[int] = func.row_number().over(
            partition_by=outbox.c.project_id, order_by=order
        )
        if in_hand:
            turn = turn + case(in_hand, value=outbox.c.project_id, else_=0)
        turns = select(outbox.c.id, outbox.c.next_try, turn.label("turn")).where(due).subquery()
        fair = select(turns.c.id).order_by(turns.c.turn, turns.c.next_try, turns.c.id).limit(limit)
        if share is not None:
            fair = fair.where(turns.c.turn <= share)
        rows = claim(
            self._database,
            outbox,
            fair,
            free=due,
            until=now + timedelta(seconds=lease_s),
            claim=outbox.c.claim + 1,
        )
        return sorted((_message(row) for row in rows), key=lambda message: message.id)

    def delivered(self, message: Message, *, now: datetime) -> None:
        """Record that a message arrived. No effect if the claim was lost."""
        self._settle(message, "", state=DELIVERED, done_at=microseconds(now))
        if message.change_id:
            with self._database.write() as connection:
                _forget_changes(connection, build_changes.c.id == message.change_id)

    def put_off(
        self, message: Message, *, next_try: datetime, error: str, tried: bool = True
    ) -> None:
        """Record a failed attempt, and the time of the next one. No effect if the claim was lost.

        Args:
            message: the claimed message.
            next_try: time of the next try.
            error: the reason.
            tried: whether a delivery was tried, which counts as an attempt.
        """
        attempts = outbox.c.attempts + (1 if tried else 0)
        self._settle(message, error, next_try=microseconds(next_try), attempts=attempts)

    def give_up(self, message: Message, *, error: str, now: datetime) -> None:
        """Give up a message: it stays stored, is not sent again, and does not delay its lane."""
        self._settle(message, error, state=GIVEN_UP, done_at=microseconds(now))

    def _settle(self, message: Message, error: str, **values: Any) -> None:
        values = {
            "attempts": outbox.c.attempts + 1,
            "last_error": _kept(error),
            "claimed_until": 0,
            **values,
        }
        with self._database.write() as connection:
            connection.execute(update(outbox).where(_held(message)).values(values))

    def get(self, message_id: int) -> Message:
        """Return one message. Raises `NotFound`."""
        found = select(outbox).where(outbox.c.id == message_id)
        with self._database.read() as connection:
            row = connection.execute(found).first()
        if row is None:
            raise _not_found(message_id)
        return _message(row)

    def page(
        self,
        *,
        project_id: str = "",
        build_id: str = "",
        state: str = "",
        limit: int = 100,
        before: int = 0,
    ) -> list[Message]:
        """Return messages without their content, newest first.

        Args:
            project_id: only of that project, unless empty.
            build_id: only about that build, unless empty.
            state: only in that state, unless empty.
            limit: maximum number of messages.
            before: only lower ids; 0 for no limit.
        """
        found = select(*_LISTED).order_by(outbox.c.id.desc()).limit(limit)
        wanted = {"project_id": project_id, "build_id": build_id, "state": state}
        for name, value in wanted.items():
            if value:
                found = found.where(outbox.c[name] == value)
        if before:
            found = found.where(outbox.c.id < before)
        with self._database.read() as connection:
            return [_message(row) for row in connection.execute(found)]

    def count(self, state: str) -> int:
        """Count the messages in a state."""
        found = select(func.count()).where(outbox.c.state == state)
        with self._database.read() as connection:
            return int(connection.execute(found).scalar_one())

    def retry(self, message_id: int, *, now: datetime) -> Message:
        """Send a message at once, even if it was given up.

        Raises:
            NotFound: the message does not exist.
            Conflict: it has arrived already, or can't be sent.
        """
        moment = microseconds(now)
        again = (
            update(outbox)
            .where(outbox.c.id == message_id)
            .values(state=WAITING, next_try=moment, created_at=moment, done_at=None)
            .returning(*outbox.c)
        )
        with self._database.write() as connection:
            found = select(outbox).where(outbox.c.id == message_id).with_for_update()
            row = connection.execute(found).first()
            if row is None:
                raise _not_found(message_id)
            if row.state == DELIVERED:
                raise Conflict(f"message {message_id} arrived already")
            if row.message == _NOTHING:
                raise Conflict(f"message {message_id} has nothing to send: {row.last_error}")
            return _message(connection.execute(again).one())

    def drop(self, message_id: int) -> None:
        """Delete a message. Raises `NotFound`."""
        gone = delete(outbox).where(outbox.c.id == message_id).returning(outbox.c.change_id)
        with self._database.write() as connection:
            row = connection.execute(gone).first()
            if row is None:
                raise _not_found(message_id)
            if row.change_id:
                _forget_changes(connection, build_changes.c.id == row.change_id)

    def forget(self, *, before: datetime, limit: int) -> int:
        """Delete messages that arrived or were given up before a time, up to ``limit``.

        Returns their number.
        """
        old = and_(outbox.c.state != WAITING, outbox.c.done_at < microseconds(before))
        with self._database.write() as connection:
            number = delete_some(connection, outbox.c.id, old, limit)
            _forget_changes(connection, true())
            return number


# The columns of a build that `_change` and `_neighbours` read.
_OF_BUILD = ("trigger_id", "series", "create_time", "finish_time", "labels")
_SAYING = ("SUCCESS", "FAILURE", "TIMEOUT", "INTERNAL_ERROR")  # a cancelled build is inconclusive
_is_new = build_changes.c.announced == false()


def _change(connection: Connection, row: AnyRow) -> BuildChange:
    previous, overtaken = None, False
    if row.trigger_id and row.status in _SAYING:
        previous, overtaken = _neighbours(connection, row.project_id, row)
    return BuildChange(
        id=row.id,
        project_id=row.project_id,
        build_id=row.build_id,
        status=row.status,
        trigger_id=row.trigger_id or "",
        labels={} if row.labels is None else msgspec.json.decode(row.labels),
        previous=previous,
        overtaken=overtaken,
    )


def _neighbours(
    connection: Connection, project_id: str, row: AnyRow
) -> tuple[tuple[str, str] | None, bool]:
    """Return id and status of the previous build of a series, and whether a newer one has ended."""
    same = and_(
        builds.c.project_id == project_id,
        builds.c.trigger_id == row.trigger_id,
        builds.c.series == row.series,
        builds.c.status.in_(_SAYING),
    )
    if row.finish_time is not None:  # builds that ended later do not count for this status
        same &= builds.c.finish_time < row.finish_time
    found = select(builds.c.id, builds.c.status).where(same).limit(1)
    before = found.where(builds.c.create_time < row.create_time)
    previous = connection.execute(before.order_by(builds.c.create_time.desc(), builds.c.id)).first()
    after = found.where(builds.c.create_time > row.create_time)
    overtaken = row.finish_time is not None and connection.execute(after).first() is not None
    return (None if previous is None else (previous.id, previous.status)), overtaken


def _forget_changes(connection: Connection, which: ColumnElement[bool]) -> None:
    """Delete announced changes whose messages have all arrived."""
    needed = exists().where(outbox.c.change_id == build_changes.c.id, outbox.c.state != DELIVERED)
    gone = and_(which, build_changes.c.announced == true(), not_(needed))
    connection.execute(delete(build_changes).where(gone))


def _insert(connection: Connection, new: NewMessage, now: datetime) -> bool:
    moment = microseconds(now)
    if new.replaces:
        stale = delete(outbox).where(
            outbox.c.lane == new.lane,
            outbox.c.state.in_((WAITING, GIVEN_UP)),
            outbox.c.claimed_until <= moment,
        )
        connection.execute(stale)
    row = {
        "key": new.key,
        "lane": new.lane,
        "kind": new.kind,
        "project_id": new.project_id,
        "build_id": new.build_id,
        "target": new.target,
        "change_id": new.change_id or None,
        "message": msgspec.json.encode(new.message),
        "created_at": moment,
        "next_try": moment,
        "attempts": 0,
        "last_error": _kept(new.problem),
        "state": GIVEN_UP if new.problem else WAITING,
        "claim": 0,
        "claimed_until": 0,
        "done_at": moment if new.problem else None,
    }
    return insert_new(connection, outbox, row)


def _kept(error: str) -> str:
    """Return an error's text as it is stored: short, and without NUL, which PostgreSQL refuses."""
    return error.replace("\0", "")[:_LONGEST_ERROR]


def _held(message: Message) -> ColumnElement[bool]:
    return and_(outbox.c.id == message.id, outbox.c.claim == message.claim)


def _not_found(message_id: int) -> NotFound:
    return NotFound(f"there is no message {message_id} in the outbox")


def _message(row: AnyRow) -> Message:
    return Message(
        id=row.id,
        key=row.key,
        lane=row.lane,
        kind=row.kind,
        project_id=row.project_id,
        build_id=row.build_id,
        target=row.target,
        message=msgspec.json.decode(row.message),
        change_id=row.change_id or 0,
        created_at=instant_of(row.created_at),
        next_try=instant_of(row.next_try),
        attempts=row.attempts,
        last_error=row.last_error,
        state=row.state,
        claim=row.claim,
        done_at=None if row.done_at is None else instant_of(row.done_at),
    )


_NAMES = ("build_id", "project_id", "status", "document")


def note_new(connection: Connection, row: dict[str, Any]) -> None:
    """Record a new build, given its row."""
    values = {"build_id": row["id"], **{name: row[name] for name in _NAMES[1:]}}
    connection.execute(insert(build_changes).values(values))
    notify_servers(connection)


def note_change(
    connection: Connection, which: ColumnElement[bool], columns: dict[str, Any]
) -> None:
    """Record a change of a build's status. Call it before the change.

    Args:
        connection: connection of the transaction.
        which: selects the build.
        columns: its new values: ``status`` and ``document`` are used.
    """
    changed = select(
        builds.c.id,
        builds.c.project_id,
        literal(columns["status"], builds.c.status.type),
        literal(columns["document"], builds.c.document.type),
    ).where(which, builds.c.status != columns["status"])
    made = insert(build_changes).from_select(_NAMES, changed).returning(build_changes.c.id)
    if connection.execute(made).all():
        notify_servers(connection)


class SqlNotifiers(SqlPart):
    """Notifiers, by project."""

    def put(self, project_id: str, name: str, document: dict[str, Any]) -> None:
        """Store a notifier, replacing the one of that name. Raises `QuotaExceeded`."""
        row = {
            "project_id": project_id,
            "name": name,
            "document": msgspec.json.encode(document),
        }
        sums = select(func.count(), func.sum(func.length(notifiers.c.document)))
        with self._database.write() as connection:
            connection.execute(delete(notifiers).where(_is(project_id, name)))
            connection.execute(notifiers.insert().values(row))
            of_project = sums.where(notifiers.c.project_id == project_id)
            number, size = connection.execute(of_project).one()
            if number > MOST_NOTIFIERS or size > MOST_NOTIFIER_BYTES:
                raise QuotaExceeded(
                    f"the notifiers of project {project_id} would be more than {MOST_NOTIFIERS}, or"
                    f" larger than {MOST_NOTIFIER_BYTES >> 20} MiB together",
                    hint="delete notifiers that you do not need",
                )

    def get(self, project_id: str, name: str) -> dict[str, Any]:
        """Return a notifier. Raises `NotFound`."""
        found = select(notifiers.c.document).where(_is(project_id, name))
        with self._database.read() as connection:
            document = connection.execute(found).scalar()
        if document is None:
            raise _not_found_of_notifiers(project_id, name)
        return _decoded(document)

    def of_project(self, project_id: str) -> dict[str, dict[str, Any]]:
        """Return the notifiers of a project by name, sorted by name."""
        found = (
            select(notifiers.c.name, notifiers.c.document)
            .where(notifiers.c.project_id == project_id)
            .order_by(notifiers.c.name)
        )
        with self._database.read() as connection:
            return {row.name: _decoded(row.document) for row in connection.execute(found)}

    def delete(self, project_id: str, name: str) -> None:
        """Delete a notifier. Raises `NotFound`."""
        with self._database.write() as connection:
            if not connection.execute(delete(notifiers).where(_is(project_id, name))).rowcount:
                raise _not_found_of_notifiers(project_id, name)


def _is(project_id: str, name: str) -> ColumnElement[bool]:
    return and_(notifiers.c.project_id == project_id, notifiers.c.name == name)


def _decoded(document: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(document)
    return found


def _not_found_of_notifiers(project_id: str, name: str) -> NotFound:
    return NotFound(f"there is no notifier {name} in project {project_id}")
