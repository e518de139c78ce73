"""Certificates of signing keys: read, and checked against the authorities of a policy.

Certificates are checked at the present time: a signature carries no trusted time of its own. A
certificate must be made for signing code, so that no web server's certificate signs provenance.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)
from securesystemslib.signer import SSlibKey

from buildrunner.errors import AttestationError
from buildrunner.provenance.signing import named_key


class BadCertificate(Exception):
    """A certificate does not vouch for its key. The message says why."""


def read_certificates(pem: bytes, place: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM text, at least one.

    Raises:
        AttestationError: the text holds none, or a broken one.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise AttestationError(f"{place} holds no certificates in PEM form") from error


def certified_key(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate], now: datetime
) -> SSlibKey:
    """Return the key of the first certificate of a chain.

    Args:
        chain: the certificate of the key, then those between it and its authority.
        authorities: the authorities that are trusted.
        now: the time at which the certificates must be valid.

    Raises:
        BadCertificate: the chain leads to no authority, is not valid now, or is not for code.
    """
    leaf, *others = chain
    if now > leaf.not_valid_after_utc:
        raise BadCertificate(f"the certificate of its key expired on {leaf.not_valid_after_utc}")
    if now < leaf.not_valid_before_utc:
        raise BadCertificate(
            f"the certificate of its key is not valid before {leaf.not_valid_before_utc}"
        )
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    if ExtendedKeyUsageOID.CODE_SIGNING not in usage:
        raise BadCertificate("the certificate of its key is not for signing code")
    policies = ExtensionPolicy.webpki_defaults_ca(), ExtensionPolicy.permit_all()
    verifier = (
        PolicyBuilder()
        .store(Store(list(authorities)))
        .time(now)
        .extension_policies(ca_policy=policies[0], ee_policy=policies[1])
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, others)
    except VerificationError as error:
        raise BadCertificate(
            f"the certificate of its key comes from no allowed authority: {error}"
        ) from error
    return named_key(leaf.public_key())
