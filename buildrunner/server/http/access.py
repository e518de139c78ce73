"""Access to routes: tokens, sessions of browsers, and the dependencies that check scopes.

A session's cookie holds a random id that stands for the access token that signed in; the database
has only its SHA-256 sum. A session ends when its user signs out, when its token is revoked, after
`IDLE` without a request, and `LONGEST` after it began.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import Counter
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from buildrunner.addresses import is_loopback_host, network_of
from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import (
    ApiError,
    error_response,
    permission_denied,
    unauthenticated,
)
from buildrunner.server.http.listener import places
from buildrunner.server.http.requests import client_address, project_of
from buildrunner.server.http.tokens import (
    LOCAL,
    PUBLIC_NAME,
    WORKER,
    Caller,
    caller_of,
    hash_of,
    public_caller,
    worker_of,
)
from buildrunner.store.model.access import Session
from buildrunner.store.model.remote import WorkerIdentity

_READING = ("GET", "HEAD")


class Access:
    """Makes the dependencies of routes.

    A route declares ``caller: Caller = Depends(access.may("submit", "builds.create"))``. The
    dependency runs before the body is read, so that the server reads no bodies of strangers.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._sessions = Sessions(context)

    def may(
        self, scope: str, action: str = "", *, everywhere: bool = False, known: bool = False
    ) -> Requirement:
        """Return a dependency that checks a request, and returns its caller.

        Args:
            scope: the scope that the caller's token needs in the project of the path.
            action: name for the audit log; empty if the route changes nothing.
            everywhere: the token must be valid for all projects.
            known: a token is required even if the project is public.
        """
        return Requirement(self, scope, action, everywhere=everywhere, known=known)

    def project_of(self, request: Request) -> str:
        """Return the project that the path names; empty if it names none."""
        return project_of(request, self._context.settings.default_project)

    async def caller(self, request: Request) -> Caller:
        """Return the caller of the request, and count the request for it; see `take_place`.

        A client without credentials gets 403, not 401: Google's clients answer a 401 by refreshing
        credentials, which fails for anonymous ones, and the user would never see our message.

        Raises:
            ApiError: 403 without a token, 401 with an invalid one, 429 if too many requests of the
                caller are under way.
        """
        caller = await self._caller(request)
        take_place(request, caller.name)
        return caller

    async def _caller(self, request: Request) -> Caller:
        if not self._context.settings.auth:
            return LOCAL
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip()
        session = self._sessions.id_of(request)
        # Pages of this server read with a session, and never change anything by its cookie alone.
        if not token and session and request.method in _READING:
            caller = await run_in_threadpool(self._sessions.caller, session)
            if caller is not None:
                return caller
        if not token:
            public = public_caller(self._context.settings.public_projects)
            if public is not None and request.method in _READING:
                return public
            raise permission_denied(
                "this server needs a token: send 'Authorization: Bearer TOKEN' "
                "(buildrunner tokens create makes one)"
            )
        if scheme.lower() != "bearer":
            raise unauthenticated(f"credentials of kind {scheme} are not understood: send Bearer")
        found = await run_in_threadpool(self._context.store.tokens.find, hash_of(token))
        caller = caller_of(token, found)
        if caller is None:
            raise unauthenticated("the token is unknown or was revoked")
        return caller


class Requirement:
    """The scope that a caller's token must have; a dependency of routes. See `Access.may`.

    Attributes:
        scope: one of `tokens.SCOPES`.
    """

    def __init__(
        self, access: Access, scope: str, action: str, *, everywhere: bool, known: bool
    ) -> None:
        self.scope = scope
        self._access = access
        self._action = action
        self._everywhere = everywhere
        self._known = known

    async def __call__(self, request: Request) -> Caller:
        """Return the caller. Raises `ApiError` if the caller lacks the scope."""
        project = "" if self._everywhere else self._access.project_of(request)
        if self._action:
            note_action(request, self._action, project)
        caller = await self._access.caller(request)
        request.state.caller = caller
        if project or self._everywhere:
            allowed = caller.may(self.scope, project)
        else:
            allowed = caller.can(self.scope)
        if not allowed or (self._known and caller.name == PUBLIC_NAME):
            where = f"project {project}" if project else "this server"
            raise permission_denied(
                f"token {caller.name} may not do this: it needs scope {self.scope} for {where}"
            )
        return caller


def take_place(request: Request, name: str) -> None:
    """Count a request of a caller until its end.

    Callers without a token are not one caller, and count by network. Workers have limits of their
    own, and a lease must be renewed whatever else waits.

    Args:
        request: the request. It counts once.
        name: name of the caller.

    Raises:
        ApiError: 429, the caller has too many requests under way.
    """
    if hasattr(request.state, "counted_for"):
        return
    if name == PUBLIC_NAME:
        name = f"{name} {network_of(client_address(request))}"
    under_way: Counter[str] = request.app.state.under_way
    most = places() // 2
    if under_way[name] >= most:
        message = f"{most} requests of this caller are under way: try again later"
        headers = {"Connection": "close", "Retry-After": "10"}
        raise ApiError(429, message, headers=headers)
    under_way[name] += 1
    request.state.counted_for = name


