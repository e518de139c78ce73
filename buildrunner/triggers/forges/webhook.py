"""Calls of webhook triggers, with any JSON.

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
    """Return whether the caller knows the secret; in constant time.

    An empty secret, which would let everyone in, matches nothing.
    """
    wanted = expected.strip()
    return bool(wanted) and hmac.compare_digest(presented.encode(), wanted.encode())


def payload_of(body: bytes, decode: Any) -> Any:
    """Return the payload: the raw body, or the data of an HttpBody message of Google's client.

    Args:
        body: the request's body.
        decode: parses JSON; raises `UsageError` for anything else.

    Returns:
        Parsed JSON; None without a body.

    Raises:
        UsageError: the body is not JSON.
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


# Headers in which senders give a call an id that is the same for each try.
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
    """Return the event of a call, with its payload; see `payload_of`.

    Raises:
        BadDelivery: the body is not JSON.
    """
    try:
        body = payload_of(plain_payload(request), _decoded)
    except UsageError as error:
        raise BadDelivery(str(error)) from error
    return MessageEvent(kind="webhook", body=body)


def call_id(request: WebhookRequest) -> str:
    """Return the sender's id of the call; empty for none."""
    return next((request.header(name) for name in _IDS if request.header(name)), "")


def _decoded(body: bytes) -> Any:
    try:
        return json_value(body)
    except BadDelivery as error:
        raise UsageError(str(error)) from error
