"""Webhook triggers: whoever knows the secret starts a build with what he sends.

Source: Cloud Build's "Automate builds in response to webhook events".
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from buildrunner.errors import NotFound, SecretError, UsageError
from buildrunner.server.access import note_action, note_target
from buildrunner.server.answers import json_response
from buildrunner.server.errors import invalid_argument, permission_denied
from buildrunner.server.requests import parameter, parsed, raw_body
from buildrunner.server.routes_triggers import Triggers
from buildrunner.server.tokens import Caller
from buildrunner.spec.decode import decode_message
from buildrunner.spec.trigger import BuildTrigger
from buildrunner.triggers.event_filter import filter_rule
from buildrunner.triggers.trigger_build import filter_values, webhook_run
from buildrunner.triggers.webhook_payload import payload_of, secret_matches

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext

_log = logging.getLogger("buildrunner.server")
_REFUSED = "the trigger or its secret is not right"
_NOBODY = "a wrong secret for no trigger"


def router(context: ServerContext) -> APIRouter:
    """The route of webhooks: no token, the secret is the proof."""
    triggers = Triggers(context)
    read = raw_body(context, context.settings.max_webhook_bytes)
    routes = APIRouter(tags=["triggers"])

    async def known(request: Request) -> dict[str, Any]:
        """The trigger, once the caller has shown that he knows its secret."""
        note_action(request, "triggers.webhook", request.path_params["trigger"])
        found = await run_in_threadpool(_known_trigger, context, triggers, request)
        name = f"webhook:{found['name']}"
        request.state.caller = Caller(name, ("submit",), (request.path_params["project"],))
        return found

    def receive(
        request: Request,
        trigger: str,  # noqa: ARG001  (documented; `known` reads it)
        found: dict[str, Any] = Depends(known),
        body: bytes = Depends(read),
    ) -> Response:
        """Take a payload; the build it makes is in the queue when this answers."""
        caller: Caller = request.state.caller
        message = decode_message(BuildTrigger, found).value
        if message.disabled:
            return json_response({})
        try:
            payload = payload_of(body, _decoded)
            values = filter_values(message, {"body": payload})
            rule = filter_rule(message.filter, values, payload)
            if rule.passed is False:
                _log.info("webhook of trigger %s makes no build: %s", message.name, rule.text)
                return json_response({})
            made = webhook_run(message, payload)
        except UsageError as error:
            raise invalid_argument(str(error)) from error
        for warning in made.warnings:
            _log.warning("webhook of trigger %s: %s", message.name, warning)
        stored = triggers.queue(request, found, made, caller)
        note_target(request, stored.document["projectId"], message.id, stored.id)
        return json_response({})

    for form in ("", "/locations/{location}"):
        path = f"/v1/projects/{{project}}{form}/triggers/{{trigger}}:webhook"
        routes.add_api_route(path, receive, methods=["POST"])
    return routes


def _decoded(body: bytes) -> Any:
    from buildrunner.server.errors import ApiError

    try:
        return parsed(body)
    except ApiError as error:
        raise UsageError(str(error)) from error


def _known_trigger(context: ServerContext, triggers: Triggers, request: Request) -> dict[str, Any]:
    """The trigger whose secret the caller knows.

    Raises:
        ApiError: 403, whatever is wrong, so that nobody learns which triggers there are.
    """
    presented = parameter(request, "secret")
    try:
        found = triggers.find(request, request.path_params["trigger"])
    except NotFound:
        secret_matches(presented, _NOBODY)
        raise permission_denied(_REFUSED) from None
    version = found.get("webhookConfig", {}).get("secret", "")
    try:
        expected = context.secret(version) if version else ""
    except SecretError as error:
        _log.error("webhook of trigger %s: %s", found["name"], error)
        raise permission_denied(_REFUSED) from None
    if not secret_matches(presented, expected):
        raise permission_denied(_REFUSED)
    return found
