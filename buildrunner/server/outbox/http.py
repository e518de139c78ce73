"""Sends messages of the outbox by HTTP. Raises if they did not arrive.

Redirects are not followed: only the configured receiver may be called, and an answer must not lead
anywhere else, least of all to an address inside the server's network.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from buildrunner import __version__
from buildrunner.errors import SecretError
from buildrunner.secrets.secret_name import forge_host, forge_token_name
from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.server.context import ServerSecrets
from buildrunner.server.http.pinned import (
    Gates,
    HttpAnswer,
    NotDelivered,
    PinnedHttp,
    is_private_to_us,
)
from buildrunner.spec.model.git_address import MASK
from buildrunner.store.model.outbox import Message

HTTP: Final = "http"
SIGNATURE: Final = "X-Buildrunner-Signature-256"
DELIVERY: Final = "X-Buildrunner-Delivery"

# Answers for which a retry does not help.
_FINAL: Final = frozenset({400, 404, 405, 406, 410, 411, 413, 414, 415, 422})
_ERRNO: Final = re.compile(r"\[Errno -?[0-9]+\] ")
_MOST_BYTES: Final = 1 << 16
_MOST_TEXT: Final = 300
_SHORTEST_SECRET: Final = 8  # shorter parts of a path are words such as "hooks"
_LONGEST_WAIT: Final = timedelta(days=1)


class HttpMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A stored call of the outbox. It holds no secret, only names of secrets.

    Attributes:
        method: the HTTP method.
        url: the URL; empty if ``url_secret`` has it.
        url_secret: secret that holds the URL, if the URL itself is secret, as Slack's URLs are.
        body: the body.
        content_type: content type of the body.
        token_secret: secret that holds the token; empty for none.
        token_header, token_scheme: the header for the token, and the word before the token.
        sign_secret: secret that signs the body; empty for none.
        fine_when: text in an answer that makes it a success in spite of its code.
        to_forge: the call is for a forge's API. The token is the server's own for the URL's host,
            whatever ``token_secret`` says.
    """

    method: str = "POST"
    url: str = ""
    url_secret: str = ""
    body: str = ""
    content_type: str = "application/json"
    token_secret: str = ""
    token_header: str = "Authorization"  # noqa: S105  (a header's name)
    token_scheme: str = "Bearer"  # noqa: S105  (a word before it)
    sign_secret: str = ""
    fine_when: str = ""
    to_forge: bool = False


class HttpSender:
    """Sends messages. Thread-safe; `close` it.

    Args:
        secrets: the secrets of the server and its projects.
        gates: decide which hosts may be called, for notifiers and for forges.
        now: returns the time.
    """

    def __init__(self, secrets: ServerSecrets, gates: Gates, now: Callable[[], datetime]) -> None:
        self._secrets = secrets
        self._gates = gates
        self._now = now
        self._http = PinnedHttp()

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._http.close()

    def send(self, message: Message) -> None:
        """Make a call.

        Args:
            message: the outbox's message, which holds the `HttpMessage`.

        Raises:
            NotDelivered: the message did not arrive.
            SecretError: there is no such secret for the message's project.
            msgspec.ValidationError: the message was made by another version.
        """
        import httpx

        call = msgspec.convert(message.message, HttpMessage)
        project = message.project_id
        url = self._secret(project, call.url_secret) if call.url_secret else call.url
        body = call.body.encode()
        gate = self._gates.forges if call.to_forge else self._gates.notifiers
        try:
            headers = self._headers(call, url, message, body)
            answer = self._http.call(gate, call.method, url, headers, body, most_bytes=_MOST_BYTES)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            no_answer = isinstance(error, httpx.TransportError)
            raise NotDelivered(_said(error, url), no_answer=no_answer) from error
        token = headers.get(call.token_header, "") if call.token_secret else ""
        secret = () if call.to_forge else (*_parts_that_may_be_secret(url), *token.split())
        self._check(answer, call, secret)

    def _secret(self, project: str, name: str) -> str:
        return self._secrets.value(Asker(use=Use.NOTIFIER, project=project), name).strip()

    def _headers(
        self, call: HttpMessage, url: str, message: Message, body: bytes
    ) -> dict[str, str]:
        project, key = message.project_id, message.key
        headers = {
            "User-Agent": f"buildrunner/{__version__}",
            "Content-Type": call.content_type,
            DELIVERY: key,
            "Idempotency-Key": key,
        }
        token, name = "", call.token_secret
        if call.to_forge:
            token, name = forge_token(self._secrets, url), forge_token_name(forge_host(url))
        elif call.token_secret:
            token = self._secret(project, call.token_secret)
        if not (token.isascii() and token.isprintable()):
            raise NotDelivered(f"the secret {name} holds what no header can")
        if token:
            headers[call.token_header] = _credentials(call.token_scheme, token)
        if call.sign_secret:
            headers[SIGNATURE] = signature(self._secret(project, call.sign_secret), body)
        return headers

    def _check(self, answer: HttpAnswer, call: HttpMessage, secret: Sequence[str]) -> None:
        code, text = answer.status_code, answer.content.decode("utf-8", "replace")
        if 200 <= code < 300 or (call.fine_when and call.fine_when in text):
            return
        if 300 <= code < 400:
            text = f"HTTP {code}: it redirects, which is not followed; configure the new address"
            raise NotDelivered(text)
        said = " ".join(text.split())[:_MOST_TEXT]
        if _repeats(text, secret):
            said = "(its text is not kept, since it repeats the address or the token)"
        raise NotDelivered(
            f"HTTP {code}: {said}" if said else f"HTTP {code}",
            is_final=code in _FINAL,
            wait=_wait(answer.headers.get("retry-after", ""), self._now()),
        )


