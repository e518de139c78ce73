"""Who may do what: the dependencies that every route begins with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from buildrunner.server.errors import invalid_argument, permission_denied, unauthenticated
from buildrunner.server.tokens import LOCAL, PROJECT_ID, Caller, caller_of, hash_of

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext

Authorizer = Callable[[Request], Awaitable[Caller]]


class Access:
    """Makes the dependencies of routes.

    A route says ``caller: Caller = Depends(access.may("submit", "builds.create"))``. It runs before
    the body is read, so that strangers can't make the server read anything.
    """

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def may(self, scope: str, action: str = "", *, everywhere: bool = False) -> Authorizer:
        """A dependency that lets a request pass, and tells who sent it.

        Args:
            scope: what the caller's token must allow in the project that the path names.
            action: name for the audit log; empty for what changes nothing.
            everywhere: the token must be good for all projects.
        """

        async def authorize(request: Request) -> Caller:
            project = ""
            if not everywhere:
                project = project_of(request, self._context.settings.default_project)
            if action:
                note_action(request, action, project)
            caller = await self.caller(request)
            request.state.caller = caller
            if not (caller.may(scope, project) if project or everywhere else caller.can(scope)):
                where = f"project {project}" if project else "this server"
                raise permission_denied(
                    f"token {caller.name} may not do this: it needs scope {scope} for {where}"
                )
            return caller

        return authorize

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
        if not token:
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
