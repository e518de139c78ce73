"""A small instance of Sigstore: Fulcio, its certificate log, Rekor, over HTTP.

It makes real certificates, signed certificate timestamps and log entries with inclusion proofs,
which sigstore-python verifies. Fulcio verifies tokens by the keys that their issuer publishes.

Source: https://github.com/sigstore/fulcio/blob/main/fulcio.proto, RFC 6962 and
https://github.com/sigstore/rekor/blob/main/openapi.yaml.
"""

from __future__ import annotations

import hashlib
import json
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import jwt
import rfc8785
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_SCTS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")


class Key:
    """An ECDSA P-256 key of one of the services."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.der = self.private.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        self.id = hashlib.sha256(self.der).digest()

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data, ec.ECDSA(hashes.SHA256()))


class Sigstore:
    """The services, and what a test may change about them.

    Attributes:
        lifetime: of certificates.
        signed_after: how long after the certificate the log says that it got an entry.
        faults: answers, by path, to send in place of the real ones: status and body; each once.
        requests: the paths of all requests.
        more_subjects: further names in each certificate.
    """

    def __init__(self) -> None:
        self.authority, self.certificates, self.log = Key(), Key(), Key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fulcio of a test")])
        self._name = name
        now = datetime.now(UTC)
        self.root = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.authority.private.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self.authority.private.public_key()),
                critical=False,
            )
            .sign(self.authority.private, hashes.SHA256())
        )
        self.lifetime = timedelta(minutes=10)
        self.signed_after = timedelta()
        self.more_subjects: list[str] = []
        self.faults: dict[str, list[tuple[int, bytes]]] = {}
        self.requests: list[str] = []
        self.url = ""
        self._leaves: list[bytes] = []
        self._turn = Lock()

    def certificate(self, token: str, key: ec.EllipticCurvePublicKey) -> list[str]:
        """Return a certificate for the identity of a token, and the root. Raises jwt.PyJWTError."""
        issuer = jwt.decode(token, options={"verify_signature": False})["iss"]
        found = jwt.PyJWKClient(f"{issuer}/.well-known/jwks.json").get_signing_key_from_jwt(token)
        claims = jwt.decode(
            token, found.key, algorithms=["RS256"], audience="sigstore", issuer=issuer
        )
        now = datetime.now(UTC)
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
        names = [f"{issuer}/{claims['sub']}", *self.more_subjects]
        subjects = [x509.UniformResourceIdentifier(name) for name in names]
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=1))
            .not_valid_after(now + self.lifetime)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(usage, critical=False)
            .add_extension(x509.SubjectAlternativeName(subjects), critical=True)
            .add_extension(identifier(self.authority.private.public_key()), critical=False)
            .add_extension(x509.UnrecognizedExtension(_ISSUER, issuer.encode()), critical=False)
        )
        logged = builder.sign(self.authority.private, hashes.SHA256())
        scts = self._sct_list(logged.tbs_certificate_bytes, now)
        made = builder.add_extension(x509.UnrecognizedExtension(_SCTS, scts), critical=False).sign(
            self.authority.private, hashes.SHA256()
        )
        return [one.public_bytes(Encoding.PEM).decode() for one in (made, self.root)]

    def _sct_list(self, certificate: bytes, now: datetime) -> bytes:
        """Return the extension with the certificate log's timestamp: RFC 6962, section 3."""
        at = int(now.timestamp() * 1000)
        entry = self.authority.id + len(certificate).to_bytes(3, "big") + certificate
        signature = self.certificates.sign(
            struct.pack("!BBQH", 0, 0, at, 1) + entry + struct.pack("!H", 0)
        )
        sct = struct.pack("!B", 0) + self.certificates.id + struct.pack("!QH", at, 0)
        sct += bytes((4, 3)) + struct.pack("!H", len(signature)) + signature  # SHA-256, ECDSA
        listed = struct.pack("!HH", len(sct) + 2, len(sct)) + sct
        return (
            bytes((4, len(listed))) + listed
            if len(listed) < 128
            else (bytes((4, 0x81, len(listed))) + listed)
        )

    def entry(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Log a proposed entry of the type dsse, and return it with its proofs."""
        content = proposed["spec"]["proposedContent"]
        envelope = json.loads(content["envelope"])
        (signature,), (verifier,) = envelope["signatures"], content["verifiers"]
        body = {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": _hash(content["envelope"].encode()),
                "payloadHash": _hash(b64decode(envelope["payload"])),
                "signatures": [{"signature": signature["sig"], "verifier": verifier}],
            },
        }
        canonical = rfc8785.dumps(body)
        with self._turn:
            index = len(self._leaves)
            self._leaves.append(hashlib.sha256(b"\0" + canonical).digest())
            leaves = list(self._leaves)
        root = _root(leaves)
        note = f"rekor of a test\n{len(leaves)}\n{b64encode(root).decode()}\n"
        signed = b64encode(self.log.id[:4] + self.log.sign(note.encode())).decode()
        entry = {
            "body": b64encode(canonical).decode(),
            "integratedTime": int((datetime.now(UTC) + self.signed_after).timestamp()),
            "logID": self.log.id.hex(),
            "logIndex": index,
        }
        proof = {
            "logIndex": index,
            "rootHash": root.hex(),
            "treeSize": len(leaves),
            "hashes": [one.hex() for one in _path(index, leaves)],
            "checkpoint": f"{note}\n\u2014 rekor.test {signed}\n",
        }
        promise = b64encode(self.log.sign(rfc8785.dumps(entry))).decode()
        verification = {"inclusionProof": proof, "signedEntryTimestamp": promise}
        return {leaves[index].hex(): {**entry, "verification": verification}}

    def trust_config(self) -> dict[str, Any]:
        """Return the trust config of this instance, as clients read it from a file."""
        valid = {"start": "2020-01-01T00:00:00Z"}

        def log(key: Key) -> dict[str, Any]:
            return {
                "baseUrl": self.url,
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": b64encode(key.der).decode(),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": valid,
                },
                "logId": {"keyId": b64encode(key.id).decode()},
            }

        chain = [{"rawBytes": b64encode(self.root.public_bytes(Encoding.DER)).decode()}]
        service = {"url": self.url, "majorApiVersion": 1, "validFor": valid, "operator": "test"}
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self.log)],
                "ctlogs": [log(self.certificates)],
                "certificateAuthorities": [
                    {
                        "subject": {"organization": "test", "commonName": "fulcio"},
                        "uri": self.url,
                        "certChain": {"certificates": chain},
                        "validFor": valid,
                    }
                ],
                "timestampAuthorities": [],
            },
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [service],
                "oidcUrls": [],
                "rekorTlogUrls": [service],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaUrls": [],
                "tsaConfig": {"selector": "ANY"},
            },
        }

    def write_trust(self, folder: Path) -> str:
        """Write the trust config into a folder; return its path."""
        path = folder / "trust.json"
        path.write_text(json.dumps(self.trust_config()))
        return str(path)


@contextmanager
def sigstore_server() -> Iterator[Sigstore]:
    """Run an instance."""
    instance = Sigstore()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            instance.requests.append(self.path)
            if faults := instance.faults.get(self.path):
                self._answer(*faults.pop(0))
            elif self.path == "/api/v2/signingCert":
                self._certificate(document)
            elif self.path == "/api/v1/log/entries":
                self._answer(201, json.dumps(instance.entry(document)).encode())
            else:
                self._answer(404, b"{}")

        def _certificate(self, document: dict[str, Any]) -> None:
            pem = b64decode(document["certificateSigningRequest"])
            request = x509.load_pem_x509_csr(pem)
            token = self.headers["Authorization"].removeprefix("Bearer ")
            key = request.public_key()
            assert request.is_signature_valid
            assert isinstance(key, ec.EllipticCurvePublicKey)
            try:
                chain = instance.certificate(token, key)
            except jwt.PyJWTError as error:
                self._answer(400, json.dumps({"code": 3, "message": str(error)}).encode())
                return
            answer = {"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}}
            self._answer(200, json.dumps(answer).encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        instance.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield instance
        finally:
            server.shutdown()
            thread.join()


def _usage(**changes: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: changes.get(name, False) for name in names})


def _hash(data: bytes) -> dict[str, str]:
    return {"algorithm": "sha256", "value": hashlib.sha256(data).hexdigest()}


def _split(count: int) -> int:
    """Return the largest power of two below a count."""
    return 1 << (count - 1).bit_length() - 1


def _root(leaves: list[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    at = _split(len(leaves))
    return hashlib.sha256(b"\1" + _root(leaves[:at]) + _root(leaves[at:])).digest()


def _path(index: int, leaves: list[bytes]) -> list[bytes]:
    """Return the hashes that prove a leaf, lowest first: RFC 6962, section 2.1.1."""
    if len(leaves) == 1:
        return []
    at = _split(len(leaves))
    if index < at:
        return [*_path(index, leaves[:at]), _root(leaves[at:])]
    return [*_path(index - at, leaves[at:]), _root(leaves[:at])]
