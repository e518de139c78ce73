"""Notifiers: configs in the form of Cloud Build's own notifiers, with buildrunner's additions.

Pure. The additions need ``apiVersion: buildrunner/v1``, so that a config shows by itself whether
other services understand it::

    apiVersion: buildrunner/v1
    kind: SlackNotifier
    metadata: {name: team}
    spec:
      notification:
        on: change
        filter: ref == "main"
        template: {type: jinja2, content: "{{ trigger }} is {{ change }}"}
        delivery: {webhookUrl: {secretRef: url}}
      secrets: [{name: url, value: slack-url}]

Source: semantics 12.2; "Configure notifications" of Cloud Build's documentation, and the source of
cloud-build-notifiers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, get_args
from urllib.parse import urlsplit

import msgspec

from buildrunner.errors import ConfigError
from buildrunner.problem import Problem
from buildrunner.server.notifications.facts import TEMPLATE_NAMES, Facts, template_values
from buildrunner.server.notifications.templates import (
    GOLANG,
    JINJA,
    TemplateProblem,
    check_template,
    rendered,
)
from buildrunner.spec.model.git_address import MASK
from buildrunner.triggers.build_filter import check_answer, check_filter

HOSTED: Final = "cloud-build-notifiers/v1"
OURS: Final = "buildrunner/v1"

HTTP: Final = "HTTPNotifier"
SLACK: Final = "SlackNotifier"
CHAT: Final = "GoogleChatNotifier"
MAIL: Final = "SMTPNotifier"
PUBSUB: Final = "PubSubNotifier"

On = Literal["status", "change", "recovery"]

_CHOICES = {
    "spec.notification.on": f"use one of {', '.join(get_args(On))}",
    "spec.notification.delivery.tls": "use starttls or tls, or leave it out",
}
_TYPES = {
    "object": "a mapping",
    "array": "a list",
    "str": "text",
    "int": "a number",
    "float": "a number with a point",
    "bool": "true or false",
    "null": "nothing",
}
_WANTED = re.compile(r"expected `([^`]*)`, got `([^`]*)`")
_PLACE = re.compile(r" - at `\$\.?(.*)`$")


class SecretRef(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """A reference to one of ``spec.secrets``."""

    secret_ref: str


class Template(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """The text of messages.

    Attributes:
        type: ``golang``, as on the hosted service, or ``jinja2``; empty is ``golang``.
        uri: address of the text, which the import of the config resolves.
        content: the text.
    """

    type: str = ""
    uri: str = ""
    content: str = ""


class Delivery(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """The receiver. The effective fields depend on the notifier's kind.

    Attributes:
        url: URL for HTTPNotifier and PubSubNotifier.
        webhook_url: URL for SlackNotifier and GoogleChatNotifier.
        signature: a secret that signs bodies (an addition).
        token: a secret that is sent as ``Authorization: Bearer`` (an addition).
        server, port: host and port of the mail server.
        sender: mail address of the sender.
        from_: the displayed sender.
        recipients: mail addresses.
        subject: template of the subject of mails.
        password: secret with the password for the mail server.
        username: user name for the mail server (an addition); empty for the sender.
        tls: encryption of mail (an addition). ``tls``: TLS from the first byte. ``starttls``:
            STARTTLS, which the server must offer. Empty: ``tls`` on port 465; on other ports
            STARTTLS, if the server offers it.
    """

    url: str | SecretRef = ""
    webhook_url: str | SecretRef = ""
    signature: SecretRef | None = None
    token: SecretRef | None = None
    server: str = ""
    port: int | str = ""
    sender: str = ""
    from_: str = msgspec.field(default="", name="from")
    recipients: list[str] = []
    subject: str = ""
    password: SecretRef | None = None
    username: str = ""
    tls: Literal["", "starttls", "tls"] = ""


class Notification(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """The conditions, the text and the receiver of notifications.

    Attributes:
        filter: CEL over ``build``; empty matches everything.
        on: ``status``: each new status of a build; ``change``: a build with another result than
            the previous one of its trigger and branch; ``recovery``: the first success after a
            failure (an addition).
        params: bindings, ``$(build.status)``, by name.
        template: None: the default text of the kind.
        delivery: the receiver.
    """

    filter: str = ""
    on: On = "status"
    params: dict[str, str] = {}
    template: Template | None = None
    delivery: Delivery = Delivery()


class Secret(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A secret, by its name in the config.

    Attributes:
        name: the name in ``secretRef``.
        value: its name in the server's store: ``projects/P/secrets/NAME/versions/latest``, or NAME.
    """

    name: str
    value: str


