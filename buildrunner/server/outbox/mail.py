"""Sends messages of the outbox by SMTP. Raises if they did not arrive."""

from __future__ import annotations

import smtplib
import socket
from contextlib import suppress
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from typing import Any, Final

import msgspec

from buildrunner.addresses import is_loopback_host
from buildrunner.deadline import Deadline
from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.server.context import ServerSecrets
from buildrunner.server.http.pinned import NotDelivered, TargetGate, tls_context
from buildrunner.store.model.outbox import Message

MAIL: Final = "mail"
_TIMEOUT_S: Final = 20.0
_LONGEST_MAIL_S: Final = 60.0
_MOST_TEXT: Final = 300


class MailMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A stored mail of the outbox. It holds no secret, only the name of one.

    Attributes:
        server, port: the mail server.
        tls: TLS from the first byte. Otherwise STARTTLS is used if the server offers it.
        must_encrypt: the server must offer STARTTLS.
        sender: address of the sender.
        shown_sender: the displayed sender; empty for the address.
        recipients: addresses of the recipients.
        subject, body: the subject, one line; the text.
        is_html: the body is HTML.
        username: user name for the server; only used with a password.
        password_secret: secret with the password; empty for none.
        thread: mails with the same value are shown together.
        date: time when the mail was made.
    """

    server: str
    port: int
    tls: bool = False
    must_encrypt: bool = False
    sender: str
    shown_sender: str = ""
    recipients: tuple[str, ...]
    subject: str
    body: str
    is_html: bool = False
    username: str = ""
    password_secret: str = ""
    thread: str = ""
    date: datetime


class MailSender:
    """Sends mails. Thread-safe.

    Args:
        secrets: the secrets of the server's projects.
        gate: decides which servers may be used.
    """

    def __init__(self, secrets: ServerSecrets, gate: TargetGate) -> None:
        self._secrets = secrets
        self._gate = gate

    def send(self, message: Message) -> None:
        """Send a mail.

        Args:
            message: the outbox's message, which holds the `MailMessage`. The mail's own id is made
                from its key.

        Raises:
            NotDelivered: the mail did not arrive, or not at all recipients.
            SecretError: there is no such secret for the message's project.
            msgspec.ValidationError: the message was made by another version.
        """
        mail = msgspec.convert(message.message, MailMessage)
        password = ""
        if mail.password_secret:
            asker = Asker(use=Use.NOTIFIER, project=message.project_id)
            password = self._secrets.value(asker, mail.password_secret).strip()
        with Deadline(_LONGEST_MAIL_S) as deadline:
            try:
                refused = self._deliver(mail, message.key, password, deadline)
            except (smtplib.SMTPException, OSError, UnicodeError, ValueError) as error:
                raise _not_delivered(error, mail, deadline) from error
        if refused:
            raise NotDelivered(f"it arrived, but not at {_answers(refused)}", is_final=True)

    def _deliver(
        self, mail: MailMessage, key: str, password: str, deadline: Deadline
    ) -> dict[str, tuple[int, bytes]]:
        """Deliver a mail to the server. Returns the refused recipients."""
        server = self._connect(mail, deadline)
        try:
            _prepare(server, mail, password)
            return server.send_message(composed(mail, key), mail.sender, mail.recipients)
        finally:
            _quit(server)

    def _connect(self, mail: MailMessage, deadline: Deadline) -> smtplib.SMTP:
        error: OSError | None = None
        for address in self._gate.addresses(mail.server):
            try:
                return _connection(mail, address, deadline)
            except OSError as failed:
                error = failed
                if deadline.is_over:
                    break
        assert error is not None  # noqa: S101  (there is at least one address)
        raise error


def _connection(mail: MailMessage, address: str, deadline: Deadline) -> smtplib.SMTP:
    """Return a connection to the checked address, under the server's name."""

    def connected(port: int, timeout: float | None) -> socket.socket:
        connection = socket.create_connection((address, port), timeout)
        deadline.watch(connection)
        return connection

    class Plain(smtplib.SMTP):
        def _get_socket(self, _: str, port: int, timeout: float | None) -> socket.socket:
            return connected(port, timeout)

    class Encrypted(smtplib.SMTP_SSL):
        def _get_socket(self, host: str, port: int, timeout: float | None) -> socket.socket:
            return self.context.wrap_socket(connected(port, timeout), server_hostname=host)

    given: dict[str, Any] = {"local_hostname": socket.gethostname(), "timeout": _TIMEOUT_S}
    if mail.tls:
        context = tls_context()
        return Encrypted(mail.server, mail.port, context=context, **given)
    return Plain(mail.server, mail.port, **given)


