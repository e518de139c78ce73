"""Delivers one message of the outbox by HTTP. Raises when it did not arrive.

Redirects are not followed: who may be called is what was configured, and an answer must not lead
anywhere else, least of all to an address inside the server's network.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from buildrunner import __version__
from buildrunner.errors import BuildrunnerError, SecretError

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from buildrunner.store.outbox_store import Message

HTTP: Final = "http"
SIGNATURE: Final = "X-Buildrunner-Signature-256"
DELIVERY: Final = "X-Buildrunner-Delivery"
TIMEOUT_S: Final = 30.0

# Answers that will not be any better the next time.
_FINAL: Final = frozenset({400, 404, 405, 406, 410, 411, 413, 414, 415, 422})
_MOST_TEXT = 300
_LONGEST_WAIT = timedelta(days=1)


class HttpMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a call, until it is made. No secret is in it, only names of secrets.

    Attributes:
        method: of HTTP.
        url: where to; empty when ``url_secret`` says it.
        url_secret: secret that holds the address, where that is one itself, as Slack's are.
        body: as it is sent.
        content_type: of the body.
        headers: further ones.
        token_secret: secret that holds the token; empty for none.
        token_header, token_scheme: where the token goes.
        sign_secret: secret that the body is signed with; empty for none.
        fine_when: the answer is fine in spite of its code, if this is in its text.
    """

    method: str = "POST"
    url: str = ""
    url_secret: str = ""
    body: str = ""
    content_type: str = "application/json"
    headers: dict[str, str] = {}
    token_secret: str = ""
    token_header: str = "Authorization"  # noqa: S105  (a header's name)
    token_scheme: str = "Bearer"  # noqa: S105  (a word before it)
    sign_secret: str = ""
    fine_when: str = ""


class NotDelivered(BuildrunnerError):
    """It did not arrive.

    Attributes:
        is_final: it never will.
        wait: how long the receiver wants us to wait; None when it does not say.
    """

    def __init__(
        self, message: str, *, is_final: bool = False, wait: timedelta | None = None
    ) -> None:
        super().__init__(message)
        self.is_final = is_final
        self.wait = wait


class Delivery:
    """Knows how to deliver. Thread-safe; `close` it.

    Args:
        secret: value of a secret by name. Raises `SecretError`.
        now: what time it is.
    """

    def __init__(self, secret: Callable[[str], str], now: Callable[[], datetime]) -> None:
        import httpx

        self._secret = secret
        self._now = now
        self._http = httpx.Client(timeout=TIMEOUT_S, follow_redirects=False)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._http.close()

    def deliver(self, message: Message) -> None:
        """Deliver it.

        Raises:
            NotDelivered: it did not arrive.
        """
        try:
            if message.kind != HTTP:
                raise NotDelivered(f"nobody sends messages of kind {message.kind}", is_final=True)
            self._call(message)
        except SecretError as error:
            raise NotDelivered(str(error)) from error
        except msgspec.ValidationError as error:
            text = f"the message is of another version: {error}"
            raise NotDelivered(text, is_final=True) from error

    def _call(self, message: Message) -> None:
        import httpx

        call = msgspec.convert(message.message, HttpMessage)
        url = self._secret(call.url_secret).strip() if call.url_secret else call.url
        body = call.body.encode()
        try:
            answer = self._http.request(
                call.method, url, content=body, headers=self._headers(call, message.key, body)
            )
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            # The address may be a secret, and httpx has it in some of its messages.
            text = str(error).replace(url, "the address") if url else str(error)
            raise NotDelivered(text or type(error).__name__) from error
        self._check(answer, call)

    def _headers(self, call: HttpMessage, key: str, body: bytes) -> dict[str, str]:
        headers = {
            "User-Agent": f"buildrunner/{__version__}",
            "Content-Type": call.content_type,
            DELIVERY: key,
            "Idempotency-Key": key,
            **call.headers,
        }
        if call.token_secret:
            token = self._secret(call.token_secret).strip()
            headers[call.token_header] = f"{call.token_scheme} {token}".strip()
        if call.sign_secret:
            headers[SIGNATURE] = signature(self._secret(call.sign_secret).strip(), body)
        return headers

    def _check(self, answer: httpx.Response, call: HttpMessage) -> None:
        code = answer.status_code
        if 200 <= code < 300 or (call.fine_when and call.fine_when in answer.text):
            return
        if 300 <= code < 400:
            text = f"HTTP {code}: it redirects, which is not followed; configure the new address"
            raise NotDelivered(text)
        said = " ".join(answer.text.split())[:_MOST_TEXT]
        raise NotDelivered(
            f"HTTP {code}: {said}" if said else f"HTTP {code}",
            is_final=code in _FINAL,
            wait=_wait(answer.headers.get("retry-after", ""), self._now()),
        )


def signature(secret: str, body: bytes) -> str:
    """The signature of a body, in the form that GitHub made usual."""
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"


def _wait(text: str, now: datetime) -> timedelta | None:
    """What ``Retry-After`` asks for: seconds, or a date; a day at most."""
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


def http_message(call: HttpMessage) -> dict[str, Any]:
    """The message of a call, as the outbox keeps it."""
    kept: dict[str, Any] = msgspec.to_builtins(call)
    return kept
