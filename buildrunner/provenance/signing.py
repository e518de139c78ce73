"""Signatures of statements: DSSE envelopes, the key that signs them, and its certificates.

A signer is a `securesystemslib.signer.Signer`: a key in a file, or a key of a KMS by its URI.
Certificates are checked at the present time: a signature carries no trusted time of its own. A
certificate must be made for signing code, so that no web server's certificate signs provenance.

Source: https://github.com/secure-systems-lab/dsse, version 1.0.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    ExtensionPolicy,
    PolicyBuilder,
    Store,
    VerificationError,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import (
    SIGNER_FOR_URI_SCHEME,
    CryptoSigner,
    Signature,
    Signer,
    SSlibKey,
)

from buildrunner.errors import AttestationError
from buildrunner.secrets.store_key import exposed_file, write_private

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
KEY_NAME: Final = "provenance-key.pem"
KMS_SCHEMES: Final = ("awskms", "azurekms", "gcpkms", "hv")
"""Schemes of `SIGNER_FOR_URI_SCHEME` that name a key of a KMS."""
_CERTIFICATES: Final = ("certificate", "x509CertificateChain")  # in a Sigstore bundle
_RSA_SCHEMES = ("rsa-pkcs1v15-sha256", "rsassa-pss-sha256")  # cosign verifies only the first


def open_signer(key: str, folder: str) -> Signer:
    """Return the signer that the settings choose.

    Args:
        key: path of a private key in PEM, or URI of a key of a KMS; empty for ``KEY_NAME`` in
            ``folder``, which is made at its first use.
        folder: data folder of the user or the server.

    Raises:
        AttestationError: the key cannot be used.
    """
    if key.partition(":")[0] in KMS_SCHEMES:
        return kms_signer(key)
    path = key or os.path.join(folder, KEY_NAME)
    if not key and not os.path.exists(path):
        _make_key(path)
    return _file_signer(path)


def signed_envelope(statement: dict[str, Any], signer: Signer, certificates: str = "") -> bytes:
    """Return the DSSE envelope of a statement, as JSON on one line.

    Args:
        statement: an in-toto statement.
        signer: signs it.
        certificates: the certificate of the signer's key, and those above it, as PEM text.

    Raises:
        AttestationError: the signer does not sign, such as a KMS that cannot be reached.
    """
    payload = json.dumps(statement, separators=(",", ":"), ensure_ascii=False).encode()
    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    try:
        envelope.sign(signer)
    except Exception as error:  # each KMS has errors of its own library
        raise AttestationError(f"the provenance can't be signed: {error}") from error
    document = envelope.to_dict()
    if certificates:
        document["signatures"][0]["cert"] = certificates
    return json.dumps(document, separators=(",", ":")).encode()


def envelope_in(attestation: bytes) -> dict[str, Any]:
    """Return the DSSE envelope that an attestation is, or that a Sigstore bundle has.

    Raises:
        ValueError: the attestation is neither.
    """
    try:
        document = json.loads(attestation)
        return dict(document.get("dsseEnvelope", document))
    except (RecursionError, TypeError, AttributeError) as error:
        raise ValueError("neither a DSSE envelope nor a Sigstore bundle") from error


def is_keyless(attestation: bytes) -> bool:
    """Return whether an attestation is a Sigstore bundle with a certificate in place of a key."""
    try:
        material = json.loads(attestation).get("verificationMaterial", {})
    except (ValueError, RecursionError, TypeError, AttributeError):
        return False
    return isinstance(material, dict) and not material.keys().isdisjoint(_CERTIFICATES)


def image_claim(repository: str, digest: str) -> bytes:
    """Return the statement that cosign signs for an image.

    Source: https://github.com/containers/image/blob/main/docs/containers-signature.5.md
    """
    claim = {
        "critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    return json.dumps(claim, separators=(",", ":")).encode()


def signature_of(data: bytes, signer: Signer) -> bytes:
    """Sign data as it is, without an envelope.

    Raises:
        AttestationError: the signer does not sign.
    """
    try:
        return bytes.fromhex(signer.sign(data).signature)
    except Exception as error:  # each KMS has errors of its own library
        raise AttestationError(f"the image can't be signed: {error}") from error


def is_signature(data: bytes, signature: bytes, key: SSlibKey) -> bool:
    """Return whether a key has signed data, by any of the schemes of its type."""
    for scheme in _RSA_SCHEMES if key.keytype == "rsa" else (key.scheme,):
        one = SSlibKey(key.keyid, key.keytype, scheme, key.keyval)
        try:
            one.verify_signature(Signature(key.keyid, signature.hex()), data)
        except UnverifiedSignatureError:
            continue
        return True
    return False


def public_key_pem(signer: Signer) -> str:
    """Return the public key of a signer as PEM text, as cosign and openssl read it."""
    key = signer.public_key
    if not isinstance(key, SSlibKey):
        raise AttestationError(f"a key of type {key.keytype} has no PEM form")
    pem: bytes = _public(key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem.decode()


def named_key(key: Any) -> SSlibKey:
    """Return a public key whose id is its fingerprint, as `ssh-keygen -l` shows it.

    Verifiers on go-securesystemslib, such as cosign, expect signatures to name keys in this way.

    Raises:
        ValueError: the key is of a kind that signs no provenance.
    """
    wire = b64decode(key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).split()[1])
    fingerprint = b64encode(hashlib.sha256(wire).digest()).decode().rstrip("=")
    scheme = _RSA_SCHEMES[0] if isinstance(key, RSAPublicKey) else None
    return SSlibKey.from_crypto(key, f"SHA256:{fingerprint}", scheme)


def read_public_key(pem: bytes, place: str) -> SSlibKey:
    """Return the public key in a PEM text.

    Raises:
        AttestationError: the text is no public key.
    """
    try:
        return named_key(load_pem_public_key(pem))
    except ValueError as error:
        raise AttestationError(
            f"{place} is not a public key in PEM form",
            hint="`buildrunner builds provenance --public-key` prints one",
        ) from error


def _file_signer(path: str) -> Signer:
    try:
        with open(path, "rb") as file:
            exposed = exposed_file(file)
            pem = file.read(1 << 16)
    except OSError as error:
        raise AttestationError(
            f"the signing key {path} can't be read: {error.strerror or error}",
            hint="correct [provenance] key in the settings",
        ) from error
    if exposed:
        raise AttestationError(
            f"the signing key {path} {exposed}",
            hint=f"chmod 600 {path}; if others may have read it, delete it to get a new one",
        )
    try:
        private = load_pem_private_key(pem, password=None)
        return CryptoSigner(private, named_key(private.public_key()))
    except (ValueError, TypeError) as error:  # TypeError: it has a password
        raise AttestationError(
            f"the signing key {path} is no private key in PEM form without a password",
            hint="use an ECDSA P-256 key: openssl genpkey -algorithm EC "
            "-pkeyopt ec_paramgen_curve:P-256",
        ) from error


def _make_key(path: str) -> None:
    """Write a new key. Of two processes that make one at the same time, one key remains."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            write_private(path, CryptoSigner.generate_ecdsa().private_bytes)
    except OSError as error:
        raise AttestationError(
            f"the signing key {path} can't be written: {error.strerror or error}"
        ) from error


