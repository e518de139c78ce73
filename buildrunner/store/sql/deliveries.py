"""Deliveries and refs in SQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Any, Final

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
    or_,
    select,
    true,
    tuple_,
    union_all,
    update,
)

from buildrunner.errors import Conflict, NotFound
from buildrunner.store.model.deliveries import (
    HANDLED,
    KEPT_REFUSALS,
    RECEIVED,
    REFUSED,
    WAITING,
    KnownRef,
    NewDelivery,
    StoredDelivery,
    Watched,
)
from buildrunner.store.records import instant_of, microseconds
from buildrunner.store.sql.claims import claim
from buildrunner.store.sql.database import SqlPart, delete_some, insert_all_new, insert_new
from buildrunner.store.sql.rows import AnyRow
from buildrunner.store.sql.schema import (
    DELIVERY_CLAIMS,
    counters,
    deliveries,
    known_refs,
)

MOST_CLAIMED_BYTES: Final = 32 << 20

_LISTED = [column for column in deliveries.c if column.name not in ("body", "headers")]


def _claimable(at: int, most: int, but: Collection[str]) -> Select[int]:
    """Select new deliveries of lanes without a claim, and waiting ones that are due, by number.

    Those of some hooks, or with lanes that begin so, are not selected.
    """
    others, number = deliveries.alias(), deliveries.c.number
    busy = select(others.c.lane).where(others.c.claimed_until > at, others.c.lane != "")
    came = and_(
        deliveries.c.status == RECEIVED,
        or_(deliveries.c.claimed_until.is_(None), deliveries.c.claimed_until <= at),
        deliveries.c.lane.not_in(busy),
    )
    due = and_(deliveries.c.status == WAITING, deliveries.c.claimed_until <= at)
    # Most lanes begin with the hook. They are in the index, so few of the excluded rows are read.
    lanes = (func.substr(deliveries.c.lane, 1, len(hook) + 1) != f"{hook} " for hook in but)
    hooks = and_(*lanes, deliveries.c.hook.not_in(but)) if but else true()
    each = (
        select(number).where(one, hooks).order_by(number).limit(most).subquery()
        for one in (came, due)
    )
    found = union_all(*(select(one.c.number) for one in each)).subquery()
    return select(found.c.number).order_by(found.c.number).limit(most)


# Its lock prevents claims of other servers until the transaction ends.
_LOCK_CLAIMS = select(counters.c.value).where(counters.c.name == DELIVERY_CLAIMS).with_for_update()


class SqlDeliveries(SqlPart):
    """Deliveries of webhooks: stores, claims, finishes and replays them."""

    def add(
        self, new: Sequence[NewDelivery], *, now: datetime
    ) -> list[tuple[StoredDelivery, bool]]:
        """Store deliveries in one transaction. Returns each, and whether it is new.

        An existing delivery of the same hook and id is returned instead.
        """
        with self._database.write() as connection:
            return [_added(connection, one, now) for one in new]

    def refuse(self, new: NewDelivery, reason: str, *, now: datetime) -> int:
        """Record a refused delivery without its body; return the number of the record.

        Only the newest `KEPT_REFUSALS` records of refused deliveries are kept.
        """
        row = _row(msgspec.structs.replace(new, body=b""), REFUSED, now)
        # A sender with a bad signature must not be able to take a genuine delivery's id.
        row |= {"delivery_id": None, "outcome": msgspec.json.encode({"reason": reason})}
        refused = deliveries.c.status == REFUSED
        with self._database.write() as connection:
            made = insert(deliveries).values(row).returning(deliveries.c.number)
            number = int(connection.execute(made).scalar_one())
            oldest = (
                select(deliveries.c.number)
                .where(refused)
                .order_by(deliveries.c.number.desc())
                .offset(KEPT_REFUSALS)
                .limit(1)
            )
            last = connection.execute(oldest).scalar()
            if last is not None:
                connection.execute(delete(deliveries).where(refused, deliveries.c.number <= last))
        return number

    def count_refusals(self, repeats: Mapping[int, int]) -> None:
        """Add repeats to records of refused deliveries: number of the record -> count."""
        refused = deliveries.c.status == REFUSED
        found = select(deliveries.c.number, deliveries.c.outcome).where(
            refused, deliveries.c.number.in_(repeats)
        )
        with self._database.write() as connection:
            for number, outcome in connection.execute(found).all():
                known = msgspec.json.decode(outcome)
                known["times"] = known.get("times", 1) + repeats[number]
                which = deliveries.c.number == number
                values = {"outcome": msgspec.json.encode(known)}
                connection.execute(update(deliveries).where(which).values(values))

    def claim(
        self, *, now: datetime, lease_s: float, limit: int, but: Collection[str] = ()
    ) -> list[StoredDelivery]:
        """Claim the oldest deliveries that no server handles, in order, but none of ``but``.

        Waiting deliveries that are due are claimed, too. A lane with a claimed delivery is skipped.
        A delivery that is neither finished nor held within ``lease_s`` seconds is claimed again.
        The bodies of the claimed deliveries have at most `MOST_CLAIMED_BYTES` together, but at
        least one delivery is claimed.

        Args:
            now: the time.
            lease_s: seconds.
            limit: the most deliveries.
            but: hooks, or the first words of lanes, whose deliveries are left out.
        """
        moment = microseconds(now)
        rows = claim(
            self._database,
            deliveries,
            _claimable(moment, self._few_enough(moment, limit, but), but),
            free=deliveries.c.status.in_((RECEIVED, WAITING)),
            until=now + timedelta(seconds=lease_s),
            one_at_a_time=_LOCK_CLAIMS,  # otherwise two servers could claim deliveries of one lane
            attempts=deliveries.c.attempts + 1,
        )
        return sorted(map(_delivery, rows), key=lambda one: one.number)

    def _few_enough(self, moment: int, limit: int, but: Collection[str]) -> int:
        """Count the next deliveries that have at most `MOST_CLAIMED_BYTES` together."""
        which = deliveries.c.number.in_(_claimable(moment, limit, but))
        sizes = select(func.length(deliveries.c.body)).where(which).order_by(deliveries.c.number)
        with self._database.read() as connection:
            totals: list[int] = list(accumulate(connection.execute(sizes).scalars()))
        return max(1, sum(total <= MOST_CLAIMED_BYTES for total in totals))

    def hold(self, numbers: Collection[int], *, now: datetime, lease_s: float) -> None:
        """Extend the claims of deliveries that are still being handled."""
        until = microseconds(now + timedelta(seconds=lease_s))
        which = and_(deliveries.c.number.in_(numbers), deliveries.c.claimed_until.is_not(None))
        with self._database.write() as connection:
            connection.execute(update(deliveries).where(which).values(claimed_until=until))

    def release(self, claimed: Sequence[StoredDelivery]) -> None:
        """Release deliveries that were claimed and not begun."""
        with self._database.write() as connection:
            for one in claimed:
                free = 0 if one.status == WAITING else None
                values = {"claimed_until": free, "attempts": deliveries.c.attempts - 1}
                connection.execute(update(deliveries).where(_same(one)).values(values))

    def postpone(
        self, claimed: StoredDelivery, outcome: Mapping[str, Any], *, until: datetime
    ) -> None:
        """Schedule a retry of a delivery, and store its partial outcome. It leaves its lane.

        A delivery that was finished or replayed since its claim does not change.
        """
        values = {
            "status": WAITING,
            "claimed_until": microseconds(until),
            "attempts": 0,
            "lane": "",  # it leaves its lane, so that no other waits for it
            "outcome": msgspec.json.encode(dict(outcome)),
        }
        with self._database.write() as connection:
            connection.execute(update(deliveries).where(_same(claimed)).values(values))

    def finish(self, handled: Sequence[tuple[StoredDelivery, Mapping[str, Any]]]) -> None:
        """Record deliveries as handled, with their outcomes. Idempotent.

        A delivery that was replayed since its claim is not recorded: it is handled again.
        """
        with self._database.write() as connection:
            for delivery, outcome in handled:
                same = and_(
                    deliveries.c.number == delivery.number,
                    deliveries.c.replays == delivery.replays,
                )
                values = {
                    "status": HANDLED,
                    "claimed_until": None,
                    "outcome": msgspec.json.encode(dict(outcome)),
                }
                connection.execute(update(deliveries).where(same).values(values))

    def replay(self, number: int) -> StoredDelivery:
        """Queue a delivery to be handled again.

        Raises:
            NotFound: no such delivery.
            Conflict: the delivery was refused.
        """
        which = deliveries.c.number == number
        with self._database.write() as connection:
            found = connection.execute(select(deliveries.c.status).where(which)).first()
            if found is None:
                raise _unknown(number)
            if found.status == REFUSED:
                raise Conflict(f"delivery {number} was refused: there is nothing of it to replay")
            row = connection.execute(
                update(deliveries)
                .where(which)
                .values(
                    status=RECEIVED,
                    claimed_until=None,
                    attempts=0,
                    replays=deliveries.c.replays + 1,
                )
                .returning(deliveries)
            ).one()
            return _delivery(row)

    def get(self, number: int) -> StoredDelivery:
        """Return one delivery. Raises `NotFound`."""
        with self._database.read() as connection:
            row = connection.execute(
                select(deliveries).where(deliveries.c.number == number)
            ).first()
        if row is None:
            raise _unknown(number)
        return _delivery(row)

    def page(self, *, hook: str = "", limit: int = 50, before: int = 0) -> list[StoredDelivery]:
        """Return deliveries without bodies, newest first, older than ``before`` if given."""
        found = select(*_LISTED).order_by(deliveries.c.number.desc()).limit(limit)
        if hook:
            found = found.where(deliveries.c.hook == hook)
        if before:
            found = found.where(deliveries.c.number < before)
        with self._database.read() as connection:
            return [_delivery(row) for row in connection.execute(found)]

    def busy_lanes(self, lanes: Collection[str]) -> set[str]:
        """Return those of these lanes that have deliveries to handle."""
        open_ones = deliveries.c.status.in_((RECEIVED, WAITING))
        found = select(deliveries.c.lane).distinct().where(open_ones, deliveries.c.lane.in_(lanes))
        with self._database.read() as connection:
            return set(connection.execute(found).scalars())

    def forget(self, *, before: datetime, limit: int) -> int:
        """Delete handled and refused deliveries from before a time, up to ``limit``.

        Returns their number. The newest delivery of each hook that was not refused stays.
        """
        # The newest delivery shows when its hook last worked.
        newest = (
            select(func.max(deliveries.c.number))
            .where(deliveries.c.status != REFUSED)
            .group_by(deliveries.c.hook)
        )
        old = and_(
            deliveries.c.received_at < microseconds(before),
            deliveries.c.status.in_((HANDLED, REFUSED)),
            deliveries.c.number.not_in(newest),
        )
        with self._database.write() as connection:
            return delete_some(connection, deliveries.c.number, old, limit)


def _same(claimed: StoredDelivery) -> ColumnElement[bool]:
    """Return the condition that a delivery was not finished or replayed since its claim."""
    return and_(
        deliveries.c.number == claimed.number,
        deliveries.c.replays == claimed.replays,
        deliveries.c.status == claimed.status,
    )


def _added(connection: Connection, new: NewDelivery, now: datetime) -> tuple[StoredDelivery, bool]:
    is_new = insert_new(connection, deliveries, _row(new, RECEIVED, now))
    found = select(deliveries).where(
        deliveries.c.hook == new.hook, deliveries.c.delivery_id == new.delivery_id
    )
    return _delivery(connection.execute(found).one()), is_new


def _row(new: NewDelivery, status: str, now: datetime) -> dict[str, Any]:
    return {
        "hook": new.hook,
        "delivery_id": new.delivery_id,
        "received_at": microseconds(now),
        "status": status,
        "headers": msgspec.json.encode(new.headers),
        "body": new.body,
        "address": new.address,
        "attempts": 0,
        "replays": 0,
        "outcome": b"{}",
        "lane": new.lane,
    }


def _delivery(row: AnyRow) -> StoredDelivery:
    there = row._mapping  # noqa: SLF001  (the public name of a row's columns)
    return StoredDelivery(
        number=row.number,
        hook=row.hook,
        delivery_id=row.delivery_id or "",
        received_at=instant_of(row.received_at),
        status=row.status,
        headers=msgspec.json.decode(there.get("headers", b"{}")),
        body=bytes(there.get("body", b"")),
        address=row.address,
        attempts=row.attempts,
        replays=row.replays,
        outcome=msgspec.json.decode(row.outcome),
        lane=row.lane,
    )


def _unknown(number: int) -> NotFound:
    return NotFound(f"there is no delivery {number}", hint="`buildrunner deliveries list`")


_REFS_AT_ONCE = 1000


class SqlRefs(SqlPart):
    """The last seen commits of branches and tags, for each project."""

    def known(self, watched: Watched, ref: str | None = None) -> dict[str, KnownRef]:
        """Return the last seen commits of a repository's refs, or of one ref, by full name."""
        found = select(known_refs).where(_of(watched))
        if ref is not None:
            found = found.where(known_refs.c.ref == ref)
        with self._database.read() as connection:
            return {
                row.ref: KnownRef(row.commit_sha, row.seen_by, row.before_sha)
                for row in connection.execute(found)
            }

    def note(self, watched: Watched, ref: str, commit: str, seen_by: str) -> KnownRef | None:
        """Record the commit of a ref (empty: deleted). Returns the previous record.

        The first witness of a commit is kept, also among several servers.
        """
        with self._database.write() as connection:
            return _noted(connection, watched, ref, KnownRef(commit, seen_by))

    def note_all(
        self,
        watched: Collection[Watched],
        ref: str,
        now: KnownRef,
        *,
        only_from_before: bool = False,
    ) -> dict[Watched, KnownRef | None]:
        """Record a ref for several projects and keys of its repository, in one transaction.

        Forges may report two pushes in the wrong order: a ref is not set back to the start of the
        known push. Returns the previous records.

        Args:
            watched: the projects and keys.
            ref: full name of the ref.
            now: its new record.
            only_from_before: change only records whose commit is the start of the push.
        """
        with self._database.write() as connection:
            # In a fixed order, so that two servers don't deadlock.
            return {
                one: _noted(connection, one, ref, now, only_from_before=only_from_before)
                for one in sorted(watched)
            }

    def note_first_look(self, watched: Watched, refs: Mapping[str, str], seen_by: str) -> None:
        """Record the refs of a repository; known ones do not change.

        Many refs take several transactions, so that others can write in between. A ref without a
        name, which marks the others as complete, is the last one.

        Args:
            watched: the repository and the project.
            refs: commit by full name.
            seen_by: see `KnownRef`.
        """
        rows = [
            {**watched._asdict(), "ref": ref, **_values(KnownRef(commit, seen_by))}
            for ref, commit in sorted(refs.items(), key=lambda one: (not one[0], one[0]))
        ]
        for at in range(0, len(rows), _REFS_AT_ONCE):
            with self._database.write() as connection:
                insert_all_new(connection, known_refs, rows[at : at + _REFS_AT_ONCE])

    def recorded(self) -> list[Watched]:
        """Return the repositories with records, by project, with a short search for each."""
        key = (known_refs.c.project, known_refs.c.repository)
        first = select(*key).order_by(*key).limit(1)
        found: list[Watched] = []
        with self._database.read() as connection:
            row = connection.execute(first).first()
            while row is not None:
                found.append(Watched(row.project, row.repository))
                behind = tuple_(*key) > tuple_(literal(row.project), literal(row.repository))
                row = connection.execute(first.where(behind)).first()
        return found

    def count(self, project: str) -> int:
        """Return the number of a project's records."""
        counted = select(func.count()).where(known_refs.c.project == project)
        with self._database.read() as connection:
            return int(connection.execute(counted).scalar_one())

    def count_with(self, watched: Watched, refs: Collection[str]) -> int:
        """Return the number of a repository's records once some refs are recorded, too."""
        counted = select(func.count()).where(_of(watched))
        wanted = list(refs)
        with self._database.read() as connection:
            total = int(connection.execute(counted).scalar_one()) + len(wanted)
            for at in range(0, len(wanted), _REFS_AT_ONCE):
                there = counted.where(known_refs.c.ref.in_(wanted[at : at + _REFS_AT_ONCE]))
                total -= int(connection.execute(there).scalar_one())
        return total

    def forget(self, watched: Watched) -> None:
        """Delete all records of a repository for a project.

        The first transaction deletes the mark of complete records.
        """
        some = select(known_refs.c.ref).where(_of(watched)).order_by(known_refs.c.ref)
        gone = delete(known_refs).where(
            _of(watched), known_refs.c.ref.in_(some.limit(_REFS_AT_ONCE))
        )
        deleted = _REFS_AT_ONCE
        while deleted == _REFS_AT_ONCE:
            with self._database.write() as connection:
                deleted = connection.execute(gone).rowcount