def origin_of(url: str) -> str:
    """Return ``SCHEME://HOST:PORT`` of an address, without a login; empty if it has no host."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}" if host else ""


def without_secrets(url: str) -> str:
    """Return an address with all masked that may be secret: its login, path, query and fragment."""
    origin = origin_of(url)
    return url if url.rstrip("/") == origin else f"{origin}/{MASK}".lstrip("/")


def _parts_that_may_be_secret(url: str) -> list[str]:
    """Return the login of an address, and the names and values of its path, query and fragment."""
    parts = urlsplit(url)
    login = (parts.username or "", parts.password or "")
    return [*login, *re.split(r"[/?&=#;,]", f"{parts.path}?{parts.query}#{parts.fragment}")]


def _repeats(text: str, secret: Iterable[str]) -> bool:
    """Return whether an answer has one of the texts, also if it is encoded for URLs or HTML.

    An error page often names the path that was not found, and readers of a project see errors.
    """
    said = unquote(html.unescape(text)).casefold()
    parts = (unquote(one).casefold() for one in secret)
    return any(len(part) >= _SHORTEST_SECRET and part in said for part in parts)


def _credentials(scheme: str, token: str) -> str:
    """Return the header's value. ``NAME:PASSWORD`` is sent as a login with a password."""
    import base64

    if scheme == "Bearer" and ":" in token:
        return f"Basic {base64.b64encode(token.encode()).decode()}"
    return f"{scheme} {token}".strip()


def _said(error: Exception, url: str) -> str:
    """Return the error without the URL, which may be secret, and which httpx quotes."""
    import httpx

    if isinstance(error, httpx.InvalidURL | ValueError):
        return "the address can't be used: it must be https://HOST/PATH"
    text = str(error).replace(url, "the address") if url else str(error)
    if not text or isinstance(error, httpx.TimeoutException):
        return f"it does not answer ({type(error).__name__})"
    return f"it does not answer: {_ERRNO.sub('', text)}"


def signature(secret: str, body: bytes) -> str:
    """Return the signature of a body, in GitHub's form."""
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"


def _wait(text: str, now: datetime) -> timedelta | None:
    """Return the wait in ``Retry-After`` (seconds, or a date), at most a day."""
    if not text:
        return None
    if text.isascii() and text.isdigit():
        wait = timedelta(seconds=min(int(text[:9]), 10**6))
    else:
        try:
            wait = parsedate_to_datetime(text) - now
        except (ValueError, TypeError):
            return None
    return max(timedelta(), min(wait, _LONGEST_WAIT))


class ForgeInClear(SecretError):
    """Raised if a call to a forge by http would send the token unencrypted."""


def forge_token(secrets: ServerSecrets, url: str) -> str:
    """Return the token for a call of a forge's API, without surrounding white space.

    Args:
        secrets: the server's secrets.
        url: URL of the call, whose host decides the token.

    Raises:
        SecretNotFound: the server has none for that host.
        ForgeInClear: the call is not encrypted and leaves this machine.
        SecretError: the token can't be read now.
    """
    host = forge_host(url)
    if not is_private_to_us(url):
        raise ForgeInClear(
            f"no token is sent to {host} in clear: the forge must be called by https"
        )
    asker = Asker(use=Use.FORGE, forge=host)
    return secrets.value(asker, forge_token_name(host)).strip()
