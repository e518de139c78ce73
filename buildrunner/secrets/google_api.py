"""Calls to Google's REST APIs for secrets: retries, checksums, and errors a person can act on.

One GET or POST a secret is all that is needed of them. The official client libraries would bring
gRPC along, whose import alone takes longer than a small build.
"""

from __future__ import annotations

import base64
import binascii
import json
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from buildrunner.errors import SecretError
from buildrunner.retry_after import asked_wait_s

if TYPE_CHECKING:
    from collections.abc import Callable

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
TRIES = 4
TIMEOUT_S = 10.0

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_WAIT_S = 0.5
_LONGEST_ANSWER = 1 << 20  # a value's limit is 64 KiB
_QUOTED_BYTES = 300  # of a server's own message
_URL_SAFE = str.maketrans("-_", "+/")


class ApiError(Exception):
    """The API refused.

    Attributes:
        code: HTTP status; 0 when no answer came.
        reason: what it said, one line, printable.
        retry_after_s: how long it asks to wait; 0 when it does not say.
    """

    def __init__(self, code: int, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s


class GoogleApi:
    """One API at one endpoint. Used by one thread at a time.

    Args:
        endpoint: ``https://...``, or the ``http://...`` of an emulator; that one gets no token,
            which is never sent in clear.
        token: gives an OAuth 2 access token; raises SecretError.
        pause: waits so many seconds between two tries.
        timeout_s: how long one try may take to connect, and to send each part of its answer.
    """

    def __init__(
        self,
        endpoint: str,
        token: Callable[[], str],
        pause: Callable[[float], object],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self._token = token if urlsplit(endpoint).scheme == "https" else None
        self._pause = pause
        self._timeout_s = timeout_s
        # urllib would send the token along to wherever an answer redirects.
        self._opener = build_opener(_NoRedirect)

    def call(
        self,
        path: str,
        read: Callable[[dict[str, Any]], bytes],
        body: dict[str, str] | None = None,
    ) -> bytes:
        """What the answer to a GET of ``path``, or to a POST of ``body``, holds.

        Troubles that may pass (429, 5xx, no answer in time, a damaged one) are retried.

        Args:
            path: below the version of the API.
            read: takes the value out of the answer; raises ApiError.
            body: of a POST.

        Raises:
            ApiError: it refused, or gave no usable answer in `TRIES` tries.
            SecretError: no token can be had.
        """
        wait_s = _FIRST_WAIT_S
        for _ in range(TRIES - 1):
            try:
                return read(self._try(path, body))
            except ApiError as error:
                if error.code and error.code not in _PASSING:
                    raise
                asked_s = error.retry_after_s
            self._pause(max(wait_s, asked_s))
            wait_s *= 2
        return read(self._try(path, body))

    def _try(self, path: str, body: dict[str, str] | None) -> dict[str, Any]:
        url = f"{self.endpoint}/v1/{quote(path, safe='/:')}"
        request = Request(url, headers={"Accept": "application/json"})  # noqa: S310  (see wiring)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        if self._token is not None:
            request.add_header("Authorization", f"Bearer {self._token()}")
        try:
            with self._opener.open(request, timeout=self._timeout_s) as answer:
                text = answer.read(_LONGEST_ANSWER)
        except HTTPError as error:
            with error:
                asked_s = asked_wait_s(error.headers.items())
                raise ApiError(error.code, _message(error), asked_s) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise ApiError(0, f"{self.endpoint} does not answer: {reason}") from None
        try:
            found = json.loads(text)
        except ValueError:  # its message may quote the answer, which may hold the value
            found = None
        if not isinstance(found, dict):
            raise ApiError(0, f"{self.endpoint} answered with something that is not JSON") from None
        return found


class _NoRedirect(HTTPRedirectHandler):
    """Follows no redirect: neither API sends any."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """None makes urllib raise an HTTPError of the redirect's own status."""


def checked_bytes(data: object, checksum: object) -> bytes:
    """The bytes behind base64 ``data``, if they have the CRC32C ``checksum`` that came with them.

    Args:
        data: base64 text of either alphabet, as JSON of protobuf messages may have it; an empty
            value may be missing.
        checksum: decimal, as text (int64 in JSON); None checks nothing.

    Raises:
        ApiError: something got lost on the way. Worth another try: its code is 0.
    """
    try:
        value = base64.b64decode(str(data or "").translate(_URL_SAFE), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(0, "the answer's value is not base64") from None
    if checksum is not None:
        import google_crc32c

        if str(checksum) != str(google_crc32c.value(value)):
            raise ApiError(0, "the answer's checksum (CRC32C) does not fit: it was damaged")
    return value


def explained(error: ApiError, subject: str, service: str, role: str) -> SecretError:
    """The error for a person.

    Args:
        error: what the API said.
        subject: which secret, for which variable.
        service: the API's name.
        role: what the caller's account needs.
    """
    match error.code:
        case 0:
            return SecretError(f"{service} could not give {subject}: {error.reason}")
        case 401:
            return SecretError(
                f"{service} does not accept the credentials for {subject}: {error.reason}",
                hint="gcloud auth application-default login",
            )
        case 403:
            return SecretError(
                f"{service} refuses access to {subject}: {error.reason}",
                hint=f"give the account of your credentials the role {role}",
            )
        case _:
            return SecretError(
                f"{service} answered {error.code} to {subject}: {error.reason}",
            )


def _message(error: HTTPError) -> str:
    """What Google's error body says. Source: the error format of Google Cloud APIs (AIP-193)."""
    try:
        message = str(json.loads(error.read(65536))["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        message = error.reason or "no reason given"
    line = " ".join(message.split())
    shown = "".join(char for char in line if char.isprintable())[:_QUOTED_BYTES]
    return shown.rstrip(".")
