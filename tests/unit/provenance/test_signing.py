"""Signatures that others verify, and the file of the key."""

from __future__ import annotations

import json
import stat
import subprocess
import threading
from base64 import b64decode
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key as generate_rsa_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Signer, SSlibKey
from sigstore.dsse import Envelope as SigstoreEnvelope
from sigstore.dsse import _verify as verified_by_sigstore

from buildrunner.engine.protocols import Attested
from buildrunner.errors import AttestationError
from buildrunner.provenance.attester import ProvenanceAttester
from buildrunner.provenance.signing import (
    KEY_NAME,
    PAYLOAD_TYPE,
    is_signature,
    open_signer,
    public_key_pem,
    read_public_key,
    signed_envelope,
)
from buildrunner.registries.logins import DockerLogins
from tests.unit.provenance.builds import BUILD, BUILDER, PLAN, envelope, outcome, payload, statement


def test_sigstore_verifies_the_envelope(tmp_path):
    line = envelope(tmp_path)
    pem = public_key_pem(open_signer("", str(tmp_path))).encode()
    parsed = SigstoreEnvelope._from_json(line)
    assert verified_by_sigstore(load_pem_public_key(pem), parsed)
    assert payload(line) == statement()


def test_openssl_verifies_the_envelope(tmp_path):
    line = msgspec.json.decode(envelope(tmp_path))
    (tmp_path / "key.pub").write_text(public_key_pem(open_signer("", str(tmp_path))))
    body = b64decode(line["payload"])
    kind = PAYLOAD_TYPE.encode()
    (tmp_path / "signed").write_bytes(b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body))
    (tmp_path / "sig").write_bytes(b64decode(line["signatures"][0]["sig"]))
    command = ["openssl", "dgst", "-sha256", "-verify", "key.pub", "-signature", "sig", "signed"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "Verified OK\n"


def test_the_key_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    folder = tmp_path / "data"
    keys = {public_key_pem(open_signer("", str(folder))) for _ in range(2)}
    assert len(keys) == 1
    assert stat.S_IMODE((folder / KEY_NAME).stat().st_mode) == 0o600
    assert [entry.name for entry in folder.iterdir()] == [KEY_NAME]


def test_builds_that_begin_at_once_share_one_key(tmp_path):
    keys: set[str] = set()
    barrier = threading.Barrier(8)

    def sign() -> None:
        barrier.wait()
        keys.add(public_key_pem(open_signer("", str(tmp_path))))

    threads = [threading.Thread(target=sign) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 1


def test_a_key_that_others_may_read_is_refused(tmp_path):
    open_signer("", str(tmp_path))
    (tmp_path / KEY_NAME).chmod(0o640)
    with pytest.raises(AttestationError, match="its mode is 0640") as caught:
        open_signer("", str(tmp_path))
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "can't be read: No such file"), (b"nonsense", "is no private key in PEM form")],
)
def test_a_key_of_the_settings_that_can_not_be_used_is_refused(tmp_path, content, message):
    path = tmp_path / "own.pem"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(AttestationError, match=message):
        open_signer(str(path), str(tmp_path))
    assert not (tmp_path / KEY_NAME).exists()


def test_a_kms_whose_library_is_missing_says_which_one_it_needs(tmp_path):
    with pytest.raises(AttestationError) as caught:
        open_signer("gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1", "")
    assert "securesystemslib[gcpkms]" in caught.value.hint


def test_the_id_of_a_key_is_the_fingerprint_that_ssh_keygen_shows(tmp_path):
    signer = open_signer("", str(tmp_path))
    done = subprocess.run(
        ["ssh-keygen", "-l", "-f", tmp_path / KEY_NAME], check=True, capture_output=True, text=True
    )
    assert done.stdout.split()[1] == signer.public_key.keyid
    assert read_public_key(public_key_pem(signer).encode(), "k").keyid == signer.public_key.keyid


