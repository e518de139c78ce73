"""Calls of webhook triggers: anybody's JSON.

Source: Cloud Build's "Automate builds in response to webhook events".
"""

from __future__ import annotations

from typing import Any, Final

from buildrunner.errors import UsageError
from buildrunner.triggers.events import MessageEvent
from buildrunner.triggers.forges.forge import BadDelivery, WebhookRequest, json_value, plain_payload
from buildrunner.triggers.webhook_payload import payload_of

# Under which senders give a call an id that stays the same when they try again.
_IDS: Final = (
    "idempotency-key",
    "webhook-id",
    "x-github-delivery",
    "x-gitea-delivery",
    "x-forgejo-delivery",
    "x-gogs-delivery",
    "x-request-uuid",
)


def webhook_event(request: WebhookRequest) -> MessageEvent:
    """The call's payload: the raw body, or what Google's client wraps into an HttpBody message.

    Raises:
        BadDelivery: it is not JSON.
    """
    try:
        body = payload_of(plain_payload(request), _decoded)
    except UsageError as error:
        raise BadDelivery(str(error)) from error
    return MessageEvent(kind="webhook", body=body)


def call_id(request: WebhookRequest) -> str:
    """The sender's id of the call; empty when it gives none."""
    return next((request.header(name) for name in _IDS if request.header(name)), "")


def _decoded(body: bytes) -> Any:
    try:
        return json_value(body)
    except BadDelivery as error:
        raise UsageError(str(error)) from error
