"""Calls of webhook triggers: anybody's JSON.

Source: Cloud Build's "Automate builds in response to webhook events".
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import Any, Final

from buildrunner.errors import UsageError
from buildrunner.triggers.events import MessageEvent
from buildrunner.triggers.forges.forge import BadDelivery, WebhookRequest, json_value, plain_payload


def secret_matches(presented: str, expected: str) -> bool:
    """Whether the caller knows the secret; in a time that tells nothing about it.

    An empty secret matches nothing: whoever configured one left the door open.
    """
    wanted = expected.strip()
    return bool(wanted) and hmac.compare_digest(presented.encode(), wanted.encode())


def payload_of(body: bytes, decode: Any) -> Any:
    """The payload: the raw body, or what Google's client wraps into an HttpBody message.

    Args:
        body: the request's body.
        decode: parses JSON; raises `UsageError` for anything else.

    Returns:
        Parsed JSON; None when there is no body.

    Raises:
        UsageError: it is not JSON.
    """
    if not body.strip():
        return None
    value = decode(body)
    if not _is_http_body(value):
        return value
    try:
        inner = base64.b64decode(value["data"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError("the data of the HttpBody is not base64") from error
    return decode(inner) if inner.strip() else None


def _is_http_body(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("data"), str)
        and {"contentType", "data"} <= value.keys() <= {"contentType", "data", "extensions"}
    )


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
