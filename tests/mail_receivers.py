"""A real SMTP server that keeps what it is sent, and refuses as the test says."""

from __future__ import annotations

import email
import email.policy
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from typing import Any

import msgspec
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session


class Mail(msgspec.Struct, frozen=True):
    """A mail that came."""

    sender: str
    recipients: list[str]
    content: bytes
    login: str
    encrypted: bool

    def message(self) -> EmailMessage:
        """It, parsed."""
        parsed = email.message_from_bytes(self.content, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        return parsed


class MailServer:
    """The server.

    Attributes:
        answer: to the mail's content.
        refused: recipients, with the answer that they get.
        password: that clients must have.
    """

    def __init__(self, tls: ssl.SSLContext | None, *, from_start: bool) -> None:
        self.received: list[Mail] = []
        self.answer = "250 OK"
        self.refused: dict[str, str] = {}
        self.password = ""
        given: dict[str, Any] = {"authenticator": self._login, "auth_require_tls": False}
        if tls is not None and not from_start:
            given["tls_context"] = tls
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._controller = Controller(
            self,
            hostname="127.0.0.1",
            port=self.port,
            ssl_context=tls if from_start else None,
            **given,
        )
        self._controller.start()

    def close(self) -> None:
        """End it."""
        self._controller.stop(no_assert=True)

    def _login(self, _: SMTP, __: Session, ___: Envelope, ____: str, data: Any) -> AuthResult:
        good = data.password == self.password.encode()
        return AuthResult(success=good, handled=False, auth_data=data.login.decode())

    async def handle_RCPT(  # noqa: N802  (aiosmtpd wants it so)
        self, _: SMTP, __: Session, envelope: Envelope, address: str, ___: Any
    ) -> str:
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802  (as above)
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        if not self.answer.startswith("250"):
            return self.answer
        content = envelope.content
        assert isinstance(content, bytes)
        is_encrypted = server.transport.get_extra_info("ssl_object") is not None
        mail = Mail(
            envelope.mail_from or "",
            envelope.rcpt_tos,
            content,
            session.auth_data or "",
            is_encrypted,
        )
        self.received.append(mail)
        return self.answer


@contextmanager
def mail_server(
    tls: ssl.SSLContext | None = None, *, from_start: bool = False
) -> Iterator[MailServer]:
    """A running one."""
    running = MailServer(tls, from_start=from_start)
    try:
        yield running
    finally:
        running.close()
