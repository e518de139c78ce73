"""Sessions of browsers: a random id in a cookie stands for the access token that signed in.

The database has the SHA-256 sum of the id only. A session ends when its user signs out, when its
token is revoked, after `IDLE` without a request, and `LONGEST` after it began.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from buildrunner.server.context import ServerContext
from buildrunner.server.http.tokens import Caller, hash_of
from buildrunner.store.model.access import Session

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection
    from starlette.responses import Response

IDLE: Final = timedelta(days=7)
LONGEST: Final = timedelta(days=30)
_EXTEND_EVERY: Final = timedelta(hours=1)  # so that few requests of a session write


class Sessions:
    """Begins, finds and ends sessions. Thread-safe; every method but `id_of` asks the database.

    Args:
        context: the server's context.

    Attributes:
        cookie: name of the cookie. With https its prefix ``__Host-`` has browsers refuse one that
            another host or plain HTTP has set.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._secure = context.settings.https
        self.cookie = f"{'__Host-' if self._secure else ''}buildrunner_session"

    def id_of(self, request: HTTPConnection) -> str:
        """The session id that a request presents; empty for none."""
        return request.cookies.get(self.cookie, "")

    def begin(self, token_name: str) -> str:
        """Begin a session of a token, and return its id."""
        now = self._context.clock()
        session_id = secrets.token_urlsafe(32)
        session = Session(
            hash_hex=hash_of(session_id),
            token_name=token_name,
            expires_at=now + IDLE,
            ends_at=now + LONGEST,
        )
        self._context.store.sessions.create(session, now=now)
        return session_id

    def caller(self, session_id: str) -> Caller | None:
        """The caller whose session it is; None for a session that is unknown or over."""
        now = self._context.clock()
        found = self._context.store.sessions.find(hash_of(session_id), now=now)
        if found is None:
            return None
        session, token = found
        until = min(now + IDLE, session.ends_at)
        if until - session.expires_at >= _EXTEND_EVERY:
            self._context.store.sessions.extend(session.hash_hex, until)
        return Caller(token.name, token.scopes, token.projects)

    def end(self, session_id: str) -> None:
        """End a session. Idempotent."""
        self._context.store.sessions.delete(hash_of(session_id))

    def form_value(self, session_id: str) -> str:
        """The value that forms of a session hold; nobody else can make it.

        Servers that share a database make the same, also after a restart.
        """
        key = self._context.store.form_key()
        return hmac.new(key, hash_of(session_id).encode(), hashlib.sha256).hexdigest()

    def set_cookie(self, answer: Response, session_id: str) -> None:
        """Have the browser present a session from now on; no longer any if the id is empty."""
        answer.set_cookie(
            self.cookie,
            session_id,
            max_age=int(LONGEST.total_seconds()) if session_id else 0,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )
