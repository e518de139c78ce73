"""Who may do what: the dependencies that every route begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from buildrunner.server.errors import invalid_argument, permission_denied, unauthenticated
from buildrunner.server.sessions import Sessions
from buildrunner.server.tokens import (
    LOCAL,
    PROJECT_ID,
    PUBLIC_NAME,
    Caller,
    caller_of,
    hash_of,
    public_caller,
)

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext


_READING = ("GET", "HEAD")


class Access:
    """Makes the dependencies of routes.

    A route says ``caller: Caller = Depends(access.may("submit", "builds.create"))``. It runs before
    the body is read, so that strangers can't make the server read anything.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._sessions = Sessions(context)

    def may(
        self, scope: str, action: str = "", *, everywhere: bool = False, known: bool = False
    ) -> Requirement:
        """A dependency that lets a request pass, and tells who sent it.

        Args:
            scope: what the caller's token must allow in the project that the path names.
            action: name for the audit log; empty for what changes nothing.
            everywhere: the token must be good for all projects.
            known: there must be a token, also where the project is for everyone to read.
        """
        return Requirement(self, scope, action, everywhere=everywhere, known=known)

    def project_of(self, request: Request) -> str:
        """The project that the path names; empty when it names none."""
        return project_of(request, self._context.settings.default_project)

    async def caller(self, request: Request) -> Caller:
        """Who sent the request.

        A client without credentials gets 403, not 401: Google's clients answer a 401 by refreshing
        credentials, which anonymous ones can't, and the reader would never see our sentence.

        Raises:
            ApiError: 403 without a token, 401 with a bad one.
        """
        if not self._context.settings.auth:
            return LOCAL
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        token = token.strip()
        session = self._sessions.id_of(request)
        if not token and session and request.method in _READING:  # what our own pages read
            caller = await run_in_threadpool(self._sessions.caller, session)
            if caller is not None:
                return caller
        if not token:
            public = public_caller(self._context.settings.public_projects)
            if public is not None and request.method in _READING:
                return public
            raise permission_denied(
                "this server wants a token: send 'Authorization: Bearer TOKEN' "
                "(buildrunner tokens create makes one)"
            )
        if scheme.lower() != "bearer":
            raise unauthenticated(f"credentials of kind {scheme} are not understood: send Bearer")
        found = await run_in_threadpool(self._context.store.find_token, hash_of(token))
        caller = caller_of(token, found)
        if caller is None:
            raise unauthenticated("the token is unknown or was revoked")
        return caller


class Requirement:
    """What a caller's token must allow; a dependency of routes. See `Access.may`.

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
        """The caller, if he may. Raises `ApiError`."""
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


def project_of(request: Request, default: str) -> str:
    """The project that the path names; empty when it names none.

    Raises:
        ApiError: it is no project id.
    """
    project: str = request.path_params.get("project", "")
    if project == "-":
        return default
    if project and not PROJECT_ID.fullmatch(project):
        raise invalid_argument(f"{project!r} is no project id", field="projectId")
    return project


def note_action(request: Request, action: str, target: str) -> None:
    """Have the request written into the audit log, with what comes of it."""
    request.state.audit = (action, target)


def note_target(request: Request, *parts: str) -> None:
    """Say what exactly the request is about, once that is known."""
    action, _ = request.state.audit
    request.state.audit = (action, "/".join(part for part in parts if part))
