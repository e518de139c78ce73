"""Messages in the form of Pub/Sub's pushes.

Source: Google's "Push subscriptions"; Cloud Build's "Automate builds in response to Pub/Sub
events" for their form in triggers.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from buildrunner.triggers.events import MessageEvent
from buildrunner.triggers.forges.forge import (
    BadDelivery,
    WebhookRequest,
    body_digest,
    json_object,
    part,
    text,
)


def pubsub_event(request: WebhookRequest, topic: str = "") -> MessageEvent:
    """Return the message in a push request, with its data decoded, and parsed if it is JSON.

    Args:
        request: the request.
        topic: the topic of the subscription, if known.

    Raises:
        BadDelivery: the request is no Pub/Sub message.
    """
    body = json_object(request)
    message = part(body, "message")
    if not isinstance(message, dict):
        raise BadDelivery("there is no message in it")
    shown = {
        "data": _data(text(message, "data")),
        "attributes": part(message, "attributes") or {},
        "messageId": text(message, "messageId") or text(message, "message_id"),
        "publishTime": text(message, "publishTime") or text(message, "publish_time"),
    }
    found = {"message": shown, "subscription": text(body, "subscription")}
    return MessageEvent(kind="pubsub", body=found, topic=topic)


def message_id(request: WebhookRequest) -> str:
    """Return the message's id, the same for each push of it."""
    try:
        message = part(json_object(request), "message")
    except BadDelivery:
        return body_digest(request)
    found = text(message, "messageId") or text(message, "message_id")
    return found or body_digest(request)


def _data(encoded: str) -> object:
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadDelivery("message.data is not base64") from error
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return data.decode("utf-8", "replace")
