"""Webhook triggers: whoever knows the secret starts a build with what he sends.

A call is kept like a delivery of a forge, and handled before it is answered.

Source: Cloud Build's "Automate builds in response to webhook events".
"""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from buildrunner.errors import NotFound, SecretError, SecretNotFound
from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.server.api.hooks import kept_headers
from buildrunner.server.api.triggers import Triggers
from buildrunner.server.context import ServerContext
from buildrunner.server.events.facts import NotNow
from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.events.hook_secrets import HookSecrets
from buildrunner.server.events.intake import Refusals
from buildrunner.server.events.reading import WEBHOOK, webhook_hook
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
from buildrunner.store.model.deliveries import NewDelivery
from buildrunner.triggers.forges.forge import BadDelivery, WebhookRequest
from buildrunner.triggers.forges.webhook import call_id, secret_matches, webhook_event

_log = logging.getLogger("buildrunner.server")
_REFUSED = "the trigger or its secret is not right"
_MOST_HOOK = 200
_MOST_ID = 1000
_NOBODY = "a wrong secret for no trigger"

_SECRET = Parameter("secret", "string", "The trigger's secret.")
_KEY = Parameter("key", "string", "Google's API key: ignored.")


def router(context: ServerContext) -> APIRouter:
    """The route of webhooks: no token, the secret is the proof."""
    calls = WebhookCalls(context)
    refusals = Refusals(context.store, context.clock)
    read = raw_body(context, context.settings.max_webhook_bytes)
    routes = APIRouter(tags=["triggers"])

    async def known(request: Request) -> dict[str, Any]:
        """The trigger, once the caller has shown that he knows its secret."""
        found = await run_in_threadpool(calls.find, request)
        try:
            reason = await calls.reason_to_refuse(request, found)
        except SecretError as error:
            reason = f"its secret can't be had now: {error}"
            await refusals.record(calls.refused(request, found), reason)
            raise unavailable("the call can't be verified now: send it again") from None
        if reason:
            await refusals.record(calls.refused(request, found), reason)
            raise permission_denied(_REFUSED)
        note_action(request, "triggers.webhook", found["id"])
        name = f"webhook:{found['name']}"
        request.state.caller = Caller(name, ("submit",), (request.path_params["project"],))
        return found

    async def body_of(request: Request, found: dict[str, Any] = Depends(known)) -> bytes:
        """The body; one that is too large leaves a trace, too."""
        try:
            return await read(request)
        except ApiError as error:
            await refusals.record(calls.refused(request, found), str(error))
            raise

    def receive(
        request: Request,
        trigger: str,  # noqa: ARG001  (documented; `known` reads it)
        found: dict[str, Any] = Depends(known),
        body: bytes = Depends(body_of),
    ) -> Response:
        """Take a payload; the build it makes is in the queue when this answers."""
        calls.receive(request, found, body)
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


class WebhookCalls:
    """Takes calls of webhook triggers. Thread-safe."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._triggers = Triggers(context)
        self._secrets = HookSecrets(context.secrets, context.store.hooks.all)
        self._handler = DeliveryHandler(context)

    def receive(self, request: Request, trigger: dict[str, Any], body: bytes) -> None:
        """Keep a call, and handle it.

        Raises:
            ApiError: it is not JSON, or the build that it asks for can't be made.
        """
        store, now = self._context.store, self._context.clock()
        project = address_of(self._context, request).project
        new = self._delivery(request, webhook_hook(project, trigger), body)
        try:
            webhook_event(WebhookRequest(new.headers, body))
        except BadDelivery as error:
            store.deliveries.refuse(new, str(error), now=now)
            raise invalid_argument(str(error)) from error
        ((stored, is_new),) = store.deliveries.add([new], now=now)
        if not is_new:
            return
        try:
            outcome = self._handler.handle(stored)
        except NotNow:  # it is kept: the loop of deliveries handles it
            self._context.hook_arrived()
            return
        store.deliveries.finish([(stored, outcome)])
        for verdict in (one for event in outcome["events"] for one in event["verdicts"]):
            if verdict.get("build"):
                note_target(request, project, trigger["id"], verdict["build"])
            if verdict.get("problem"):
                raise invalid_argument(verdict["problem"])

    def find(self, request: Request) -> dict[str, Any]:
        """The trigger that the path names; empty if there is none."""
        try:
            return self._triggers.find(request, request.path_params["trigger"])
        except NotFound:
            return {}

    async def reason_to_refuse(self, request: Request, trigger: dict[str, Any]) -> str:
        """Why a call of a trigger is refused; empty when it is not.

        The answer to the caller must not depend on the reason: it would say which triggers exist.

        Raises:
            SecretError: the trigger's secret can't be had now.
        """
        presented = parameter(request, "secret")
        if not trigger:
            secret_matches(presented, _NOBODY)
            return "there is no such trigger"
        version = trigger.get("webhookConfig", {}).get("secret", "")
        project = address_of(self._context, request).project
        asker = Asker(use=Use.WEBHOOK, project=project)
        try:
            expected = await self._secrets.of(asker, version) if version else ""
        except SecretNotFound as error:
            _log.error("webhook of trigger %s: %s; %s", trigger["name"], error, error.hint)
            return f"its secret can't be read: {error}"
        return "" if secret_matches(presented, expected) else "the secret is not right"

    def refused(self, request: Request, trigger: dict[str, Any]) -> NewDelivery:
        """The record of a call that is not taken."""
        project = request.path_params["project"]
        name = trigger.get("name") or request.path_params["trigger"]
        return self._delivery(request, f"{WEBHOOK}/{project}/{name}"[:_MOST_HOOK], b"")

    def _delivery(self, request: Request, hook: str, body: bytes) -> NewDelivery:
        headers = kept_headers(request)
        given = parameter(request, "requestId") or call_id(WebhookRequest(headers, body))
        return NewDelivery(
            hook=hook,
            delivery_id=given[:_MOST_ID] or self._context.new_id(),
            headers=headers,
            body=body,
            address=client_address(request),
        )