class Spec(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """The rules and the receiver of a notifier."""

    notification: Notification
    secrets: list[Secret] = []


class Metadata(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """The metadata of a notifier: its name."""

    name: str


class Notifier(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """A notifier's config.

    Attributes:
        api_version: `HOSTED` or `OURS`.
        kind: one of `KINDS`.
        metadata: its name.
        spec: its rules and its receiver.
    """

    api_version: str
    kind: str
    metadata: Metadata
    spec: Spec

    @property
    def name(self) -> str:
        """Return the name of the notifier."""
        return self.metadata.name

    def secret(self, ref: str | SecretRef | None) -> str:
        """Return the stored name of the secret that a value refers to; empty for other values."""
        if not isinstance(ref, SecretRef):
            return ""
        return next((one.value for one in self.spec.secrets if one.name == ref.secret_ref), "")


def refs_of(delivery: Delivery) -> list[tuple[str, SecretRef]]:
    """Return every reference to a secret, by the name of its field."""
    values: dict[str, Any] = {
        "url": delivery.url,
        "webhookUrl": delivery.webhook_url,
        "signature": delivery.signature,
        "token": delivery.token,
        "password": delivery.password,
    }
    return [(name, value) for name, value in values.items() if isinstance(value, SecretRef)]


def read_notifier(document: Any, *, with_filter: bool = True) -> Notifier:
    """Return the notifier in a document, with text and filter checked in this process.

    A server checks in `bounded_process` instead (`notifier_of`, `config_error`), since a check
    may take any time.

    Args:
        document: the parsed JSON or YAML.
        with_filter: also check its filter, which needs CEL.

    Raises:
        ConfigError: the notifier is invalid.
    """
    notifier = notifier_of(document)
    problems = problems_of(notifier, with_filter=with_filter)
    if problems:
        raise config_error(problems)
    return notifier


def config_error(problems: Sequence[Finding]) -> ConfigError:
    """Return the error with these problems."""
    return ConfigError(
        [
            Problem(message, path=path, hint=hint, rule="notifier")
            for path, message, hint in problems
        ]
    )


def notifier_of(document: Any) -> Notifier:
    """Return the notifier in a document, checked by its form only, without text and filter.

    Args:
        document: the parsed JSON or YAML.

    Raises:
        ConfigError: the form is invalid.
    """
    kind = document.get("kind") if isinstance(document, dict) else None
    if isinstance(kind, str) and kind not in KINDS:  # the fields of an unknown kind are not checked
        hint = f"use one of {', '.join(KINDS)}"
        wrong = Problem(f"there is no {kind} here", path="kind", hint=hint, rule="notifier")
        raise ConfigError([wrong])
    try:
        return msgspec.convert(document, Notifier)
    except msgspec.ValidationError as error:
        text = str(error)
        place = _PLACE.search(text)
        message = _PLACE.sub("", text)
        message = _in_words(message[:1].lower() + message[1:])
        path = place.group(1) if place else ""
        hint = _CHOICES.get(path, "")
        raise ConfigError([Problem(message, path=path, hint=hint, rule="notifier")]) from error


def _in_words(message: str) -> str:
    """Return a sentence about types in plain words."""

    def worded(found: re.Match[str]) -> str:
        wanted, got = (
            " or ".join(_TYPES.get(one, one) for one in group.split(" | "))
            for group in found.groups()
        )
        return f"{wanted} is wanted here, not {got}"

    return _WANTED.sub(worded, message)


# Path, message, hint.
Finding = tuple[str, str, str]

_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,62})")
_ADDRESS: Final = re.compile(r"[^@\s,;<>\"]+@[^@\s,;<>\"]+")
# Kind -> the fields of its delivery, the required ones first.
_FIELDS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    HTTP: (("url",), ("signature", "token")),
    PUBSUB: (("url",), ("signature", "token")),
    SLACK: (("webhookUrl",), ()),
    CHAT: (("webhookUrl",), ()),
    MAIL: (
        ("server", "sender", "recipients"),
        ("port", "from", "subject", "password", "username", "tls"),
    ),
}
KINDS: Final = tuple(_FIELDS)
_OUR_FIELDS: Final = ("signature", "token", "username", "tls")
_TEMPLATE: Final = "spec.notification.template"
_DELIVERY: Final = "spec.notification.delivery"
_MOST_PORT: Final = 65535


