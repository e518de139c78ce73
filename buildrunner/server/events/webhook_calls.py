"""Calls of webhook triggers: verified by the trigger's secret, stored, and handled at once.

A call is stored like a delivery of a forge, and handled before it is answered. If too many filters
of the project run, the loop of deliveries handles the call later.

Source: Cloud Build's "Automate builds in response to webhook events".
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from buildrunner.errors import NotFound, SecretNotFound
from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.server.context import ServerContext
from buildrunner.server.events.facts import NotNow
from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.events.hook_secrets import HookSecrets
from buildrunner.server.events.reading import WEBHOOK, webhook_hook
from buildrunner.server.http.errors import invalid_argument
from buildrunner.server.http.requests import Address
from buildrunner.server.services.triggers import Triggers
from buildrunner.store.model.deliveries import NewDelivery
from buildrunner.triggers.forges.forge import BadDelivery, WebhookRequest
from buildrunner.triggers.forges.webhook import call_id, secret_matches, webhook_event

_MOST_HOOK: Final = 200
_MOST_ID: Final = 1000
_NOBODY: Final = "a wrong secret for no trigger"

_log = logging.getLogger("buildrunner.server")


class WebhookCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a webhook trigger, without its body.

    Attributes:
        address: project and location of the trigger.
        trigger: id or name of the trigger, as the caller sent it.
        secret: the secret that the caller presents.
        request_id: the caller's idempotency key; empty for none.
        headers: the headers that are stored.
        client: IP address of the caller.
    """

    address: Address
    trigger: str
    secret: str
    request_id: str
    headers: Mapping[str, str]
    client: str


class WebhookResult(msgspec.Struct, frozen=True, kw_only=True):
    """The builds that a call made, and why a build could not be made; empty if all could."""

    builds: tuple[str, ...] = ()
    problem: str = ""


class WebhookCalls:
    """Verifies and handles calls of webhook triggers. Thread-safe."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context
        self._triggers = Triggers(context)
        self._secrets = HookSecrets(context.secrets, context.store.hooks.all)
        self._handler = DeliveryHandler(context, waits=False)

    def find(self, call: WebhookCall) -> dict[str, Any]:
        """Return the trigger that a call names; an empty document if it does not exist."""
        try:
            return self._triggers.find(call.address, call.trigger)
        except NotFound:
            return {}

    async def reason_to_refuse(self, call: WebhookCall, trigger: dict[str, Any]) -> str:
        """Return why a call is refused; empty if the caller knows the trigger's secret.

        The answer must not depend on the reason: it would show whether a trigger exists.

        Raises:
            SecretError: the trigger's secret can't be read now.
        """
        if not trigger:
            secret_matches(call.secret, _NOBODY)
            return "there is no such trigger"
        version = trigger.get("webhookConfig", {}).get("secret", "")
        asker = Asker(use=Use.WEBHOOK, project=call.address.project)
        try:
            expected = await self._secrets.of(asker, version) if version else ""
        except SecretNotFound as error:
            _log.error("webhook of trigger %s: %s; %s", trigger["name"], error, error.hint)
            return f"its secret can't be read: {error}"
        return "" if secret_matches(call.secret, expected) else "the secret is not right"

    def receive(self, call: WebhookCall, trigger: dict[str, Any], body: bytes) -> WebhookResult:
        """Store a verified call and handle it.

        Raises:
            ApiError: the body is not JSON.
        """
        store, now = self._context.store, self._context.clock()
        new = self._delivery(call, webhook_hook(call.address.project, trigger), body)
        try:
            webhook_event(WebhookRequest(new.headers, body))
        except BadDelivery as error:
            store.deliveries.refuse(new, str(error), now=now)
            raise invalid_argument(str(error)) from error
        ((stored, is_new),) = store.deliveries.add([new], now=now)
        if not is_new:
            return WebhookResult()
        try:
            outcome = self._handler.handle(stored)
        except NotNow:  # it is stored: the loop of deliveries handles it
            self._context.hook_arrived()
            return WebhookResult()
        store.deliveries.finish([(stored, outcome)])
        verdicts = [one for event in outcome["events"] for one in event["verdicts"]]
        return WebhookResult(
            builds=tuple(one["build"] for one in verdicts if one.get("build")),
            problem=next((one["problem"] for one in verdicts if one.get("problem")), ""),
        )

    def refused(self, call: WebhookCall, trigger: dict[str, Any]) -> NewDelivery:
        """Return the record of a refused call."""
        name = trigger.get("name") or call.trigger
        return self._delivery(call, f"{WEBHOOK}/{call.address.project}/{name}"[:_MOST_HOOK], b"")

    def _delivery(self, call: WebhookCall, hook: str, body: bytes) -> NewDelivery:
        headers = dict(call.headers)
        given = call.request_id or call_id(WebhookRequest(headers, body))
        return NewDelivery(
            hook=hook,
            delivery_id=given[:_MOST_ID] or self._context.new_id(),
            headers=headers,
            body=body,
            address=call.client,
        )