def kms_signer(uri: str) -> Signer:
    """Return a signer for a key of a KMS. The KMS supplies the public key.

    Raises:
        AttestationError: the key cannot be used.
    """
    scheme, _, name = uri.partition(":")
    if scheme not in KMS_SCHEMES:
        raise AttestationError(
            f"the signing key {uri} is no key of a KMS",
            hint=f"such a URI begins with {', '.join(f'{one}:' for one in KMS_SCHEMES)}",
        )
    try:
        importer: Any = SIGNER_FOR_URI_SCHEME[scheme]
        found, key = importer.import_(*(_azure_key(name) if scheme == "azurekms" else [name]))
        return Signer.from_priv_key_uri(found, _named_by_fingerprint(key, scheme))
    except Exception as error:  # each KMS has errors of its own library
        extra = "vault" if scheme == "hv" else scheme
        raise AttestationError(
            f"the signing key {uri} can't be used: {error}",
            hint=f"check the URI of the key; its library is in securesystemslib[{extra}]",
        ) from error


def _azure_key(name: str) -> tuple[str, str]:
    """Return vault and name of a key whose URI is ``azurekms://VAULT.vault.azure.net/keys/NAME``."""
    found = re.fullmatch(r"//([A-Za-z0-9-]+)\.vault\.azure\.net/keys/([A-Za-z0-9-]+)", name)
    if found is None:
        raise ValueError("a key of Azure is azurekms://VAULT.vault.azure.net/keys/NAME")
    return found[1], found[2]


def _named_by_fingerprint(key: SSlibKey, kms: str) -> SSlibKey:
    """Return the same key by the id of `named_key`, which verifiers look for.

    RSA keys of AWS sign by all schemes, and those of Google Cloud by one that the key has.
    """
    named = named_key(_public(key))
    scheme = named.scheme if (kms, key.keytype) == ("awskms", "rsa") else key.scheme
    return SSlibKey(named.keyid, key.keytype, scheme, key.keyval)


def _public(key: SSlibKey) -> Any:
    value = str(key.keyval["public"])
    if key.keytype == "ed25519":  # not PEM, but the bytes of the key
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(value))
    return load_pem_public_key(value.encode())


class BadCertificate(Exception):
    """A certificate does not certify its key. The message says why."""


def read_certificates(pem: bytes, place: str) -> list[x509.Certificate]:
    """Return the certificates of a PEM text, at least one.

    Raises:
        AttestationError: the text has no certificate, or an invalid one.
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
