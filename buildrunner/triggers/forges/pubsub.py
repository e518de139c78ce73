"""Messages in the form in which Pub/Sub pushes them.

Source: Google's "Push subscriptions"; Cloud Build's "Automate builds in response to Pub/Sub
events" for what a trigger sees of them.
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
    """The message in a push request; its data decoded, and parsed where it is JSON.

    Args:
        request: what arrived.
        topic: the topic whose subscription this is, where it is known.

    Raises:
        BadDelivery: it is no Pub/Sub message.
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
    """The message's id, which stays the same when it is pushed again."""
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
