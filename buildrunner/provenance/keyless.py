"""Keyless signatures by Sigstore.

Fulcio certifies a key that makes one signature, for the identity in an OpenID Connect token.
Rekor logs the signature, and a timestamp authority may date it. The result is a Sigstore bundle.
The library `sigstore` does all of this; only builds with such signatures load it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import msgspec

from buildrunner.errors import AttestationError
from buildrunner.retry import backoff

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.models import ClientTrustConfig, TrustedRoot

PUBLIC: Final = "public"
"""Name of the public instance of Sigstore, in place of the path of a trust config."""
AUDIENCE: Final = "sigstore"
"""The audience of tokens that Fulcio accepts."""

_LIMIT_S = 120.0  # all tries together; the library's requests have no timeouts of their own
_TRIES = 3
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 5.0
_TOO_MANY_REQUESTS = 429
_INTERNAL_ERROR = 500
_LONGEST_REASON = 500
_ISSUER = "1.3.6.1.4.1.57264.1.1"  # extension of Fulcio's certificates


class Keyless(msgspec.Struct, frozen=True, kw_only=True):
    """The settings for signatures without a key.

    Attributes:
        sigstore: `PUBLIC`, or the path of the trust config of another instance.
        token: identity token for Fulcio; empty to read ``token_file``.
        token_file: file with such a token, read at each signature. Empty, with no token either:
            the token of the CI service or cloud that the process runs on.
    """

    sigstore: str
    token: str = ""
    token_file: str = ""


class Identity(msgspec.Struct, frozen=True):
    """An identity that Fulcio certified: a subject, and the issuer of its token."""

    issuer: str
    subject: str


class BadBundle(Exception):
    """A Sigstore bundle does not prove an identity. The message says why."""


def keyless_bundle(
    statement: dict[str, Any], keyless: Keyless, cancel: threading.Event | None = None
) -> bytes:
    """Return the Sigstore bundle of a signed statement, as JSON on one line.

    Requests to an instance that is busy, or does not answer, are retried.

    Args:
        statement: an in-toto statement.
        keyless: the settings.
        cancel: ends the wait for Sigstore.

    Raises:
        AttestationError: Sigstore made no valid bundle. The message says why.
    """
    payload = json.dumps(statement, separators=(",", ":"), ensure_ascii=False).encode()
    halt = cancel or threading.Event()
    result: list[bytes | AttestationError] = []
    done = threading.Event()

    def sign() -> None:
        try:
            result.append(_tried(payload, keyless, halt))
        except AttestationError as error:
            result.append(error)
        except Exception as error:  # noqa: BLE001  (a bug of a library must not look like a lost answer)
            result.append(AttestationError(f"Sigstore did not sign the provenance: {error!r}"))
        finally:
            done.set()

    threading.Thread(target=sign, name="sigstore", daemon=True).start()
    waited = 0.0
    while not done.wait(0.2) and waited < _LIMIT_S and not halt.is_set():
        waited += 0.2
    if not result:
        raise AttestationError(f"Sigstore did not sign the provenance within {waited:.0f} s")
    if isinstance(result[0], AttestationError):
        raise result[0]
    return result[0]


def trusted_root(sigstore: str) -> TrustedRoot:
    """Return the keys and certificates of an instance of Sigstore, as signatures need them.

    Args:
        sigstore: `PUBLIC`, or the path of a trust config or of a trusted root.

    Raises:
        AttestationError: the keys can't be read or fetched.
    """
    _require()
    from sigstore.models import TrustedRoot

    if sigstore != PUBLIC:
        with _reading(sigstore):
            with open(sigstore, "rb") as file:
                document = json.loads(file.read())
            if "trustedRoot" not in document:
                return TrustedRoot.from_file(sigstore)
    return _trust_config(sigstore).trusted_root


def verified_payload(bundle: bytes, root: TrustedRoot) -> tuple[bytes, str, Identity]:
    """Return the signed payload of a bundle, its type, and the identity that signed it.

    The certificate must have been valid when the log or a timestamp authority saw the signature.

    Raises:
        BadBundle: the bundle proves nothing.
    """
    from sigstore.errors import CertValidationError, Error
    from sigstore.models import Bundle
    from sigstore.verify import Verifier

    found: list[Identity] = []

    class AnyIdentity:
        """Implements `sigstore.verify.policy.VerificationPolicy`; keeps the identity."""

        def verify(self, cert: Certificate) -> None:
            found.append(identity_of(cert))

    try:
        if not json.loads(bundle)["verificationMaterial"].get("tlogEntries"):
            raise BadBundle("its signature is in no transparency log")
        parsed = Bundle.from_json(bundle)
        kind, payload = Verifier(trusted_root=root).verify_dsse(parsed, AnyIdentity())
    except CertValidationError as error:
        raise BadBundle(_why_uncertified(bundle)) from error
    except Error as error:
        text = str(error)
        if text.startswith("invalid log entry"):
            raise BadBundle(f"its signature is not in the transparency log: {text}") from error
        raise BadBundle(f"its Sigstore bundle is not valid: {text}") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadBundle(f"its Sigstore bundle can't be read: {error}") from error
    return payload, kind, found[0]


def _why_uncertified(bundle: bytes) -> str:
    """Return why the certificate of a bundle is refused: its times, or its authority."""
    from sigstore.models import Bundle

    parsed = Bundle.from_json(bundle)
    leaf = parsed.signing_certificate
    entry = json.loads(bundle)["verificationMaterial"]["tlogEntries"][0]
    dated = parsed.verification_material.timestamp_verification_data
    times = [one.tst_info.gen_time for one in dated.rfc3161_timestamps] if dated else []
    if int(entry.get("integratedTime", 0)):
        times.append(datetime.fromtimestamp(int(entry["integratedTime"]), UTC))
    begin, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    for time in times:
        if not begin <= time <= end:
            return (
                f"the certificate of its signature had expired or was not valid yet: it signed at "
                f"{time}, and was valid from {begin} to {end}"
            )
    return "the certificate of its signature comes from no trusted Fulcio"


def identity_of(certificate: Certificate) -> Identity:
    """Return the identity in a certificate of Fulcio; empty parts for what it lacks."""
    from cryptography.x509 import (
        ExtensionNotFound,
        ObjectIdentifier,
        RFC822Name,
        SubjectAlternativeName,
        UniformResourceIdentifier,
        UnrecognizedExtension,
    )

    issuer, names = "", []
    for extension in certificate.extensions:
        value = extension.value
        if extension.oid == ObjectIdentifier(_ISSUER) and isinstance(value, UnrecognizedExtension):
            issuer = value.value.decode("utf-8", "replace")
    try:
        alternative = certificate.extensions.get_extension_for_class(SubjectAlternativeName).value
    except ExtensionNotFound:
        pass
    else:
        names += alternative.get_values_for_type(UniformResourceIdentifier)
        names += alternative.get_values_for_type(RFC822Name)
    return Identity(issuer, names[0] if len(names) == 1 else "")


def _tried(payload: bytes, keyless: Keyless, cancel: threading.Event) -> bytes:
    for failures in range(1, _TRIES + 1):
        try:
            return _signed(payload, keyless)
        except _Failed as failed:
            if not failed.passes or failures == _TRIES:
                raise AttestationError(str(failed), hint=failed.hint) from failed
            if cancel.wait(backoff(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)):
                raise AttestationError(str(failed)) from failed
    raise AssertionError


class _Failed(Exception):
    """One try failed. ``passes``: another try may succeed."""

    def __init__(self, message: str, *, passes: bool = False, hint: str = "") -> None:
        super().__init__(message)
        self.passes = passes
        self.hint = hint


def _signed(payload: bytes, keyless: Keyless) -> bytes:
    """Sign once, and check the result as its readers will."""
    config = _trust_config(keyless.sigstore)
    from sigstore.dsse import Statement
    from sigstore.models import InvalidBundle
    from sigstore.oidc import IdentityError, IdentityToken
    from sigstore.sign import SigningContext

    try:
        token = IdentityToken(_token(keyless))
    except IdentityError as error:
        raise _Failed(
            f"the identity token for Sigstore can't be used: {error.__cause__ or error}",
            hint=f"it must be a valid token for the audience {AUDIENCE}",
        ) from error
    with _asking("no certificate of Fulcio for the provenance"):
        context = SigningContext.from_trust_config(config)
        with context.signer(token) as signer:
            certified = signer
    with _asking("the provenance can't be logged by Rekor"):
        try:
            bundle = certified.sign_dsse(Statement(payload)).to_json().encode()
        except InvalidBundle as error:  # the library ignores authorities that do not answer
            raise _Failed(
                f"no timestamp authority dated the signature of the provenance: {error}",
                passes=True,
            ) from error
    try:
        verified_payload(bundle, config.trusted_root)
    except BadBundle as error:
        raise _Failed(
            f"Sigstore gave the provenance a signature that is not valid: {error}"
        ) from error
    return bundle


@contextmanager
def _asking(what: str) -> Iterator[None]:
    """Translate the errors of the library. The message is that of the server, which says more."""
    import requests

    try:
        yield
    except _Failed:
        raise
    except Exception as error:  # each part of the library has errors of its own
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, requests.RequestException):
            cause = cause.__cause__ or cause.__context__
        answer = cause.response if isinstance(cause, requests.RequestException) else None
        if answer is None:
            reason = _text(cause or error)
            raise _Failed(f"{what}: {reason}", passes=cause is not None) from error
        passes = answer.status_code >= _INTERNAL_ERROR or answer.status_code == _TOO_MANY_REQUESTS
        host = answer.url.split("/api/")[0]
        raise _Failed(
            f"{what}: {host} answers {answer.status_code}: {_message(answer.text)}", passes=passes
        ) from error


def _message(answer: str) -> str:
    """Return the message in an answer of Fulcio or Rekor; the answer itself if it has none."""
    try:
        return str(json.loads(answer)["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        return " ".join(answer.split())[:_LONGEST_REASON]


def _text(error: BaseException) -> str:
    return " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__


def _token(keyless: Keyless) -> str:
    if keyless.token:
        return keyless.token
    if keyless.token_file:
        try:
            with open(keyless.token_file, encoding="ascii") as file:
                return file.read().strip()
        except (OSError, ValueError) as error:
            raise _Failed(
                f"the identity token {keyless.token_file} can't be read: {error}",
                hint="correct [provenance] identity_token in the settings",
            ) from error
    from sigstore.oidc import IdentityError, detect_credential

    try:
        found = detect_credential()
    except IdentityError as error:
        raise _Failed(f"there is no identity token for Sigstore: {error}") from error
    if found is None:
        raise _Failed(
            "there is no identity token for Sigstore",
            hint="name a file in [provenance] identity_token, or run the build on a server",
        )
    return found


def _trust_config(sigstore: str) -> ClientTrustConfig:
    _require()
    from sigstore.errors import Error
    from sigstore.models import ClientTrustConfig

    if sigstore == PUBLIC:
        try:
            return ClientTrustConfig.production()
        except Error as error:
            reason = error.__cause__ or error
            raise AttestationError(
                f"the keys of Sigstore's public instance can't be fetched: {_text(reason)}"
            ) from error
    with _reading(sigstore), open(sigstore, encoding="utf-8") as file:
        return ClientTrustConfig.from_json(file.read())


@contextmanager
def _reading(path: str) -> Iterator[None]:
    from sigstore.errors import Error

    try:
        yield
    except OSError as error:
        raise AttestationError(
            f"the trust config {path} can't be read: {error.strerror or error}"
        ) from error
    except (Error, ValueError, TypeError, RecursionError) as error:
        raise AttestationError(
            f"{path} is no trust config of Sigstore: {_text(error)}",
            hint="a server of Sigstore offers one as ClientTrustConfig, in JSON",
        ) from error


def _require() -> None:
    if find_spec("sigstore") is None:
        raise AttestationError(
            "sigstore is not installed",
            hint="in the source folder of buildrunner: pip install '.[sigstore]'",
        )
