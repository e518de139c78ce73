"""Changes of builds and the outbox, in SQL."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import and_, delete, exists, func, not_, select, update

from buildrunner.errors import NotFound
from buildrunner.store.instants import instant_of, microseconds
from buildrunner.store.outbox_store import GIVEN_UP, WAITING, BuildChange, Message
from buildrunner.store.sql_part import SqlPart, insert_new
from buildrunner.store.sql_schema import build_changes, outbox

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from sqlalchemy import ColumnElement, Connection

    from buildrunner.store.outbox_store import NewMessage
    from buildrunner.store.sql_rows import AnyRow

_LONGEST_ERROR = 1000


class SqlOutbox(SqlPart):
    """`OutboxStore` on a database."""

    def build_changes(self, *, limit: int) -> list[BuildChange]:
        """See `OutboxStore.build_changes`."""
        found = select(build_changes).order_by(build_changes.c.id).limit(limit)
        with self._database.read() as connection:
            return [
                BuildChange(
                    id=row.id,
                    project_id=row.project_id,
                    build_id=row.build_id,
                    status=row.status,
                    document=msgspec.json.decode(row.document),
                )
                for row in connection.execute(found)
            ]

    def announce(
        self,
        changes: Sequence[BuildChange],
        messages: Sequence[tuple[int, NewMessage]],
        *,
        now: datetime,
    ) -> int:
        """See `OutboxStore.announce`."""
        ids = [change.id for change in changes]
        ours = delete(build_changes).where(build_changes.c.id.in_(ids))
        with self._database.write() as connection:
            taken = set(connection.execute(ours.returning(build_changes.c.id)).scalars())
            made = [message for change_id, message in messages if change_id in taken]
            return sum(_insert(connection, message, now) for message in made)

    def claim_messages(self, *, now: datetime, lease_s: float, limit: int) -> list[Message]:
        """See `OutboxStore.claim_messages`."""
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
        found = select(outbox.c.id).where(due).order_by(outbox.c.next_try, outbox.c.id).limit(limit)
        with self._database.read() as connection:  # most calls find nothing: lock nobody out
            if connection.execute(found.limit(1)).first() is None:
                return []
        until = microseconds(now + timedelta(seconds=lease_s))
        with self._database.write() as connection:
            ids = list(connection.execute(found.with_for_update(skip_locked=True)).scalars())
            claimed = (
                update(outbox)
                .where(outbox.c.id.in_(ids))
                .values(claim=outbox.c.claim + 1, claimed_until=until)
                .returning(*outbox.c)
            )
            rows = connection.execute(claimed).all()
        return sorted((_message(row) for row in rows), key=lambda message: message.id)

    def delivered(self, message: Message) -> None:
        """See `OutboxStore.delivered`."""
        with self._database.write() as connection:
            connection.execute(delete(outbox).where(_held(message)))

    def put_off(self, message: Message, *, next_try: datetime, error: str) -> None:
        """See `OutboxStore.put_off`."""
        self._settle(message, error, next_try=microseconds(next_try))

    def give_up(self, message: Message, *, error: str) -> None:
        """See `OutboxStore.give_up`."""
        self._settle(message, error, state=GIVEN_UP)

    def _settle(self, message: Message, error: str, **values: Any) -> None:
        values |= {
            "attempts": outbox.c.attempts + 1,
            "last_error": error[:_LONGEST_ERROR],
            "claimed_until": 0,
        }
        with self._database.write() as connection:
            connection.execute(update(outbox).where(_held(message)).values(values))

    def list_messages(self, *, state: str = "", limit: int = 100) -> list[Message]:
        """See `OutboxStore.list_messages`."""
        found = select(outbox).order_by(outbox.c.id).limit(limit)
        if state:
            found = found.where(outbox.c.state == state)
        with self._database.read() as connection:
            return [_message(row) for row in connection.execute(found)]

    def retry_message(self, message_id: int, *, now: datetime) -> None:
        """See `OutboxStore.retry_message`."""
        again = (
            update(outbox)
            .where(outbox.c.id == message_id)
            .values(state=WAITING, next_try=microseconds(now), created_at=microseconds(now))
        )
        with self._database.write() as connection:
            if not connection.execute(again).rowcount:
                raise _not_found(message_id)

    def drop_message(self, message_id: int) -> None:
        """See `OutboxStore.drop_message`."""
        with self._database.write() as connection:
            if not connection.execute(delete(outbox).where(outbox.c.id == message_id)).rowcount:
                raise _not_found(message_id)

    def next_try_at(self) -> datetime | None:
        """See `OutboxStore.next_try_at`."""
        found = select(func.min(outbox.c.next_try)).where(outbox.c.state == WAITING)
        with self._database.read() as connection:
            first = connection.execute(found).scalar()
        return None if first is None else instant_of(first)


def _insert(connection: Connection, new: NewMessage, now: datetime) -> bool:
    moment = microseconds(now)
    if new.replaces:
        stale = delete(outbox).where(
            outbox.c.lane == new.lane,
            outbox.c.state == WAITING,
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
        "message": msgspec.json.encode(new.message),
        "created_at": moment,
        "next_try": moment,
        "attempts": 0,
        "last_error": "",
        "state": WAITING,
        "claim": 0,
        "claimed_until": 0,
    }
    return insert_new(connection, outbox, row)


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
        created_at=instant_of(row.created_at),
        next_try=instant_of(row.next_try),
        attempts=row.attempts,
        last_error=row.last_error,
        state=row.state,
        claim=row.claim,
    )
