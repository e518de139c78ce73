"""The metadata server of a build, in the form of Compute Engine's, and the tokens that it returns.

Steps read their project, service account and tokens from it, at ``169.254.169.254``, ``metadata``
and ``metadata.google.internal``. It needs no container and no image, and is off by default.

In a nested sandbox, a relay forwards connections to that address to a socket of this process
(`OpenSandbox.metadata_listener`), so each build has its own metadata server. In the host sandbox,
the address is the gateway of the network `cloudbuild` (`NETWORK_SUBNET`, `NETWORK_GATEWAY`). A
bridge's gateway is the engine's machine, where this server listens.

Source: Cloud Build docs, "Running build steps", and the metadata API of Compute Engine v1.
"""

from __future__ import annotations

import datetime
import errno
import importlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

from buildrunner.errors import BuildrunnerError, EngineError, SecretError

NETWORK_SUBNET = "169.254.169.0/24"
NETWORK_GATEWAY = "169.254.169.254"
PORT = 80
HOST_NAMES = ("metadata", "metadata.google.internal")

_FLAVOR = "Google"
_ROOT = "/computeMetadata/v1"


class AccessToken(NamedTuple):
    """An OAuth 2 access token and its remaining lifetime in seconds."""

    value: str
    expires_in_s: int


class Credentials(Protocol):
    """The source of tokens for steps. Called from several threads."""

    @property
    def email(self) -> str:
        """Return the e-mail address of the account; empty if unknown."""
        ...

    def access_token(self, scopes: tuple[str, ...]) -> AccessToken:
        """Return a token for ``scopes`` (empty: the default ones). Raises BuildrunnerError."""
        ...

    def identity_token(self, audience: str) -> str:
        """Return an OIDC token for ``audience``. Raises BuildrunnerError if there is none."""
        ...


class ProjectFacts(NamedTuple):
    """Facts about the build's project that the server returns."""

    project_id: str
    project_number: str
    service_account: str
    location: str = "global"


DEFAULT_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)


MOST_CONNECTIONS = 64
"""Number of connections of a build that are served at a time. Further connections wait."""

LONGEST_HEAD_S = 10.0
"""Longest idle time of a connection, and longest time for the head of a request."""

LARGEST_HEAD_BYTES = 16 << 10

_LOOK_S = 0.05


