"""The parts of a notifier's config."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

HOSTED: Final = "cloud-build-notifiers/v1"
OURS: Final = "buildrunner/v1"

HTTP: Final = "HTTPNotifier"
SLACK: Final = "SlackNotifier"
CHAT: Final = "GoogleChatNotifier"
MAIL: Final = "SMTPNotifier"
PUBSUB: Final = "PubSubNotifier"

GOLANG: Final = "golang"
JINJA: Final = "jinja2"

On = Literal["status", "change", "recovery"]


class SecretRef(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """A value that is a secret: names one of ``spec.secrets``."""

    secret_ref: str


class Template(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """The words.

    Attributes:
        type: ``golang``, as on the hosted service, or ``jinja2``; empty is ``golang``.
        uri: where the words are: resolved by whoever imports the config.
        content: the words.
    """

    type: str = ""
    uri: str = ""
    content: str = ""


class Delivery(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """The receiver; the fields that count depend on the notifier's kind.

    Attributes:
        url: of HTTPNotifier and PubSubNotifier.
        webhook_url: of SlackNotifier and GoogleChatNotifier.
        signature: a secret that bodies are signed with (ours).
        token: a secret that is sent as ``Authorization: Bearer`` (ours).
        server, port: of the mail server.
        sender: mail address that mails come from.
        from_: how the sender is shown.
        recipients: mail addresses.
        subject: a template.
        password: for the mail server; a secret.
        username: for the mail server (ours); empty for the sender.
        tls: how mail is kept from listeners (ours): ``starttls`` when the server offers it, ``tls``
            from the first byte, which port 465 means by itself.
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
        filter: CEL over ``build``; empty lets everything pass.
        on: ``status``: each new status of a build; ``change``: a build that ended otherwise than
            the one before of its trigger and branch; ``recovery``: the first success after a
            failure (ours).
        params: bindings, ``$(build.status)``, by name.
        template: None: the words of the kind.
        delivery: where.
    """

    filter: str = ""
    on: On = "status"
    params: dict[str, str] = {}
    template: Template | None = None
    delivery: Delivery = Delivery()


class Secret(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """A secret, by the name that the config has for it.

    Attributes:
        name: what ``secretRef`` says.
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
    """Its name."""

    name: str


class Notifier(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True
):
    """A notifier's config.

    Attributes:
        api_version: `HOSTED` or `OURS`.
        kind: what it sends.
        metadata: its name.
        spec: what it does.
    """

    api_version: str
    kind: str
    metadata: Metadata
    spec: Spec

    @property
    def name(self) -> str:
        """Its name."""
        return self.metadata.name

    def secret(self, ref: str | SecretRef | None) -> str:
        """The store's name of a secret that a value refers to; empty for anything else."""
        if not isinstance(ref, SecretRef):
            return ""
        return next((one.value for one in self.spec.secrets if one.name == ref.secret_ref), "")


def refs_of(delivery: Delivery) -> list[tuple[str, SecretRef]]:
    """Every reference to a secret, by the name of its field."""
    values: dict[str, Any] = {
        "url": delivery.url,
        "webhookUrl": delivery.webhook_url,
        "signature": delivery.signature,
        "token": delivery.token,
        "password": delivery.password,
    }
    return [(name, value) for name, value in values.items() if isinstance(value, SecretRef)]