def problems_of(notifier: Notifier, *, with_filter: bool = True) -> list[Finding]:
    """Return every problem of a notifier, whose kind is one of `KINDS`.

    With ``with_filter``, its filter and its templates are evaluated, too.
    """
    found = [*_head(notifier), *_extensions(notifier), *_delivery(notifier)]
    found += [*_secrets(notifier), *_words(notifier)]
    if not with_filter:
        return found
    wrong = _filter(notifier.spec.notification.filter)
    if wrong:
        found.append(("spec.notification.filter", wrong, ""))
    return found or list(_tried(notifier))


def _filter(text: str) -> str:
    if not text:
        return ""
    blank = dict.fromkeys(("change", "trigger", "ref", "commit"), "")
    return check_filter(text) or check_answer(text, {"previous": None, **blank})


def _head(notifier: Notifier) -> Iterator[Finding]:
    if notifier.api_version not in (HOSTED, OURS):
        yield "apiVersion", f"{notifier.api_version!r} is unknown", f"use {HOSTED} or {OURS}"
    if not _NAME.fullmatch(notifier.name):
        hint = "1 to 63 letters, digits and -_."
        yield "metadata.name", f"{notifier.name!r} is no name for a notifier", hint


def _extensions(notifier: Notifier) -> Iterator[Finding]:
    """Yield problems with additions in a config that has the version of the hosted service."""
    if notifier.api_version != HOSTED:
        return
    notification = notifier.spec.notification
    used = [(f"{_DELIVERY}.{name}", name) for name in _set_fields(notification.delivery)]
    ours = [(path, name) for path, name in used if name in _OUR_FIELDS]
    if notification.on != "status":
        ours.append(("spec.notification.on", "on"))
    if notification.template is not None and notification.template.type == JINJA:
        ours.append((f"{_TEMPLATE}.type", "jinja2"))
    if notifier.kind == PUBSUB:
        ours.append(("kind", PUBSUB))
    for path, name in ours:
        yield path, f"{HOSTED} does not know {name}", f"write apiVersion: {OURS}"


def _set_fields(delivery: Delivery) -> list[str]:
    empty = msgspec.to_builtins(Delivery())
    filled: dict[str, Any] = msgspec.to_builtins(delivery)
    return [name for name, value in filled.items() if value != empty[name]]


