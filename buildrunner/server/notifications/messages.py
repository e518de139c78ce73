"""The message of a notifier about a build. Pure: it makes no requests, and holds no secret."""

from __future__ import annotations

import base64
import re
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from buildrunner.server.notifications.facts import BAD, GOOD, Facts, template_values
from buildrunner.server.notifications.notifier import (
    CHAT,
    MAIL,
    PUBSUB,
    SLACK,
    Notifier,
    template_type,
)
from buildrunner.server.notifications.templates import (
    Escapes,
    TemplateProblem,
    escaped_for_chat,
    is_json,
    rendered,
)
from buildrunner.server.outbox.http import HTTP, HttpMessage, origin_of, without_secrets
from buildrunner.server.outbox.mail import MAIL as MAIL_KIND
from buildrunner.server.outbox.mail import MailMessage
from buildrunner.spec.substitutions.payload import filled
from buildrunner.spec.writing import encode_instant

# Source: cloud-build-notifiers' Slack notifier.
_COLOURS: Final = {GOOD: "#22bb33", **dict.fromkeys(BAD, "#bb2124")}
_OTHER_COLOUR: Final = "#f0ad4e"
_TAG: Final = re.compile(r"<[A-Za-z!/]")
_JSON: Final = "application/json"
_TEXT: Final = "text/plain; charset=utf-8"
_TLS_PORT: Final = 465
_SUBMISSION_PORT: Final = 587
_DELIVERY: Final = ("spec", "notification", "delivery")


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A message that is ready.

    Attributes:
        kind: kind of the outbox's message, which decides how it is delivered.
        target: the receiver in words, for users.
        call: the HTTP call or mail.
    """

    kind: str
    target: str
    call: HttpMessage | MailMessage


def made_message(notifier: Notifier, facts: Facts, *, key: str, now: datetime) -> Made:
    """Return the message of a notifier about a build.

    Args:
        notifier: the notifier.
        facts: facts about the build.
        key: key of the message.
        now: the time.

    Raises:
        TemplateProblem: the template fails for this build.
    """
    if notifier.kind == MAIL:
        return Made(kind=MAIL_KIND, target=target_of(notifier), call=_mail(notifier, facts, now))
    body = _BODIES.get(notifier.kind, _http)(notifier, facts)
    if notifier.kind == PUBSUB:
        body = _envelope(notifier, facts, key, now)
    delivery = notifier.spec.notification.delivery
    address = delivery.webhook_url or delivery.url
    call = HttpMessage(
        url=address if isinstance(address, str) else "",
        url_secret=notifier.secret(address),
        body=body,
        content_type=_JSON if _is_json(body) else _TEXT,
        sign_secret=notifier.secret(delivery.signature),
        token_secret=notifier.secret(delivery.token),
    )
    return Made(kind=HTTP, target=target_of(notifier), call=call)


def address_of(notifier: Notifier) -> str:
    """Return the receiver of a notifier: an address without its path and login, or its secret."""
    delivery = notifier.spec.notification.delivery
    if notifier.kind == MAIL:
        return f"mail {delivery.server}:{delivery.port}"
    address = delivery.webhook_url or delivery.url
    if not isinstance(address, str):
        return f"secret {notifier.secret(address)}"
    return origin_of(address)


def target_of(notifier: Notifier) -> str:
    """Describe a notifier's receiver for people: never an address that may be a secret."""
    delivery = notifier.spec.notification.delivery
    address = delivery.webhook_url or delivery.url
    if notifier.kind == MAIL:
        where = ", ".join(delivery.recipients)
    elif isinstance(address, str):
        where = urlsplit(address).hostname or ""
    else:
        where = f"secret {_short(notifier.secret(address))}"
    return f"{notifier.name}: {notifier.kind} to {where}"


def masked_notifier(document: dict[str, Any]) -> dict[str, Any]:
    """Return a stored notifier, of any version, with its literal addresses masked.

    A webhook's address is a secret itself: whoever has it can post there.
    """
    masked = document
    for name in ("url", "webhookUrl"):
        found: Any = document
        for part in (*_DELIVERY, name):
            found = found.get(part) if isinstance(found, dict) else None
        if isinstance(found, str):
            masked = _replaced(masked, (*_DELIVERY, name), without_secrets(found))
    return masked


def masked_message(message: dict[str, Any]) -> dict[str, Any]:
    """Return the content of an outbox's message with its literal address masked.

    Addresses of commit statuses are no secrets.
    """
    url, receiver = message.get("url"), message.get("receiver")
    masked = dict(message)
    if url and isinstance(url, str) and not message.get("to_forge"):
        masked["url"] = without_secrets(url)
    if isinstance(receiver, str) and "://" in receiver:  # an earlier version kept its login
        masked["receiver"] = origin_of(receiver)
    return masked


def _replaced(document: dict[str, Any], path: tuple[str, ...], value: str) -> dict[str, Any]:
    first, rest = path[0], path[1:]
    return {**document, first: _replaced(document[first], rest, value) if rest else value}


def _short(secret: str) -> str:
    """Return ``NAME`` of ``projects/P/secrets/NAME/versions/V``."""
    parts = secret.split("/")
    return parts[3] if len(parts) > 3 and parts[2] == "secrets" else secret