def _prepare(server: smtplib.SMTP, mail: MailMessage, password: str) -> None:
    """Encrypt the connection, and sign in.

    Raises:
        NotDelivered: encryption is required, and the server does not offer it. A password needs
            encryption, except on this machine.
    """
    server.ehlo_or_helo_if_needed()
    encrypted = mail.tls
    if not encrypted and server.has_extn("starttls"):
        server.starttls(context=tls_context())
        server.ehlo()
        encrypted = True
    is_here = is_loopback_host(str(server.sock.getpeername()[0] if server.sock else ""))
    if not encrypted and (mail.must_encrypt or (password and not is_here)):
        raise NotDelivered(f"{mail.server} offers no STARTTLS: nothing is sent to it in clear")
    if password:
        server.login(mail.username, password)


def composed(mail: MailMessage, key: str) -> EmailMessage:
    """Return the mail itself."""
    made = EmailMessage()
    made["From"] = mail.shown_sender or mail.sender
    made["To"] = ", ".join(mail.recipients)
    made["Subject"] = mail.subject
    made["Date"] = format_datetime(mail.date)
    domain = mail.sender.rpartition("@")[2]
    made["Message-ID"] = f"<{key.replace('/', '.')}@{domain}>"
    if mail.thread:
        made["References"] = f"<build.{mail.thread}@{domain}>"
    made["Auto-Submitted"] = "auto-generated"
    made.set_content(mail.body, subtype="html" if mail.is_html else "plain")
    return made


def _not_delivered(error: Exception, mail: MailMessage, deadline: Deadline) -> NotDelivered:
    where = f"the mail server {mail.server}:{mail.port}"
    if deadline.is_over:
        return NotDelivered(f"{where} takes more than {_LONGEST_MAIL_S:g} s", no_answer=True)
    if not isinstance(error, smtplib.SMTPException):
        said = getattr(error, "strerror", "") or error
        no_answer = isinstance(error, OSError)
        return NotDelivered(f"{where} does not answer: {said}", no_answer=no_answer)
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        codes = [code for code, _ in error.recipients.values()]
        final = all(code >= 500 for code in codes)
        return NotDelivered(f"refused: {_answers(error.recipients)}", is_final=final)
    if isinstance(error, smtplib.SMTPAuthenticationError):
        return NotDelivered(f"the mail server does not take the password: {_answer(error)}")
    if isinstance(error, smtplib.SMTPResponseException):
        return NotDelivered(_answer(error), is_final=error.smtp_code >= 500)
    return NotDelivered(str(error) or type(error).__name__)


def _answer(error: smtplib.SMTPResponseException) -> str:
    return f"{error.smtp_code} {_text(error.smtp_error)}"


def _answers(refused: dict[str, tuple[int, bytes]]) -> str:
    return "; ".join(f"{name}: {code} {_text(said)}" for name, (code, said) in refused.items())


def _text(said: bytes | str) -> str:
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
    return " ".join(text.split())[:_MOST_TEXT]


def _quit(server: smtplib.SMTP) -> None:
    with suppress(smtplib.SMTPException, OSError):
        server.quit()
    server.close()
