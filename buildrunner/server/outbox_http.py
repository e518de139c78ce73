"""Sends messages of the outbox by HTTP. Raises when they did not arrive.

Redirects are not followed: who may be called is what was configured, and an answer must not lead
anywhere else, least of all to an address inside the server's network.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from buildrunner import __version__
from buildrunner.server.outbox_targets import NotDelivered
from buildrunner.server.trust import tls_context

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from buildrunner.server.outbox_targets import TargetGate

HTTP: Final = "http"
SIGNATURE: Final = "X-Buildrunner-Signature-256"
DELIVERY: Final = "X-Buildrunner-Delivery"

# Answers that will not be any better the next time.
_FINAL: Final = frozenset({400, 404, 405, 406, 410, 411, 413, 414, 415, 422})
_ERRNO: Final = re.compile(r"\[Errno -?[0-9]+\] ")
_TIMEOUT_S: Final = 10.0
_LONGEST_ANSWER_S: Final = 30.0
_MOST_BYTES: Final = 1 << 16
_MOST_ADDRESSES: Final = 4
_MOST_TEXT: Final = 300
_LONGEST_WAIT: Final = timedelta(days=1)


class HttpMessage(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a call, until it is made. No secret is in it, only names of secrets.

    Attributes:
        method: of HTTP.
        url: where to; empty when ``url_secret`` says it.
        url_secret: secret that holds the address, where that is one itself, as Slack's are.
        body: as it is sent.
        content_type: of the body.
        token_secret: secret that holds the token; empty for none.
        token_header, token_scheme: where the token goes.
        sign_secret: secret that the body is signed with; empty for none.
        fine_when: the answer is fine in spite of its code, if this is in its text.
        to_forge: where to is what the server's own secrets say: it may be at a private address.
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


class _Way(NamedTuple):
    """By whom, to which address, and what tells the server its name besides."""

    client: httpx.Client
    url: str
    headers: dict[str, str]
    extensions: dict[str, Any]


class HttpSender:
    """Knows how to call. Thread-safe; `close` it.

    Args:
        secret: value of a secret by name. Raises `SecretError`.
        gate: which hosts may be called.
        now: what time it is.
    """

    def __init__(
        self, secret: Callable[[str], str], gate: TargetGate, now: Callable[[], datetime]
    ) -> None:
        import httpx

        self._secret = secret
        self._gate = gate
        self._now = now
        trust, wait = tls_context(), _TIMEOUT_S
        self._direct = httpx.Client(timeout=wait, verify=trust, trust_env=False)
        self._by_proxy = httpx.Client(timeout=wait, verify=trust)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._direct.close()
        self._by_proxy.close()

    def send(self, kept: Any, key: str) -> None:
        """Make a call.

        Args:
            kept: the `HttpMessage`, as the outbox keeps it.
            key: of the message.

        Raises:
            NotDelivered: it did not arrive.
            SecretError: there is no such secret.
            msgspec.ValidationError: it was made by another version.
        """
        import httpx

        call = msgspec.convert(kept, HttpMessage)
        url = self._secret(call.url_secret).strip() if call.url_secret else call.url
        body = call.body.encode()
        try:
            answer = self._answer(call, url, body, self._headers(call, key, body))
            try:
                text = _text(answer)
            finally:
                answer.close()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            no_answer = isinstance(error, httpx.TransportError)
            raise NotDelivered(_said(error, url), no_answer=no_answer) from error
        self._check(answer, text, call)

    def _answer(
        self, call: HttpMessage, url: str, body: bytes, headers: dict[str, str]
    ) -> httpx.Response:
        """The answer of the first address that is connected to; its content is still to be read.

        Raises:
            NotDelivered: the host may not be called.
            httpx.HTTPError: no address answers.
        """
        import httpx

        error: httpx.TransportError | None = None
        for way in self._ways(call, url):
            request = way.client.build_request(
                call.method,
                way.url,
                content=body,
                headers={**headers, **way.headers},
                extensions=way.extensions,
            )
            try:
                return way.client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as failed:  # nothing was sent
                error = failed
        assert error is not None  # noqa: S101  (there is at least one way)
        raise error

    def _ways(self, call: HttpMessage, url: str) -> Iterator[_Way]:
        """Ways to an address that was judged, best first.

        Raises:
            NotDelivered: the host may not be called.
        """
        from urllib.request import getproxies, proxy_bypass

        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.scheme not in ("https", "http") or not host:
            raise NotDelivered("the address is none: it must be https://HOST/PATH")
        if parts.scheme in getproxies() and not proxy_bypass(host):  # who looks the name up itself
            self._gate.check_name(host)
            yield _Way(self._by_proxy, url, {}, {})
            return
        if call.to_forge:
            yield _Way(self._direct, url, {}, {})
            return
        login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
        port = f":{parts.port}" if parts.port else ""
        name = {"Host": parts.netloc.rpartition("@")[2]}
        # The name is not looked up again: another answer could lead inside.
        for address in self._gate.addresses(host)[:_MOST_ADDRESSES]:
            shown = f"[{address}]" if ":" in address else address
            pinned = parts._replace(netloc=f"{login}{shown}{port}").geturl()
            yield _Way(self._direct, pinned, name, {"sni_hostname": host})

    def _headers(self, call: HttpMessage, key: str, body: bytes) -> dict[str, str]:
        headers = {
            "User-Agent": f"buildrunner/{__version__}",
            "Content-Type": call.content_type,
            DELIVERY: key,
            "Idempotency-Key": key,
        }
        if call.token_secret:
            token = self._secret(call.token_secret).strip()
            if not (token.isascii() and token.isprintable()):
                raise NotDelivered(f"the secret {call.token_secret} holds what no header can")
            headers[call.token_header] = _credentials(call.token_scheme, token)
        if call.sign_secret:
            headers[SIGNATURE] = signature(self._secret(call.sign_secret).strip(), body)
        return headers

    def _check(self, answer: httpx.Response, text: str, call: HttpMessage) -> None:
        code = answer.status_code
        if 200 <= code < 300 or (call.fine_when and call.fine_when in text):
            return
        if 300 <= code < 400:
            text = f"HTTP {code}: it redirects, which is not followed; configure the new address"
            raise NotDelivered(text)
        said = " ".join(text.split())[:_MOST_TEXT]
        raise NotDelivered(
            f"HTTP {code}: {said}" if said else f"HTTP {code}",
            is_final=code in _FINAL,
            wait=_wait(answer.headers.get("retry-after", ""), self._now()),
        )


def _credentials(scheme: str, token: str) -> str:
    """The header's value. A login and its password, ``NAME:PASSWORD``, are sent as such."""
    import base64

    if scheme == "Bearer" and ":" in token:
        return f"Basic {base64.b64encode(token.encode()).decode()}"
    return f"{scheme} {token}".strip()


def _text(answer: httpx.Response) -> str:
    """The beginning of what is answered; a receiver that goes on for ever is left."""
    until = time.monotonic() + _LONGEST_ANSWER_S
    content = b""
    for piece in answer.iter_bytes():
        content += piece
        if len(content) >= _MOST_BYTES or time.monotonic() > until:
            break
    return content[:_MOST_BYTES].decode("utf-8", "replace")


def _said(error: Exception, url: str) -> str:
    """What went wrong, without the address: it may be a secret, and httpx has it in messages."""
    import httpx

    if isinstance(error, httpx.InvalidURL | ValueError):
        return "the address can't be used: it must be https://HOST/PATH"
    text = str(error).replace(url, "the address") if url else str(error)
    if not text or isinstance(error, httpx.TimeoutException):
        return f"it does not answer ({type(error).__name__})"
    return f"it does not answer: {_ERRNO.sub('', text)}"


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