def _words(notifier: Notifier, facts: Facts) -> str | None:
    """Return the text of the notifier's template; None without one.

    Raises:
        TemplateProblem: the template fails, or looks like JSON and makes invalid JSON.
    """
    template = notifier.spec.notification.template
    if template is None or not template.content:
        return None
    makes_json = _makes_json(notifier)
    escapes: Escapes = "json" if makes_json else "html" if _is_html(notifier) else ""
    if notifier.kind in (SLACK, CHAT):
        escapes = "chat-json" if makes_json else "chat"
    values = template_values(facts, _params(notifier, facts))
    words = rendered(template.content, template_type(notifier), values, escapes=escapes)
    if makes_json:
        _decoded(words)
    return words


def _makes_json(notifier: Notifier) -> bool:
    """Return whether the template makes JSON. A value that looks like JSON does not."""
    template = notifier.spec.notification.template
    return template is not None and notifier.kind != MAIL and is_json(template.content)


def _is_html(notifier: Notifier) -> bool:
    template = notifier.spec.notification.template
    return notifier.kind == MAIL and template is not None and bool(_TAG.search(template.content))


def _params(notifier: Notifier, facts: Facts) -> dict[str, str]:
    # Configs refer to a substitution as build['_X'].
    event = {"build": {**facts.substitutions, **facts.build}}
    given = notifier.spec.notification.params
    return {name: filled(value, event)[0] for name, value in given.items()}


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise TemplateProblem(f"it makes no JSON: {error}") from error


def _is_json(text: str) -> bool:
    try:
        _decoded(text)
    except TemplateProblem:
        return False
    return True


def _http(notifier: Notifier, facts: Facts) -> str:
    words = _words(notifier, facts)
    return msgspec.json.encode(facts.build).decode() if words is None else words.strip()


def _slack(notifier: Notifier, facts: Facts) -> str:
    """Return the body for Slack.

    A template that makes a list of blocks goes into an attachment, an object is sent unchanged, and
    anything else is sent as text.
    """
    words = _words(notifier, facts)
    colour = _COLOURS.get(facts.status, _OTHER_COLOUR)
    if words is None:
        text = "\n".join(part for part in (_link(facts), escaped_for_chat(facts.detail)) if part)
        attachment = {"color": colour, "text": text, "fallback": facts.title, "mrkdwn_in": ["text"]}
        return _encoded({"attachments": [attachment]})
    found = _decoded(words) if _makes_json(notifier) else None
    if isinstance(found, list):
        return _encoded({"attachments": [{"color": colour, "blocks": found}]})
    return words if isinstance(found, dict) else _encoded({"text": words})


def _chat(notifier: Notifier, facts: Facts) -> str:
    words = _words(notifier, facts)
    if words is None:
        words = "\n".join(part for part in (_link(facts), escaped_for_chat(facts.detail)) if part)
    elif _makes_json(notifier) and isinstance(_decoded(words), dict):
        return words
    return _encoded({"text": words})


def _link(facts: Facts) -> str:
    url = facts.build.get("logUrl", "")
    title = escaped_for_chat(facts.title)
    return f"<{url}|{title}>" if url else title


def _envelope(notifier: Notifier, facts: Facts, key: str, now: datetime) -> str:
    """Return the body in the form of a Pub/Sub push. Source: semantics 12.1."""
    words = _words(notifier, facts)
    data = msgspec.json.encode(facts.build) if words is None else words.encode()
    project = facts.build.get("projectId", "")
    message = {
        "data": base64.b64encode(data).decode(),
        "attributes": {"buildId": str(facts.build.get("id", "")), "status": facts.status},
        "messageId": key,
        "publishTime": encode_instant(now),
    }
    subscription = f"projects/{project}/subscriptions/{notifier.name}"
    return _encoded({"message": message, "subscription": subscription})


def _mail(notifier: Notifier, facts: Facts, now: datetime) -> MailMessage:
    delivery = notifier.spec.notification.delivery
    words = _words(notifier, facts)
    subject = f"[buildrunner] {facts.title}"
    if delivery.subject:
        values = template_values(facts, _params(notifier, facts))
        subject = rendered(delivery.subject, template_type(notifier), values)
    return MailMessage(
        server=delivery.server,
        port=int(delivery.port or (_TLS_PORT if delivery.tls == "tls" else _SUBMISSION_PORT)),
        tls=delivery.tls == "tls" or (not delivery.tls and str(delivery.port) == str(_TLS_PORT)),
        must_encrypt=delivery.tls == "starttls",
        sender=delivery.sender,
        shown_sender=delivery.from_,
        recipients=tuple(delivery.recipients),
        subject=" ".join(subject.split()),
        body=_plain(facts) if words is None else words,
        is_html=_is_html(notifier),
        username=delivery.username or delivery.sender,
        password_secret=notifier.secret(delivery.password),
        thread=str(facts.build.get("id", "")),
        date=now,
    )


def _plain(facts: Facts) -> str:
    build = facts.build
    lines = {
        "": facts.title,
        "Reason": facts.detail,
        "Log": str(build.get("logUrl", "")),
        "Project": str(build.get("projectId", "")),
        "Trigger": facts.trigger,
        "Commit": facts.commit,
        "Build": str(build.get("id", "")),
    }
    shown = (f"{name}: {text}" if name else f"{text}\n" for name, text in lines.items() if text)
    return "\n".join(shown) + "\n"


def _encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()


_BODIES: Final = {SLACK: _slack, CHAT: _chat}
