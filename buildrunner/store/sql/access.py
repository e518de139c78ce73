"""Access tokens, the audit log, and the public keys of identity tokens, in SQL."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec
from sqlalchemy import delete, insert, select, update

from buildrunner.errors import Conflict, NotFound
from buildrunner.store.model.access import AccessToken, AuditEntry, IdentityKey, Session
from buildrunner.store.records import instant_of, microseconds
from buildrunner.store.sql.database import SqlPart, delete_some, insert_new
from buildrunner.store.sql.rows import AnyRow
from buildrunner.store.sql.schema import audit_log, identity_keys, sessions, tokens

MOST_SESSIONS: Final = 100
"""The most sessions of one token."""


class SqlTokens(SqlPart):
    """Access tokens: hashes, never the tokens themselves."""

    def create(self, token: AccessToken) -> None:
        """Store a token (its hash). Raises `Conflict` for a duplicate name."""
        row = {
            "name": token.name,
            "hash_hex": token.hash_hex,
            "scopes": msgspec.json.encode(token.scopes),
            "projects": msgspec.json.encode(token.projects),
            "pool": token.pool,
            "create_time": microseconds(token.create_time),
            "revoke_time": token.revoke_time and microseconds(token.revoke_time),
        }
        with self._database.write() as connection:
            if not insert_new(connection, tokens, row):
                raise Conflict(f'a token "{token.name}" exists already')

    def find(self, hash_hex: str) -> AccessToken | None:
        """Return the token of that hash, revoked or not; None if unknown."""
        with self._database.read() as connection:
            row = connection.execute(select(tokens).where(tokens.c.hash_hex == hash_hex)).first()
        return None if row is None else _token(row)

    def all(self) -> list[AccessToken]:
        """Return all tokens, by name."""
        with self._database.read() as connection:
            return [
                _token(row) for row in connection.execute(select(tokens).order_by(tokens.c.name))
            ]

    def pools(self, project: str = "") -> frozenset[str]:
        """Return the pools of all workers' tokens, revoked ones included.

        Args:
            project: skip tokens that are only for other projects; skip none if empty.
        """
        found = select(tokens.c.pool, tokens.c.projects).where(tokens.c.pool != "").distinct()
        with self._database.read() as connection:
            rows = connection.execute(found).all()
        of_row = ((row.pool, msgspec.json.decode(row.projects)) for row in rows)
        return frozenset(
            pool for pool, projects in of_row if not (project and projects) or project in projects
        )

    def revoke(self, name: str, *, now: datetime) -> None:
        """Revoke a token and end its sessions. Raises `NotFound`.

        A revoked token keeps its time.
        """
        which = tokens.c.name == name
        with self._database.write() as connection:
            if connection.execute(select(tokens.c.name).where(which)).first() is None:
                raise NotFound(f'there is no token "{name}"')
            good = which & tokens.c.revoke_time.is_(None)
            connection.execute(update(tokens).where(good).values(revoke_time=microseconds(now)))
            connection.execute(delete(sessions).where(sessions.c.token_name == name))


class SqlSessions(SqlPart):
    """Sessions of browsers; each belongs to a token."""

    def create(self, session: Session, *, now: datetime) -> None:
        """Store a session. Expired ones go, and the first of a token that has `MOST_SESSIONS`."""
        row = {
            "hash_hex": session.hash_hex,
            "token_name": session.token_name,
            "expires_at": microseconds(session.expires_at),
            "ends_at": microseconds(session.ends_at),
        }
        over = sessions.c.expires_at <= microseconds(now)
        of_token = sessions.c.token_name == session.token_name
        with self._database.write() as connection:
            connection.execute(delete(sessions).where(over))
            newest = (
                select(sessions.c.hash_hex)
                .where(of_token)
                .order_by(sessions.c.ends_at.desc(), sessions.c.hash_hex)
                .limit(MOST_SESSIONS - 1)
            )
            connection.execute(delete(sessions).where(of_token, sessions.c.hash_hex.not_in(newest)))
            connection.execute(insert(sessions).values(row))

    def find(self, hash_hex: str, *, now: datetime) -> tuple[Session, AccessToken] | None:
        """Return the session of a hash, and its token; None if expired or revoked."""
        found = (
            select(sessions.c.expires_at, sessions.c.ends_at, tokens)
            .join_from(sessions, tokens)
            .where(
                sessions.c.hash_hex == hash_hex,
                sessions.c.expires_at > microseconds(now),
                tokens.c.revoke_time.is_(None),
            )
        )
        with self._database.read() as connection:
            row = connection.execute(found).first()
        if row is None:
            return None
        session = Session(
            hash_hex=hash_hex,
            token_name=row.name,
            expires_at=instant_of(row.expires_at),
            ends_at=instant_of(row.ends_at),
        )
        return session, _token(row)

    def extend(self, hash_hex: str, expires_at: datetime) -> None:
        """Extend a session, if it still exists."""
        values = {"expires_at": microseconds(expires_at)}
        with self._database.write() as connection:
            connection.execute(
                update(sessions).where(sessions.c.hash_hex == hash_hex).values(values)
            )

    def delete(self, hash_hex: str) -> None:
        """End a session. Idempotent."""
        with self._database.write() as connection:
            connection.execute(delete(sessions).where(sessions.c.hash_hex == hash_hex))


class SqlAuditLog(SqlPart):
    """The audit log; newest entries first."""

    def add(self, entry: AuditEntry) -> None:
        """Append to the audit log."""
        row = {
            "at": microseconds(entry.at),
            "who": _line(entry.who),
            "action": _line(entry.action),
            "target": _line(entry.target),
            "outcome": _line(entry.outcome),
            "address": _line(entry.address),
        }
        with self._database.write() as connection:
            connection.execute(insert(audit_log).values(row))

    def page(self, *, limit: int = 100, before_id: int = 0) -> list[AuditEntry]:
        """Return entries, newest first; only those older than entry ``before_id`` if given."""
        found = select(audit_log).order_by(audit_log.c.id.desc()).limit(limit)
        if before_id:
            found = found.where(audit_log.c.id < before_id)
        with self._database.read() as connection:
            return [_entry(row) for row in connection.execute(found)]

    def forget(self, *, before: datetime, limit: int) -> int:
        """Delete entries from before a time, up to ``limit``. Returns their number."""
        old = audit_log.c.at < microseconds(before)
        with self._database.write() as connection:
            return delete_some(connection, audit_log.c.id, old, limit)


def _line(text: str) -> str:
    """Return text of a request as one line, so that it can't forge or prevent an entry."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _token(row: AnyRow) -> AccessToken:
    return AccessToken(
        name=row.name,
        hash_hex=row.hash_hex,
        scopes=tuple(msgspec.json.decode(row.scopes)),
        projects=tuple(msgspec.json.decode(row.projects)),
        pool=row.pool,
        create_time=instant_of(row.create_time),
        revoke_time=None if row.revoke_time is None else instant_of(row.revoke_time),
    )