def _of(watched: Watched) -> ColumnElement[bool]:
    return and_(
        known_refs.c.project == watched.project, known_refs.c.repository == watched.repository
    )


def _noted(
    connection: Connection,
    watched: Watched,
    ref: str,
    now: KnownRef,
    *,
    only_from_before: bool = False,
) -> KnownRef | None:
    before = _known(connection, watched, ref)
    if only_from_before and (before.commit if before else "") != now.before:
        return before
    if before is None and now.commit:
        row = {**watched._asdict(), "ref": ref, **_values(now)}
        if insert_new(connection, known_refs, row):
            return None
        before = _known(connection, watched, ref)  # another server was first
    if before is None or before.commit == now.commit or _is_behind(now, before):
        return before
    which = and_(_of(watched), known_refs.c.ref == ref)
    if now.commit:
        connection.execute(update(known_refs).where(which).values(_values(now)))
    else:
        connection.execute(delete(known_refs).where(which))
    return before


def _is_behind(now: KnownRef, known: KnownRef) -> bool:
    """Return whether this push is older than the known one, and not a revert of it.

    A delivery may be handled again after later ones.
    """
    if _witness(known) > _witness(now) and known.commit != now.before:
        return True
    return bool(now.before) and known.before == now.commit and known.commit != now.before


def _witness(known: KnownRef) -> int:
    """Return the number of the delivery that is the witness; 0 for others."""
    number = known.seen_by.rpartition(" ")[2]
    return int(number) if number.isdecimal() else 0


def _values(now: KnownRef) -> dict[str, str]:
    return {"commit_sha": now.commit, "seen_by": now.seen_by, "before_sha": now.before}


def _known(connection: Connection, watched: Watched, ref: str) -> KnownRef | None:
    """Return the known commit of a ref, and lock its row until the end of the transaction."""
    which = and_(_of(watched), known_refs.c.ref == ref)
    row = connection.execute(select(known_refs).where(which).with_for_update()).first()
    return None if row is None else KnownRef(row.commit_sha, row.seen_by, row.before_sha)
