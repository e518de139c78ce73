"""buildrunner's own routes of triggers: deliveries with their reasons, replays, and test events."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from buildrunner.errors import Conflict, NotFound
from buildrunner.server.context import ServerContext
from buildrunner.server.events.handling import tried
from buildrunner.server.http.access import Access, note_target
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.bodies import as_mapping, json_body
from buildrunner.server.http.errors import ApiError, failed_precondition, invalid_argument
from buildrunner.server.http.requests import address_of, number, parameter
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import BEFORE, LIMIT, PARENT, Parameter, documented
from buildrunner.server.services.documents import shown_delivery
from buildrunner.server.services.triggers import Triggers, known_trigger
from buildrunner.triggers.forges.forge import BadDelivery, WebhookRequest, payload_bytes

_MOST = 500
_HOOK = Parameter("hook", "string", "Only deliveries of this hook.")


def router(context: ServerContext) -> APIRouter:
    """Return the routes.

    Deliveries belong to all projects, so they need a token for all projects.
    """
    access = Access(context)
    body_of = json_body(context, context.settings.max_delivery_bytes, payload=True)
    triggers = Triggers(context)
    routes = APIRouter(prefix="/buildrunner/v1", tags=["deliveries"])
    reader = access.may("read", everywhere=True)

    def listing(request: Request, _: Caller = Depends(reader)) -> Response:
        """List deliveries, newest first; ``before=NUMBER`` returns older ones."""
        found = context.store.deliveries.page(
            hook=parameter(request, "hook"),
            limit=number(request, "limit", low=1, high=_MOST, default=50),
            before=number(request, "before", low=0, high=1 << 62),
        )
        return json_response({"deliveries": [shown_delivery(one) for one in found]})

    def get(delivery: int, _: Caller = Depends(access.may("admin", everywhere=True))) -> Response:
        """Return a delivery, with the reason why each trigger fired or did not."""
        try:
            found = context.store.deliveries.get(delivery)
        except NotFound as error:
            raise ApiError(404, str(error)) from error
        shown = shown_delivery(found)
        payload = payload_bytes(WebhookRequest(found.headers, found.body))
        shown |= {"headers": found.headers, "outcome": found.outcome, **_shown_body(payload)}
        return json_response(shown)

    def replay(
        request: Request,
        delivery: int,
        _: Caller = Depends(access.may("admin", "deliveries.replay", everywhere=True)),
    ) -> Response:
        """Handle a delivery again, which may start new builds."""
        note_target(request, str(delivery))
        try:
            again = context.store.deliveries.replay(delivery)
        except NotFound as error:
            raise ApiError(404, str(error)) from error
        except Conflict as error:
            raise failed_precondition(str(error)) from error
        context.hook_arrived()
        return json_response(shown_delivery(again))

    def test(
        request: Request,
        trigger: str,
        _: Caller = Depends(access.may("read")),
        body: Any = Depends(body_of),
    ) -> Response:
        """Test whether an event would fire a trigger, rule by rule. Builds nothing."""
        address = address_of(context, request)
        known = known_trigger(context, address.project, triggers.find(address, trigger))
        try:
            verdicts = tried(context, known, as_mapping(body))
        except BadDelivery as error:
            raise invalid_argument(str(error), field="event") from error
        return json_response({"verdicts": verdicts})

    routes.add_api_route(
        "/deliveries",
        listing,
        methods=["GET"],
        openapi_extra=documented(query=(_HOOK, LIMIT, BEFORE)),
    )
    routes.add_api_route(
        "/deliveries/{delivery}:replay",
        replay,
        methods=["POST"],
        openapi_extra=documented(body="Empty"),
    )
    routes.add_api_route("/deliveries/{delivery}", get, methods=["GET"])
    path = "/projects/{project}/triggers/{trigger}:test"
    routes.add_api_route(
        path,
        test,
        methods=["POST"],
        openapi_extra=documented(body="TrialEvent", query=(PARENT,)),
    )
    return routes


def _shown_body(body: bytes) -> dict[str, Any]:
    try:
        return {"body": msgspec.json.decode(body)}
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return {"bodyBase64": base64.b64encode(body).decode()}
