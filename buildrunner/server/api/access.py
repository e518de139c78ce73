"""buildrunner's own routes of access: the caller, tokens, the audit log."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from buildrunner import __version__
from buildrunner.errors import Conflict, UsageError
from buildrunner.server.context import ServerContext
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.bodies import as_mapping, json_body
from buildrunner.server.http.errors import already_exists, invalid_argument
from buildrunner.server.http.requests import number
from buildrunner.server.http.tokens import Caller, new_token
from buildrunner.server.openapi import BEFORE, LIMIT, documented
from buildrunner.server.services.documents import shown_entry, shown_token

_MAX_ENTRIES = 1000


def router(context: ServerContext) -> APIRouter:
    """Return the routes.

    Tokens and the audit log belong to the whole server, and need ``admin`` for all projects.
    """
    access = Access(context)
    body_of = json_body(context)
    routes = APIRouter(prefix="/buildrunner/v1", tags=["access"])
    admin = access.may("admin", everywhere=True)

    async def anybody(request: Request) -> Caller:
        return await access.caller(request)

    def whoami(caller: Caller = Depends(anybody)) -> Response:
        """Return the name, scopes and projects of the caller's token."""
        return json_response(
            {
                "name": caller.name,
                "scopes": caller.scopes,
                "projects": caller.projects,
                "server": f"buildrunner {__version__}",
            }
        )

    def tokens(_: Caller = Depends(admin)) -> Response:
        """List names, scopes and projects of tokens, without the tokens."""
        return json_response({"tokens": [shown_token(t) for t in context.store.tokens.all()]})

    def create(
        request: Request,
        _: Caller = Depends(access.may("admin", "tokens.create", everywhere=True)),
        body: Any = Depends(body_of),
    ) -> Response:
        """Create a token. Only the answer to this call shows it."""
        given = as_mapping(body)
        name = given.get("name", "")
        note_target(request, str(name))
        try:
            text, token = new_token(
                str(name),
                _words(given, "scopes"),
                _words(given, "projects"),
                pool=str(given.get("pool", "")),
                now=context.clock(),
            )
        except UsageError as error:
            raise invalid_argument(str(error)) from error
        try:
            context.store.tokens.create(token)
        except Conflict as error:
            raise already_exists(str(error)) from error
        return json_response({**shown_token(token), "token": text})

    def revoke(
        request: Request,
        name: str,
        _: Caller = Depends(access.may("admin", "tokens.revoke", everywhere=True)),
    ) -> Response:
        """Revoke a token at once."""
        note_target(request, name)
        context.store.tokens.revoke(name, now=context.clock())
        return json_response({})

    def audit(request: Request, _: Caller = Depends(admin)) -> Response:
        """List the audit log, newest entries first; ``before=ID`` returns older entries."""
        entries = context.store.audit.page(
            limit=number(request, "limit", low=1, high=_MAX_ENTRIES, default=100),
            before_id=number(request, "before", low=0, high=2**62),
        )
        return json_response({"entries": [shown_entry(entry) for entry in entries]})

    routes.add_api_route("/whoami", whoami, methods=["GET"])
    routes.add_api_route("/tokens", tokens, methods=["GET"])
    routes.add_api_route(
        "/tokens", create, methods=["POST"], openapi_extra=documented(body="NewToken")
    )
    routes.add_api_route("/tokens/{name}", revoke, methods=["DELETE"])
    routes.add_api_route(
        "/audit", audit, methods=["GET"], openapi_extra=documented(query=(LIMIT, BEFORE))
    )
    return routes


def _words(body: dict[str, Any], name: str) -> list[str]:
    value = body.get(name, [])
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise invalid_argument(f"{name} must be a list of strings", field=name)
    return value