class MetadataServer:
    """Serves until `close`, with one thread per connection. It logs nothing, to protect tokens.

    Requests of steps can use only a limited amount of memory and threads of this process.
    """

    def __init__(
        self,
        listener: socket.socket,
        facts: ProjectFacts,
        *,
        credentials: Credentials | None,
        may_ask: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """Start to serve.

        Args:
            listener: accepts the connections. Closed with the server.
            facts: the project.
            credentials: make tokens; None for none.
            may_ask: returns whether a client with an address is answered; others are disconnected.
                The clients of a socket without addresses have an empty address.
        """
        answers = _Answers(facts, credentials)

        class Handler(_Handler):
            answer = staticmethod(answers.answer)

        places = threading.Semaphore(MOST_CONNECTIONS)
        closing = self._closing = threading.Event()

        class Server(ThreadingHTTPServer):
            def verify_request(self, request: object, client_address: Any) -> bool:  # noqa: ARG002
                return may_ask(client_address[0] if client_address else "")

            def get_request(self) -> Any:
                while not places.acquire(timeout=_LOOK_S):
                    if closing.is_set():
                        raise ConnectionAbortedError
                try:
                    return super().get_request()
                except OSError:
                    places.release()
                    raise

            def shutdown_request(self, request: Any) -> None:
                super().shutdown_request(request)
                places.release()

            def handle_error(self, request: object, client_address: Any) -> None:
                """Log nothing: the client has disconnected."""

        self._server = Server(("", 0), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="metadata-server", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the address."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def listen_on(address: str = NETWORK_GATEWAY, port: int = PORT) -> socket.socket:
    """Return a listener for the metadata server of a build on the host engine.

    Raises:
        EngineError: the address can't be bound. The message has the reason and the remedy.
    """
    try:
        return socket.create_server((address, port), backlog=64)
    except OSError as error:
        why = error.strerror or str(error)
        if error.errno == errno.EADDRNOTAVAIL:  # the existing network has other addresses
            why = "the address is not this machine's; another build may use the network now"
        raise EngineError(
            f"the metadata server can't listen on {address}:{port}: {why}",
            hint="it needs root and an engine on this machine, and one build at a time can"
            " have it; use --sandbox nested for several;"
            " `buildrunner doctor --clean` removes what a killed build left",
        ) from error


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    body: str
    content_type: str = "application/text"


class _Answers:
    """The tree of values, as a pure function of path and query."""

    def __init__(self, facts: ProjectFacts, credentials: Credentials | None) -> None:
        self._facts = facts
        self._credentials = credentials
        self._email = (credentials.email if credentials else "") or facts.service_account
        plain: dict[str, Callable[[Mapping[str, list[str]]], Answer]] = {
            "/project/project-id": lambda _: Answer(200, facts.project_id),
            "/project/numeric-project-id": lambda _: Answer(200, facts.project_number),
            "/instance/zone": lambda _: Answer(
                200, f"projects/{facts.project_number}/zones/{facts.location}"
            ),
            "/instance/region": lambda _: Answer(
                200, f"projects/{facts.project_number}/regions/{facts.location}"
            ),
            "/universe/universe-domain": lambda _: Answer(200, "googleapis.com"),
            "/universe/universe_domain": lambda _: Answer(200, "googleapis.com"),
            "/instance/service-accounts": lambda _: Answer(200, f"default/\n{self._email}/\n"),
        }
        for account in ("default", self._email):
            base = f"/instance/service-accounts/{account}"
            plain[base] = self._account
            plain[f"{base}/email"] = lambda _: Answer(200, self._email)
            plain[f"{base}/aliases"] = lambda _: Answer(200, "default\n")
            plain[f"{base}/scopes"] = lambda _: Answer(200, "\n".join(DEFAULT_SCOPES) + "\n")
            plain[f"{base}/token"] = self._token
            plain[f"{base}/identity"] = self._identity
        self._values = plain

    def answer(self, target: str, flavor: str) -> Answer:
        """Answer a GET of ``target``; ``flavor`` is the request's Metadata-Flavor header."""
        url = urlsplit(target)
        if url.path in ("", "/"):
            return Answer(200, "computeMetadata/\n")
        if flavor != _FLAVOR:
            return Answer(403, "Missing Metadata-Flavor:Google header.\n")
        path = url.path.rstrip("/")
        value = self._values.get(path.removeprefix(_ROOT)) if path.startswith(_ROOT) else None
        if value is None:
            return Answer(404, f"{url.path} is not served by buildrunner's metadata server\n")
        return value(parse_qs(url.query))

    def _account(self, query: Mapping[str, list[str]]) -> Answer:
        if query.get("recursive", ["false"])[0].lower() == "true":
            account = {
                "aliases": ["default"],
                "email": self._email,
                "scopes": list(DEFAULT_SCOPES),
            }
            return Answer(200, json.dumps(account), "application/json")
        return Answer(200, "aliases\nemail\nidentity\nscopes\ntoken\n")

    def _token(self, query: Mapping[str, list[str]]) -> Answer:
        if self._credentials is None:
            return _no_credentials("access token")
        scopes = tuple(s for value in query.get("scopes", []) for s in value.split(",") if s)
        token = self._credentials.access_token(scopes)
        body = {
            "access_token": token.value,
            "expires_in": token.expires_in_s,
            "token_type": "Bearer",
        }
        return Answer(200, json.dumps(body), "application/json")

    def _identity(self, query: Mapping[str, list[str]]) -> Answer:
        audience = query.get("audience", [""])[0]
        if not audience:
            return Answer(400, "non-empty audience parameter required\n")
        if self._credentials is None:
            return _no_credentials("identity token")
        return Answer(200, self._credentials.identity_token(audience))


def _no_credentials(what: str) -> Answer:
    return Answer(
        404, f"no {what}: this build was given no Google credentials (see --metadata-credentials)\n"
    )


class _Handler(BaseHTTPRequestHandler):
    """Connects the answers to the standard library's server."""

    answer: Callable[[str, str], Answer]
    server_version = "Metadata Server for VM"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = LONGEST_HEAD_S  # the timeout also holds for an answer
    _rest = b""

    def handle_one_request(self) -> None:
        """Answer one request whose head is complete, in time, and small."""
        until = time.monotonic() + LONGEST_HEAD_S
        head = self._rest
        while b"\r\n\r\n" not in head and b"\n\n" not in head:
            piece = b""
            if (left_s := until - time.monotonic()) > 0:
                self.connection.settimeout(left_s)
                with suppress(OSError):
                    piece = self.connection.recv(LARGEST_HEAD_BYTES - len(head))
            if not piece:  # the client disconnected, or the head is too large or too slow
                self.close_connection = True
                return
            head += piece
        self.connection.settimeout(self.timeout)
        self.rfile = io.BytesIO(head)
        super().handle_one_request()
        self._rest = self.rfile.read()

    def do_GET(self) -> None:
        try:
            answer = self.answer(self.path, self.headers.get("Metadata-Flavor", ""))
        except BuildrunnerError as error:
            answer = Answer(error.http_status, f"{error}\n")
        body = answer.body.encode()
        self.send_response(answer.status)
        self.send_header("Metadata-Flavor", _FLAVOR)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: request lines may contain audiences, and answers contain tokens."""


class GoogleCredentials:
    """The application default credentials, or those of one key file. Thread-safe."""

    def __init__(self, key_file: str = "") -> None:
        """Load the credentials, without any request.

        Args:
            key_file: a credentials file; empty takes the application default credentials.

        Raises:
            SecretError: no credentials are found, or the file is invalid.
        """
        from google.auth.exceptions import GoogleAuthError

        auth: Any = importlib.import_module("google.auth")

        scopes = list(DEFAULT_SCOPES)
        try:
            if key_file:
                loaded = auth.load_credentials_from_file(key_file, scopes=scopes)
            else:
                loaded = auth.default(scopes=scopes)
        except (GoogleAuthError, OSError, ValueError) as error:
            place = f"in {key_file}" if key_file else "on this machine"
            raise SecretError(
                f"no usable Google credentials {place}: {str(error).rstrip('.')}",
                hint="run `gcloud auth application-default login` or name a key file",
            ) from error
        self._credentials: Any = loaded[0]

    @property
    def email(self) -> str:
        """Return the service account's address; empty for a user's credentials."""
        return getattr(self._credentials, "service_account_email", "") or ""

    def access_token(self, scopes: tuple[str, ...]) -> AccessToken:
        """See `Credentials.access_token`."""
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request

        credentials = self._credentials
        if scopes and getattr(credentials, "requires_scopes", None) is not None:
            credentials = credentials.with_scopes(list(scopes))
        try:
            if not credentials.valid:
                credentials.refresh(Request())
        except GoogleAuthError as error:
            raise SecretError(f"no access token from the Google credentials: {error}") from error
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
        left = (credentials.expiry - now).total_seconds() if credentials.expiry else 3600
        return AccessToken(credentials.token, max(int(left), 0))

    def identity_token(self, audience: str) -> str:
        """See `Credentials.identity_token`."""
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request

        id_token: Any = importlib.import_module("google.oauth2.id_token")

        try:
            return str(id_token.fetch_id_token(Request(), audience))
        except GoogleAuthError as error:
            raise SecretError(f"no identity token for {audience}: {error}") from error
