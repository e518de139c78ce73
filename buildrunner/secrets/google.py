"""Values from Google's Secret Manager and Cloud KMS, for users who turned these on.

Source: REST reference of Secret Manager v1 (``versions.access``) and of Cloud KMS v1
(``cryptoKeys.decrypt``).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from buildrunner.errors import SecretError
from buildrunner.plan.build_plan import SecretReference
from buildrunner.retry import LONGEST_WAIT_S, asked_wait_s, backoff
from buildrunner.secrets.provider import as_text, ciphertext_of, subject_of

SECRET_MANAGER = "https://secretmanager.googleapis.com"  # noqa: S105  (an address)
KMS = "https://cloudkms.googleapis.com"

_PROJECT = r"projects/[a-z0-9][\w.:-]*"
_VERSION = re.compile(
    rf"{_PROJECT}/(?:locations/(?P<location>[a-z0-9-]+)/)?secrets/[\w-]+/versions/[\w-]+", re.ASCII
)
_KEY = re.compile(rf"{_PROJECT}/locations/[a-z0-9-]+/keyRings/[\w-]+/cryptoKeys/[\w-]+", re.ASCII)


class SecretManagerSecrets:
    """A `SecretProvider` that queries Secret Manager, once for each version name.

    Args:
        api: makes the client of an endpoint, `SECRET_MANAGER` or its regional form.
    """

    def __init__(self, api: Callable[[str], GoogleApi]) -> None:
        self._api = api
        self._values: dict[str, str] = {}

    def find(self, reference: SecretReference, misses: list[str]) -> str | None:
        """See `SecretProvider.find`."""
        if reference.kind == "kms":
            return None
        if reference.name not in self._values:
            match = _VERSION.fullmatch(reference.name)
            if match is None:
                misses.append("that is no version name of Google's Secret Manager")
                return None
            try:
                value = self._access(reference, match["location"])
            except ApiError as error:
                if error.code == 404:
                    misses.append("Google's Secret Manager has no such secret or version")
                    return None
                raise explained(
                    error,
                    subject_of(reference),
                    "Google's Secret Manager",
                    "roles/secretmanager.secretAccessor",
                ) from error
            self._values[reference.name] = value
        return self._values[reference.name]

    def _access(self, reference: SecretReference, location: str | None) -> str:
        # Only the endpoint of their region has regional secrets.
        endpoint = f"https://secretmanager.{location}.rep.googleapis.com" if location else None
        api = self._api(endpoint or SECRET_MANAGER)
        value = api.call(f"{reference.name}:access", _payload)
        return as_text(value, subject_of(reference))


class KmsSecrets:
    """A `SecretProvider` that lets Cloud KMS decrypt ciphertexts of the config.

    Args:
        api: makes the client of an endpoint.
    """

    def __init__(self, api: Callable[[str], GoogleApi]) -> None:
        self._api = api

    def find(self, reference: SecretReference, misses: list[str]) -> str | None:
        """See `SecretProvider.find`."""
        if reference.kind != "kms":
            return None
        if _KEY.fullmatch(reference.name) is None:
            misses.append("that is no key name of Cloud KMS")
            return None
        try:
            value = self._decrypt(reference)
        except ApiError as error:
            raise explained(
                error, subject_of(reference), "Cloud KMS", "roles/cloudkms.cryptoKeyDecrypter"
            ) from error
        return as_text(value, subject_of(reference))

    def _decrypt(self, reference: SecretReference) -> bytes:
        import google_crc32c

        ciphertext = ciphertext_of(reference)
        body = {
            "ciphertext": base64.b64encode(ciphertext).decode(),
            "ciphertextCrc32c": str(google_crc32c.value(ciphertext)),
        }
        return self._api(KMS).call(f"{reference.name}:decrypt", _plaintext, body)


def _payload(answer: dict[str, Any]) -> bytes:
    payload = answer.get("payload")
    if not isinstance(payload, dict):
        raise ApiError(0, "the answer has no payload")
    return checked_bytes(payload.get("data"), payload.get("dataCrc32c"))


def _plaintext(answer: dict[str, Any]) -> bytes:
    return checked_bytes(answer.get("plaintext"), answer.get("plaintextCrc32c"))


SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
TRIES = 4
TIMEOUT_S = 10.0

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_WAIT_S = 0.5
_LONGEST_ANSWER = 1 << 20  # a value's limit is 64 KiB
_QUOTED_BYTES = 300  # characters of a server's own message
_URL_SAFE = str.maketrans("-_", "+/")


class ApiError(Exception):
    """The API refused a call, or gave no usable answer.

    Attributes:
        code: HTTP status; 0 without a usable answer.
        reason: the API's message, on one line, printable.
        retry_after_s: the wait in seconds that the API requests; 0 for none.
    """

    def __init__(self, code: int, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.retry_after_s = retry_after_s


class GoogleApi:
    """One API at one endpoint. Used by one thread at a time.

    Args:
        endpoint: ``https://...``, or the ``http://...`` of an emulator, which gets no token,
            since tokens are never sent in clear.
        token: returns an OAuth 2 access token; raises SecretError.
        pause: waits the given seconds between two tries.
        timeout_s: seconds that one try may take to connect, and for each part of its answer.
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
        # urllib would send the token to the target of a redirect.
        self._opener = build_opener(_NoRedirect)

    def call(
        self,
        path: str,
        read: Callable[[dict[str, Any]], bytes],
        body: dict[str, str] | None = None,
    ) -> bytes:
        """Return the decoded answer to a GET of ``path``, or to a POST of ``body``.

        Transient errors (429, 5xx, no answer in time, a damaged one) are retried.

        Args:
            path: path below the API's version.
            read: extracts the value from the answer; raises ApiError.
            body: body of a POST.

        Raises:
            ApiError: the API refused, or gave no usable answer in `TRIES` tries.
            SecretError: no token is available.
        """
        for tries in range(1, TRIES):
            try:
                return read(self._try(path, body))
            except ApiError as error:
                if error.code and error.code not in _PASSING:
                    raise
                asked_s = error.retry_after_s
            self._pause(max(backoff(tries, _FIRST_WAIT_S, LONGEST_WAIT_S), asked_s))
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
        except (ValueError, RecursionError):  # the message may quote the secret's value
            found = None
        if not isinstance(found, dict):
            raise ApiError(0, f"{self.endpoint} answered with something that is not JSON") from None
        return found


class _NoRedirect(HTTPRedirectHandler):
    """Refuses redirects, which neither API sends."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Return None, so that urllib raises an HTTPError with the redirect's status."""


def checked_bytes(data: object, checksum: object) -> bytes:
    """Return the bytes in base64 ``data``, checked by the CRC32C ``checksum`` sent with them.

    Args:
        data: base64 text of either alphabet, as in JSON of protobuf messages; an empty
            value may be missing.
        checksum: decimal, as text (int64 in JSON); None checks nothing.

    Raises:
        ApiError: the data is damaged. A retry may help: its code is 0.
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
    """Return the error for the user.

    Args:
        error: the API's error.
        subject: the secret, and its variable.
        service: the API's name.
        role: the role that the caller's account needs.
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
    """Return the message in Google's error body.

    Source: error format of Google Cloud APIs (AIP-193).
    """
    try:
        message = str(json.loads(error.read(65536))["error"]["message"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        message = error.reason or "no reason given"
    line = " ".join(message.split())
    shown = "".join(char for char in line if char.isprintable())[:_QUOTED_BYTES]
    return shown.rstrip(".")
