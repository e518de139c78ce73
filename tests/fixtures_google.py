"""A small HTTPS server that speaks the REST of Secret Manager, of Cloud KMS and of token endpoints.

It answers as the reference documents it: base64 payloads with a CRC32C, errors in the form of
AIP-193, tokens for a JWT that is signed with the service account's key. It can be told to fail.
"""

from __future__ import annotations

import base64
import datetime
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import google_crc32c
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

TOKEN = "ya29.token-of-the-tests"
STATUS = {400: "FAILED_PRECONDITION", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}


class GoogleServer:
    """The server, and what it knows.

    Attributes:
        versions: version name -> value.
        aliases: version name that means another one, as ``latest`` does.
        plaintexts: (key name, ciphertext) -> value.
        failures: what happens to the next requests, one each: a status, ``cut``, ``hang``,
            ``damaged``, ``html``, ``redirect``, ``busy for 7`` (429 with ``Retry-After: 7``).
        requests: (method, path, authorization header) of every request of the APIs.
    """

    def __init__(self, folder: Path) -> None:
        self.versions: dict[str, bytes] = {}
        self.aliases: dict[str, str] = {}
        self.plaintexts: dict[tuple[str, bytes], bytes] = {}
        self.failures: list[int | str] = []
        self.requests: list[tuple[str, str, str]] = []
        self.released = threading.Event()
        self.certificate = folder / "server.pem"
        self.account = folder / "account.json"
        write_certificate(self.certificate)
        server = self

        class Handler(RestHandler):
            google = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.endpoint = f"https://127.0.0.1:{self._http.server_address[1]}"
        self.public_key = write_account(self.account, f"{self.endpoint}/token")
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self.released.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables of a client that uses this server in Google's place."""
        return {
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"{self.endpoint}/",
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS": f"{self.endpoint}/",
            "GOOGLE_APPLICATION_CREDENTIALS": str(self.account),
            "SSL_CERT_FILE": str(self.certificate),
            "REQUESTS_CA_BUNDLE": str(self.certificate),
        }


class RestHandler(BaseHTTPRequestHandler):
    """One request."""

    google: GoogleServer

    def do_GET(self) -> None:
        """``versions.access``."""
        if self._fails():
            return
        name, _, method = unquote(self.path).removeprefix("/v1/").rpartition(":")
        name = self.google.aliases.get(name, name)
        value = self.google.versions.get(name)
        if method != "access" or value is None:
            self._refuse(404, f"Secret Version [{name}] not found.")
            return
        payload = {"data": encoded(value), "dataCrc32c": checksum(value)}
        self._answer(200, {"name": name, "payload": payload})

    def do_POST(self) -> None:
        """``cryptoKeys.decrypt``, or a token."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/token":
            assertion = parse_qs(body.decode())["assertion"][0]
            head, _, signature = assertion.rpartition(".")
            raw = base64.urlsafe_b64decode(signature + "==")
            self.google.public_key(raw, head.encode())
            self._answer(200, {"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"})
            return
        if self._fails():
            return
        requested = json.loads(body)
        ciphertext = base64.b64decode(requested["ciphertext"])
        name, _, method = unquote(self.path).removeprefix("/v1/").rpartition(":")
        value = self.google.plaintexts.get((name, ciphertext))
        if requested["ciphertextCrc32c"] != checksum(ciphertext) or method != "decrypt":
            self._refuse(400, "The request was damaged.")
        elif value is None:
            self._refuse(400, "Decryption failed: the ciphertext is invalid.")
        else:
            plaintext = {"plaintext": encoded(value)} if value else {}
            self._answer(200, {**plaintext, "plaintextCrc32c": checksum(value)})

    def _fails(self) -> bool:
        """Note the request, and do what the test wants to go wrong."""
        google = self.google
        authorization = self.headers.get("Authorization", "")
        google.requests.append((self.command, self.path, authorization))
        failure = google.failures.pop(0) if google.failures else None
        if failure is None and authorization != f"Bearer {TOKEN}":
            failure = 401
        match failure:
            case None:
                return False
            case int():
                self._refuse(failure, f"Refused with {failure} on purpose.")
            case "busy for 7":
                self.send_response(429)
                self.send_header("Retry-After", "7")
                self.send_header("Content-Length", "0")
                self.end_headers()
            case "hang":
                google.released.wait(60)
            case "html":
                self._send(200, b"<html>a proxy's login page</html>")
            case "damaged":
                data = {"data": encoded(b"damaged"), "dataCrc32c": checksum(b"whole")}
                broken = {"plaintext": data["data"], "plaintextCrc32c": data["dataCrc32c"]}
                self._answer(200, {"payload": data, **broken})
            case "redirect":
                self.send_response(302)
                self.send_header("Location", f"{google.endpoint}/v1/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()
            case "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"payload": {"data": "')
        return True

    def _refuse(self, code: int, message: str) -> None:
        status = STATUS.get(code, "UNAVAILABLE")
        self._answer(code, {"error": {"code": code, "message": message, "status": status}})

    def _answer(self, code: int, body: dict[str, Any]) -> None:
        self._send(code, json.dumps(body).encode())

    def _send(self, code: int, data: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def encoded(value: bytes) -> str:
    return base64.b64encode(value).decode()


def checksum(value: bytes) -> str:
    return str(google_crc32c.value(value))


def write_certificate(path: Path) -> None:
    """A certificate for 127.0.0.1 that signs itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    path.write_bytes(certificate.public_bytes(pem) + private_pem(key))


def write_account(path: Path, token_uri: str) -> Any:
    """A service account's key file. Returns what checks a signature made with it."""
    from cryptography.hazmat.primitives.asymmetric import padding

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "p",
                "private_key_id": "1",
                "private_key": private_pem(key).decode(),
                "client_email": "builder@p.iam.example.com",
                "client_id": "1",
                "token_uri": token_uri,
            }
        )
    )
    public = key.public_key()
    return lambda signature, data: public.verify(
        signature, data, padding.PKCS1v15(), hashes.SHA256()
    )


def private_pem(key: Any) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def ip(text: str) -> Any:
    from ipaddress import ip_address

    return ip_address(text)
