"""Our own routes of the outbox: what was told to whom of a project's builds, and what was not."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import Conflict, NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.errors import ApiError, failed_precondition, invalid_argument
from buildrunner.server.http.requests import number, parameter
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import BEFORE, LIMIT, Parameter, documented
from buildrunner.server.services.documents import shown_message
from buildrunner.store.model.outbox import STATES, Message

_MOST = 500
_STATE = Parameter("state", "string", f"Only messages in this state: {', '.join(STATES)}.")
_BUILD_ID = Parameter("buildId", "string", "Only messages about this build.")
_PATH = "/buildrunner/v1/projects/{project}/outbox"


def router(context: ServerContext) -> APIRouter:
    """The routes."""
    access = Access(context)
    routes = APIRouter(tags=["notifications"])

    def listing(request: Request, _: Caller = Depends(access.may("read", known=True))) -> Response:
        """List messages, newest first; filtered by ``state`` and ``buildId``, ``before=ID``."""
        state = parameter(request, "state")
        if state and state not in STATES:
            message = f"state takes {', '.join(STATES)}, not {state}"
            raise invalid_argument(message, field="state")
        found = context.store.outbox.page(
            project_id=access.project_of(request),
            build_id=parameter(request, "buildId"),
            state=state,
            limit=number(request, "limit", low=1, high=_MOST, default=50),
            before=number(request, "before", low=0, high=1 << 62),
        )
        return json_response({"messages": [shown_message(one) for one in found]})

    def get(
        request: Request, message: int, _: Caller = Depends(access.may("read", known=True))
    ) -> Response:
        """Return a message with its content, which has only the names of secrets."""
        found = find_message(context, access.project_of(request), message)
        return json_response({**shown_message(found), "message": found.message})

    def retry(
        request: Request,
        message: int,
        _: Caller = Depends(access.may("admin", "outbox.retry")),
    ) -> Response:
        """Send a message now, even if it was given up."""
        project = access.project_of(request)
        note_target(request, project, str(message))
        find_message(context, project, message)
        try:
            again = context.store.outbox.retry(message, now=context.clock())
        except Conflict as error:
            raise failed_precondition(str(error)) from error
        return json_response(shown_message(again))

    def drop(
        request: Request,
        message: int,
        _: Caller = Depends(access.may("admin", "outbox.drop")),
    ) -> Response:
        """Delete a message without sending it."""
        project = access.project_of(request)
        note_target(request, project, str(message))
        find_message(context, project, message)
        context.store.outbox.drop(message)
        return json_response({})

    routes.add_api_route(
        _PATH,
        listing,
        methods=["GET"],
        openapi_extra=documented(query=(_STATE, _BUILD_ID, LIMIT, BEFORE)),
    )
    routes.add_api_route(
        _PATH + "/{message}:retry",
        retry,
        methods=["POST"],
        openapi_extra=documented(body="Empty"),
    )
    routes.add_api_route(_PATH + "/{message}", get, methods=["GET"])
    routes.add_api_route(_PATH + "/{message}", drop, methods=["DELETE"])
    return routes


def find_message(context: ServerContext, project: str, message_id: int) -> Message:
    """A message of a project.

    Raises:
        ApiError: there is none.
    """
    missing = f"there is no message {message_id} in the outbox of project {project}"
    if message_id >= 1 << 62:
        raise ApiError(404, missing)
    try:
        found = context.store.outbox.get(message_id)
    except NotFound as error:
        raise ApiError(404, missing) from error
    if found.project_id != project:
        raise ApiError(404, missing)
    return found