def attested(folder: Path, *, required: bool) -> Attested:
    attester = ProvenanceAttester(
        BUILD,
        PLAN,
        builder_id=BUILDER,
        sign=lambda statement, _: signed_envelope(
            statement, open_signer(str(folder / "missing.pem"), str(folder))
        ),
        open_signer=None,
        required=required,
    )
    return attester.attest(
        outcome(),
        logins=DockerLogins(),
        masked=lambda text: text,
        log=lambda _: None,
        cancel=threading.Event(),
    )


def test_without_its_key_a_build_has_no_provenance_and_a_warning(tmp_path):
    made = attested(tmp_path, required=False)
    assert made.statements == ()
    (warning,) = made.warnings
    assert warning.startswith("the build has no provenance: the signing key")
    assert warning.endswith("correct [provenance] key in the settings")


def test_without_its_key_a_verified_build_fails(tmp_path):
    with pytest.raises(AttestationError, match="the signing key"):
        attested(tmp_path, required=True)


class Kms(Signer):
    """A KMS whose key is in memory, by the protocol of securesystemslib."""

    imported: ClassVar[list[tuple[str, ...]]] = []
    private: ClassVar[Any]
    public_key = None

    @classmethod
    def import_(cls, *name: str) -> tuple[str, SSlibKey]:
        cls.imported.append(name)
        return "kms:key", SSlibKey.from_crypto(cls.private.public_key())

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri, public_key, secrets_handler=None):
        return CryptoSigner(cls.private, public_key)

    def sign(self, payload):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("uri", "imported"),
    [
        ("azurekms://shop.vault.azure.net/keys/provenance", ("shop", "provenance")),
        ("awskms:alias/provenance", ("alias/provenance",)),
        ("gcpkms:projects/p/k", ("projects/p/k",)),
        ("hv:provenance", ("provenance",)),
    ],
)
@pytest.mark.parametrize(
    "private", [generate_private_key(SECP256R1()), Ed25519PrivateKey.generate()]
)
def test_a_key_of_a_kms_is_named_by_its_fingerprint(monkeypatch, uri, imported, private):
    monkeypatch.setattr(Kms, "imported", [])
    monkeypatch.setattr(Kms, "private", private, raising=False)
    for scheme in ("azurekms", "awskms", "gcpkms", "hv", "kms"):
        monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, scheme, Kms)
    signer = open_signer(uri, "")
    assert Kms.imported == [imported]
    read = read_public_key(public_key_pem(signer).encode(), "the key")
    (signature,) = json.loads(signed_envelope({}, signer))["signatures"]
    assert signature["keyid"] == read.keyid
    assert read.keyid.startswith("SHA256:")


def test_a_key_of_azure_in_another_form_is_refused():
    with pytest.raises(AttestationError, match=r"azurekms://VAULT\.vault\.azure\.net/keys/NAME"):
        open_signer("azurekms://evil.example/keys/provenance", "")


def test_an_rsa_key_signs_by_the_scheme_that_cosign_verifies(tmp_path, monkeypatch):
    private = generate_rsa_key(65537, 2048)
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "rsa.pem"
    path.write_bytes(pem)
    path.chmod(0o600)
    monkeypatch.setattr(Kms, "private", private, raising=False)
    for scheme in ("awskms", "kms"):
        monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, scheme, Kms)
    for uri in (str(path), "awskms:k"):
        envelope = Envelope.from_dict(json.loads(signed_envelope({}, open_signer(uri, ""))))
        (signature,) = envelope.signatures.values()
        private.public_key().verify(
            bytes.fromhex(signature.signature), envelope.pae(), PKCS1v15(), SHA256()
        )


def test_a_signature_of_an_rsa_key_by_pss_is_verified(tmp_path):
    signer = CryptoSigner.generate_rsa()
    assert signer.public_key.scheme == "rsassa-pss-sha256"
    key = read_public_key(public_key_pem(signer).encode(), "the key")
    signature = bytes.fromhex(signer.sign(b"data").signature)
    assert is_signature(b"data", signature, key)
    assert not is_signature(b"other", signature, key)
