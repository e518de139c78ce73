"""Keys that a certificate vouches for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from buildrunner.errors import AttestationError, VerificationError
from buildrunner.provenance.attachment import bundle_of
from buildrunner.provenance.signing import KEY_NAME, open_signer, read_certificates, signed_envelope
from buildrunner.provenance.verification import Policy, Trust, Verified, verified
from tests.unit.provenance.builds import DIGEST, statement

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DAY = timedelta(days=1)
CODE = ExtendedKeyUsageOID.CODE_SIGNING


def named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


class Authority:
    """An authority that certifies the key in a folder."""

    def __init__(self, name: str = "tests") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = named(name)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            **dict.fromkeys(
                (
                    "content_commitment",
                    "key_encipherment",
                    "data_encipherment",
                    "key_agreement",
                    "encipher_only",
                    "decipher_only",
                ),
                False,
            ),
        )
        self.certificate = (
            self._builder(self._name, self._key.public_key(), 100 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .sign(self._key, SHA256())
        )

    def _builder(self, name, key, length, begin=NOW - DAY) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + length)
        )

    def certify(self, folder: Path, *, usage=CODE, begin=NOW - DAY) -> str:
        open_signer("", str(folder))
        private = load_pem_private_key((folder / KEY_NAME).read_bytes(), None)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        made = self._builder(named("ci"), private.public_key(), 2 * DAY, begin)
        made = made.add_extension(
            x509.SubjectAlternativeName([x509.DNSName("ci.example.com")]), critical=False
        ).add_extension(issuer, critical=False)
        if usage is not None:
            made = made.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        return made.sign(self._key, SHA256()).public_bytes(Encoding.PEM).decode()


@pytest.fixture
def authority() -> Authority:
    return Authority()


def check(folder: Path, pem: str, *authorities: Authority, now: datetime = NOW) -> Verified:
    line = signed_envelope(statement(), open_signer("", str(folder)), pem)
    trust = Trust(authorities=[one.certificate for one in authorities], now=now)
    return verified(DIGEST, [line], trust, Policy())


def test_a_key_with_a_certificate_of_an_authority_may_sign(tmp_path, authority):
    found = check(tmp_path, authority.certify(tmp_path), Authority("other"), authority)
    assert found.key == open_signer("", str(tmp_path)).public_key.keyid


@pytest.mark.parametrize(
    ("days", "message"),
    [(2, "the certificate of its key expired on 2026-01-03"), (-2, "is not valid before")],
)
def test_an_expired_certificate_is_refused(tmp_path, authority, days, message):
    with pytest.raises(VerificationError, match=message):
        check(tmp_path, authority.certify(tmp_path), authority, now=NOW + days * DAY)


def test_a_certificate_of_another_authority_is_refused(tmp_path, authority):
    with pytest.raises(VerificationError, match="comes from no allowed authority"):
        check(tmp_path, authority.certify(tmp_path), Authority())


@pytest.mark.parametrize("usage", [ExtendedKeyUsageOID.SERVER_AUTH, None])
def test_the_certificate_of_a_web_server_is_refused(tmp_path, authority, usage):
    with pytest.raises(VerificationError, match="is not for signing code"):
        check(tmp_path, authority.certify(tmp_path, usage=usage), authority)


def test_a_certificate_of_another_key_is_refused(tmp_path, authority):
    other = authority.certify(tmp_path / "other")
    with pytest.raises(VerificationError, match="the signature does not fit"):
        check(tmp_path, other, authority)


@pytest.mark.parametrize("pem", ["nonsense", "-----BEGIN CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused(tmp_path, authority, pem):
    with pytest.raises(VerificationError, match="holds no certificates in PEM form"):
        check(tmp_path, pem, authority)
    with pytest.raises(AttestationError):
        read_certificates(pem.encode(), "file")


def test_a_bundle_leaves_the_certificate_out_which_other_readers_refuse(tmp_path, authority):
    pem = authority.certify(tmp_path)
    line = signed_envelope(statement(), open_signer("", str(tmp_path)), pem)
    assert b"CERTIFICATE" in line
    assert b"CERTIFICATE" not in bundle_of(line)
