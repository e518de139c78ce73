"""Values from Google's Secret Manager and Cloud KMS, for users who asked for that.

Source: REST reference of Secret Manager v1 (``versions.access``) and of Cloud KMS v1
(``cryptoKeys.decrypt``).
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

from buildrunner.secrets.google_api import ApiError, checked_bytes, explained
from buildrunner.secrets.provider import as_text, ciphertext_of, subject_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.plan.build_plan import SecretReference
    from buildrunner.secrets.google_api import GoogleApi

SECRET_MANAGER = "https://secretmanager.googleapis.com"  # noqa: S105  (an address)
KMS = "https://cloudkms.googleapis.com"

_PROJECT = r"projects/[a-z0-9][\w.:-]*"
_VERSION = re.compile(
    rf"{_PROJECT}/(?:locations/(?P<location>[a-z0-9-]+)/)?secrets/[\w-]+/versions/[\w-]+", re.ASCII
)
_KEY = re.compile(rf"{_PROJECT}/locations/[a-z0-9-]+/keyRings/[\w-]+/cryptoKeys/[\w-]+", re.ASCII)


class SecretManagerSecrets:
    """A `SecretProvider` that asks Secret Manager, once for each version name.

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
        # Regional secrets live behind an endpoint of their region only.
        endpoint = f"https://secretmanager.{location}.rep.googleapis.com" if location else None
        api = self._api(endpoint or SECRET_MANAGER)
        value = api.call(f"{reference.name}:access", _payload)
        return as_text(value, subject_of(reference))


class KmsSecrets:
    """A `SecretProvider` that lets Cloud KMS decrypt what the config holds as ciphertext.

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
