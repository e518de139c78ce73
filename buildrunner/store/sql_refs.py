"""Where refs were last seen, in SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import and_, delete, select, update

from buildrunner.store.delivery_store import KnownRef
from buildrunner.store.sql_part import SqlPart, insert_all_new, insert_new
from buildrunner.store.sql_schema import known_refs

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection


class SqlRefs(SqlPart):
    """The part of `DeliveryStore` that is about refs."""

    def known_refs(self, repository: str, ref: str | None = None) -> dict[str, KnownRef]:
        """See `DeliveryStore.known_refs`."""
        found = select(known_refs).where(known_refs.c.repository == repository)
        if ref is not None:
            found = found.where(known_refs.c.ref == ref)
        with self._database.read() as connection:
            return {
                row.ref: KnownRef(row.commit_sha, row.seen_by, row.before_sha)
                for row in connection.execute(found)
            }

    def note_ref(self, repository: str, ref: str, commit: str, seen_by: str) -> KnownRef | None:
        """See `DeliveryStore.note_ref`."""
        with self._database.write() as connection:
            return _noted(connection, repository, ref, KnownRef(commit, seen_by))

    def note_refs(
        self, repositories: Collection[str], ref: str, now: KnownRef
    ) -> list[KnownRef | None]:
        """See `DeliveryStore.note_refs`."""
        with self._database.write() as connection:
            # In one order, so that two servers don't wait for each other.
            return [_noted(connection, one, ref, now) for one in sorted(repositories)]

    def note_first_look(self, repository: str, refs: Mapping[str, str], seen_by: str) -> None:
        """See `DeliveryStore.note_first_look`."""
        rows = [
            {"repository": repository, "ref": ref, **_values(KnownRef(commit, seen_by))}
            for ref, commit in sorted(refs.items())
        ]
        with self._database.write() as connection:
            insert_all_new(connection, known_refs, rows)


def _noted(connection: Connection, repository: str, ref: str, now: KnownRef) -> KnownRef | None:
    before = _known(connection, repository, ref)
    if before is None and now.commit:
        row = {"repository": repository, "ref": ref}
        row |= _values(now)
        if insert_new(connection, known_refs, row):
            return None
        before = _known(connection, repository, ref)  # another server was first
    if before is None or before.commit == now.commit or _is_behind(now, before):
        return before
    which = and_(known_refs.c.repository == repository, known_refs.c.ref == ref)
    if now.commit:
        connection.execute(update(known_refs).where(which).values(_values(now)))
    else:
        connection.execute(delete(known_refs).where(which))
    return before


def _is_behind(now: KnownRef, known: KnownRef) -> bool:
    """Whether this is the push before the one that is known, and not one that takes it back."""
    return bool(now.before) and known.before == now.commit and known.commit != now.before


def _values(now: KnownRef) -> dict[str, str]:
    return {"commit_sha": now.commit, "seen_by": now.seen_by, "before_sha": now.before}


def _known(connection: Connection, repository: str, ref: str) -> KnownRef | None:
    """Where a ref is; nobody else changes that until the transaction is over."""
    which = and_(known_refs.c.repository == repository, known_refs.c.ref == ref)
    row = connection.execute(select(known_refs).where(which).with_for_update()).first()
    return None if row is None else KnownRef(row.commit_sha, row.seen_by, row.before_sha)