def _entry(row: AnyRow) -> AuditEntry:
    return AuditEntry(
        id=row.id,
        at=instant_of(row.at),
        who=row.who,
        action=row.action,
        target=row.target,
        outcome=row.outcome,
        address=row.address,
    )


class SqlIdentityKeys(SqlPart):
    """The public keys of all servers of the database."""

    def all(self) -> list[IdentityKey]:
        """Return the keys, oldest first."""
        found = select(identity_keys).order_by(identity_keys.c.created_at, identity_keys.c.id)
        with self._database.read() as connection:
            return [
                IdentityKey(
                    id=row.id,
                    owner=row.owner,
                    jwk=msgspec.json.decode(row.jwk, type=dict[str, str]),
                    created_at=instant_of(row.created_at),
                    published_until=instant_of(row.published_until),
                )
                for row in connection.execute(found)
            ]

    def put(self, key: IdentityKey) -> None:
        """Store a key. Replaces a key with the same id."""
        row = {
            "id": key.id,
            "owner": key.owner,
            "jwk": msgspec.json.encode(key.jwk),
            "created_at": microseconds(key.created_at),
            "published_until": microseconds(key.published_until),
        }
        with self._database.write() as connection:
            connection.execute(delete(identity_keys).where(identity_keys.c.id == key.id))
            connection.execute(insert(identity_keys).values(row))

    def delete(self, key_id: str) -> None:
        """Delete a key. Idempotent."""
        with self._database.write() as connection:
            connection.execute(delete(identity_keys).where(identity_keys.c.id == key_id))