def _delivery(notifier: Notifier) -> Iterator[Finding]:
    delivery = notifier.spec.notification.delivery
    needed, allowed = _FIELDS[notifier.kind]
    there = _set_fields(delivery)
    for name in needed:
        if name not in there:
            yield f"{_DELIVERY}.{name}", f"a {notifier.kind} needs it", ""
    for name in there:
        if name not in needed + allowed:
            hint = f"it takes {', '.join(needed + allowed)}"
            yield f"{_DELIVERY}.{name}", f"a {notifier.kind} has no {name}", hint
    for name, url in (("url", delivery.url), ("webhookUrl", delivery.webhook_url)):
        if isinstance(url, str) and url.endswith(f"/{MASK}"):
            hint = "write the whole address, or import the config again"
            yield f"{_DELIVERY}.{name}", "this is a masked address", hint
        elif isinstance(url, str) and url and not _is_url(url):
            yield f"{_DELIVERY}.{name}", "this is no address", "write it as https://HOST/PATH"
    yield from _mail(delivery)


def _mail(delivery: Delivery) -> Iterator[Finding]:
    port = str(delivery.port)
    if port and not (port.isascii() and port.isdecimal() and 0 < int(port[:9]) <= _MOST_PORT):
        yield f"{_DELIVERY}.port", f"{port!r} is no port", "a number from 1 to 65535"
    for name, text in (("from", delivery.from_), ("server", delivery.server)):
        if any(ord(letter) < ord(" ") for letter in text):
            yield f"{_DELIVERY}.{name}", "it must be one line", ""
    addresses = [("sender", delivery.sender)] if delivery.sender else []
    addresses += [(f"recipients[{n}]", one) for n, one in enumerate(delivery.recipients)]
    for name, address in addresses:
        if not _ADDRESS.fullmatch(address):
            yield f"{_DELIVERY}.{name}", f"{address!r} is no mail address", "name@example.com"


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("https", "http") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return False


def _secrets(notifier: Notifier) -> Iterator[Finding]:
    known = {secret.name for secret in notifier.spec.secrets}
    for name, ref in refs_of(notifier.spec.notification.delivery):
        if ref.secret_ref not in known:
            message = f"spec.secrets has no {ref.secret_ref}"
            yield f"{_DELIVERY}.{name}.secretRef", message, "add it there, with its value"


def _words(notifier: Notifier) -> Iterator[Finding]:
    notification = notifier.spec.notification
    template = notification.template
    kind = JINJA if notifier.api_version == OURS else GOLANG
    if template is not None:
        if template.type not in ("", GOLANG, JINJA):
            hint = f"use {GOLANG} or {JINJA}"
            yield f"{_TEMPLATE}.type", f"{template.type!r} is no kind of template", hint
            return
        kind = template_type(notifier)
        if template.uri:
            hint = "`buildrunner notifiers import` reads it; or write the template as content"
            yield f"{_TEMPLATE}.uri", "the server reads no templates from elsewhere", hint
        yield from _checked(f"{_TEMPLATE}.content", template.content, kind)
    yield from _checked(f"{_DELIVERY}.subject", notification.delivery.subject, kind)


def _tried(notifier: Notifier) -> Iterator[Finding]:
    """Yield problems of a valid template: fields that no build ever has."""
    notification = notifier.spec.notification
    kind = template_type(notifier)
    values = template_values(Facts(build={}), dict.fromkeys(notification.params, ""))
    content = notification.template.content if notification.template else ""
    for path, text in (
        (f"{_TEMPLATE}.content", content),
        (f"{_DELIVERY}.subject", notification.delivery.subject),
    ):
        try:
            rendered(text, kind, values)
        except TemplateProblem as error:
            if error.is_of_all:
                yield path, str(error), ""


def template_type(notifier: Notifier) -> str:
    """Return `GOLANG` or `JINJA`: from the config, else the default of its version."""
    template: Template | None = notifier.spec.notification.template
    if template is not None and template.type:
        return template.type
    return JINJA if notifier.api_version == OURS else GOLANG


def _checked(path: str, text: str, kind: str) -> Iterator[Finding]:
    try:
        check_template(text, kind, TEMPLATE_NAMES)
    except TemplateProblem as error:
        yield path, str(error), ""
