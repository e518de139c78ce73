"""Delivers one message of the outbox, whatever its kind. Raises when it did not arrive."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from buildrunner.errors import SecretError
from buildrunner.server.forge_token import ForgeInClear
from buildrunner.server.outbox_http import HTTP, HttpSender
from buildrunner.server.outbox_mail import MAIL, MailSender
from buildrunner.server.outbox_targets import NotDelivered

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from buildrunner.server.context import ServerSecrets
    from buildrunner.server.outbox_targets import Gates
    from buildrunner.store.outbox_store import Message


class Delivery:
    """Knows how to deliver. Thread-safe; `close` it.

    Args:
        secrets: the server's and its projects'.
        gates: where messages may go.
        now: what time it is.
    """

    def __init__(self, secrets: ServerSecrets, gates: Gates, now: Callable[[], datetime]) -> None:
        self._http = HttpSender(secrets, gates, now)
        mail = MailSender(secrets, gates.notifiers)
        self._senders = {HTTP: self._http.send, MAIL: mail.send}

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._http.close()

    def deliver(self, message: Message) -> None:
        """Deliver it.

        Raises:
            NotDelivered: it did not arrive.
        """
        send = self._senders.get(message.kind)
        if send is None:
            raise NotDelivered(f"nobody sends messages of kind {message.kind}", is_final=True)
        try:
            send(message)
        except ForgeInClear as error:
            raise NotDelivered(str(error), is_final=True) from error
        except SecretError as error:
            raise NotDelivered(str(error)) from error
        except msgspec.ValidationError as error:
            text = f"the message is of another version: {error}"
            raise NotDelivered(text, is_final=True) from error
