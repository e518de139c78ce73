"""The route of webhook triggers: a caller who knows the trigger's secret starts a build."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from buildrunner.errors import SecretError
from buildrunner.server.context import ServerContext
from buildrunner.server.events.intake import Refusals, kept_headers
from buildrunner.server.events.webhook_calls import WebhookCall, WebhookCalls
from buildrunner.server.http.access import note_action, note_target
from buildrunner.server.http.answers import json_response
from buildrunner.server.http.errors import (
    ApiError,
    invalid_argument,
    permission_denied,
    unavailable,
)
from buildrunner.server.http.requests import address_of, client_address, parameter, raw_body
from buildrunner.server.http.tokens import Caller
from buildrunner.server.openapi import PARENT, REQUEST_ID, Parameter, documented

_REFUSED = "the trigger or its secret is not right"
_SECRET = Parameter("secret", "string", "The trigger's secret.")
_KEY = Parameter("key", "string", "Google's API key: ignored.")

_Verified = tuple[WebhookCall, dict[str, Any]]


def router(context: ServerContext) -> APIRouter:
    """The route of webhooks: no token, the secret is the proof."""
    calls = WebhookCalls(context)
    refusals = Refusals(context.store, context.clock)
    read = raw_body(context, context.settings.max_webhook_bytes)
    routes = APIRouter(tags=["triggers"])

    async def verified(request: Request) -> _Verified:
        """The call and its trigger, if the caller knows the trigger's secret."""
        call = WebhookCall(
            address=address_of(context, request),
            trigger=request.path_params["trigger"],
            secret=parameter(request, "secret"),
            request_id=parameter(request, "requestId"),
            headers=kept_headers(request.headers),
            client=client_address(request),
        )
        found = await run_in_threadpool(calls.find, call)
        try:
            reason = await calls.reason_to_refuse(call, found)
        except SecretError as error:
            reason = f"its secret can't be had now: {error}"
            await refusals.record(calls.refused(call, found), reason)
            raise unavailable("the call can't be verified now: send it again") from None
        if reason:
            await refusals.record(calls.refused(call, found), reason)
            raise permission_denied(_REFUSED)
        note_action(request, "triggers.webhook", found["id"])
        name = f"webhook:{found['name']}"
        request.state.caller = Caller(name, ("submit",), (request.path_params["project"],))
        return call, found

    async def body_of(request: Request, known: _Verified = Depends(verified)) -> bytes:
        """The body; a body that is too large is recorded as refused."""
        try:
            return await read(request)
        except ApiError as error:
            await refusals.record(calls.refused(*known), str(error))
            raise

    def receive(
        request: Request,
        trigger: str,  # noqa: ARG001  (documented; `verified` reads it)
        known: _Verified = Depends(verified),
        body: bytes = Depends(body_of),
    ) -> Response:
        """Receive a payload. Its build is in the queue when this call is answered."""
        call, found = known
        result = calls.receive(call, found, body)
        if result.builds:
            note_target(request, call.address.project, found["id"], *result.builds)
        if result.problem:
            raise invalid_argument(result.problem)
        return json_response({})

    for form in ("", "/locations/{location}"):
        path = f"/v1/projects/{{project}}{form}/triggers/{{trigger}}:webhook"
        routes.add_api_route(
            path,
            receive,
            methods=["POST"],
            openapi_extra=documented(
                body="Payload", answer="Empty", query=(PARENT, REQUEST_ID, _SECRET, _KEY)
            ),
        )
    return routes