class CallerShares:
    """Keeps each caller to half of the connections: the others find places.

    A client decides how long its request takes, and one with many addresses keeps many requests
    under way. So the requests under way of one caller are limited, by `take_place`.

    Args:
        app: the application.
        under_way: number of requests of each caller, by name; updated by this class.
    """

    def __init__(self, app: ASGIApp, under_way: Counter[str]) -> None:
        self._app = app
        self._under_way = under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request."""
        try:
            await self._app(scope, receive, send)
        finally:
            name = scope.get("state", {}).get("counted_for", "")
            if name:
                self._under_way[name] -= 1
                if not self._under_way[name]:
                    del self._under_way[name]


def note_action(request: Request, action: str, target: str) -> None:
    """Mark the request for the audit log, which also records its result."""
    request.state.audit = (action, target)


def note_target(request: Request, *parts: str) -> None:
    """Set the exact target of the request, once it is known."""
    action, _ = request.state.audit
    request.state.audit = (action, "/".join(part for part in parts if part))


class SameSite:
    """Refuses requests from pages of other sites, and requests to unknown host names.

    Args:
        app: the protected application.
        public_host: public name of the server, besides the names of this machine.
    """

    def __init__(self, app: ASGIApp, public_host: str) -> None:
        self._app = app
        self._public_host = public_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request, or refuse it."""
        if scope["type"] == "http":
            reason = self._reason(dict(scope["headers"]))
            if reason:
                await error_response(permission_denied(reason))(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _reason(self, headers: dict[bytes, bytes]) -> str:
        host = headers.get(b"host", b"").decode("latin-1")
        if host and not self._is_ours(host):
            return f"this server is not {host}: without tokens it answers to its own names only"
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and (urlsplit(origin).netloc != host or not host):
            return f"pages of {origin} may not use this server: start it with --auth tokens"
        if headers.get(b"sec-fetch-site") == b"cross-site":
            return "pages of other sites may not use this server: start it with --auth tokens"
        return ""

    def _is_ours(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname or ""
        return name in (self._public_host, "localhost") or is_loopback_host(name)


# An answer without its own policy is data: it must not run, load, send or frame anything.
_DEFAULTS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_HSTS: Final = "max-age=31536000"


class SecureHeaders:
    """Adds missing security headers to answers (pure ASGI, so that streams are not buffered).

    Args:
        app: the application.
        https: users reach the server by https only, and browsers must enforce that.
    """

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self._app = app
        self._headers = {**_DEFAULTS, **({"Strict-Transport-Security": _HSTS} if https else {})}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward the request."""

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, adding)


def policy(*, script: str, image: str = "'self'") -> str:
    """Return the content security policy of a page.

    All content comes from this server and nothing else is inline: output of a build can't become a
    program on a page.

    Args:
        script: sources of scripts.
        image: sources of images.
    """
    return (
        f"default-src 'none'; script-src {script}; style-src 'self'; img-src {image}; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )


IDLE: Final = timedelta(days=7)
LONGEST: Final = timedelta(days=30)
_EXTEND_EVERY: Final = timedelta(hours=1)  # so that few requests of a session write to the database


class Sessions:
    """Begins, finds and ends sessions.

    Thread-safe; every method except `id_of` queries the database.

    Args:
        context: the server's context.

    Attributes:
        cookie: name of the cookie. With https, its prefix ``__Host-`` makes browsers refuse a
            cookie that another host or plain HTTP has set.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._secure = context.settings.https
        self.cookie = f"{'__Host-' if self._secure else ''}buildrunner_session"

    def id_of(self, request: HTTPConnection) -> str:
        """Return the session id of a request; empty for none."""
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
        """Return the caller of a session; None for an unknown or ended session."""
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
        """Return the secret value for forms of a session (CSRF).

        Servers with the same database return the same value, also after a restart.
        """
        key = self._context.store.form_key()
        return hmac.new(key, hash_of(session_id).encode(), hashlib.sha256).hexdigest()

    def set_cookie(self, answer: Response, session_id: str) -> None:
        """Set the session's cookie; an empty id deletes it."""
        answer.set_cookie(
            self.cookie,
            session_id,
            max_age=int(LONGEST.total_seconds()) if session_id else 0,
            path="/",
            secure=self._secure,
            httponly=True,
            samesite="lax",
        )


class WorkerAccess:
    """The dependency of the routes of the worker protocol: returns the worker of the token.

    Args:
        context: the server's context. Its ``worker_tokens`` verify further kinds of tokens.
        threads: the threads that look for tokens; None for the common ones.

    Attributes:
        scope: the scope of the tokens.
    """

    scope = WORKER

    def __init__(self, context: ServerContext, threads: CapacityLimiter | None = None) -> None:
        self._context = context
        self._threads = threads

    async def __call__(self, request: Request) -> WorkerIdentity:
        """Return the worker that sent a request. Raises `ApiError`."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip()
        if not token or scheme.lower() != "bearer":
            raise permission_denied(
                "this route is for workers: send 'Authorization: Bearer TOKEN' "
                "(buildrunner tokens create NAME --worker makes one)"
            )
        worker = await to_thread.run_sync(self._verified, token, limiter=self._threads)
        if worker is None:
            raise unauthenticated("the token is no worker's, is unknown or was revoked")
        request.state.caller = Caller(worker.name, ())
        return worker

    def _verified(self, token: str) -> WorkerIdentity | None:
        for verified in self._context.worker_tokens:
            if (worker := verified(token)) is not None:
                return worker
        return worker_of(token, self._context.store.tokens.find(hash_of(token)))
