"""HTTP requests to a server, with retries, and with failures as our own errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from buildrunner import __version__
from buildrunner.errors import (
    AuthError,
    Conflict,
    FilterError,
    LeaseLost,
    NotFound,
    ServerError,
    ServerUnavailable,
    UsageError,
)
from buildrunner.retry import backoff

if TYPE_CHECKING:
    import ssl

    import httpx

Document = dict[str, Any]

_TRIES = 5
_FIRST_PAUSE_S = 0.35
_LONGEST_PAUSE_S = 5.0
_CONNECT_S = 10.0
_ANSWER_S = 60.0
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})


class ServerConnection:
    """Connections to one server. Thread-safe.

    Args:
        url: its address.
        token: the access token, empty for none; or a function that returns it for each request.
        ca_file: certificates to trust; empty for those of the system.
        pause: waits between two tries.

    Attributes:
        url: without a slash at its end.
        http: for requests that are not JSON.

    Raises:
        UsageError: ``url`` is invalid, or ``ca_file`` can't be read.
    """

    def __init__(
        self,
        url: str,
        token: str | Callable[[], str],
        ca_file: str,
        pause: Callable[[float], object],
    ) -> None:
        self.url = checked_url(url)
        self.http = _http_client(self.url, token, ca_file)
        self._pause = pause

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self.http.close()

    def tries(self, limit: int = _TRIES) -> Tries:
        """Return a counter for the tries of one request."""
        return Tries(self._pause, limit)

    def json(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Document | None = None,
        tries: int = _TRIES,
        answer_s: float = _ANSWER_S,
    ) -> Document:
        """Send a request and decode the JSON answer.

        Args:
            method: of HTTP.
            path: below the server's address.
            query: parameters.
            body: JSON to send; None for no body.
            tries: the most attempts; 1 for a request that must not be repeated.
            answer_s: seconds to wait for an answer.

        Raises:
            BuildrunnerError: the error for the server's refusal, or `ServerUnavailable`.
        """
        response = self.answer(method, path, query=query, body=body, tries=tries, answer_s=answer_s)
        try:
            answer = response.json()
        except (ValueError, RecursionError) as error:
            raise ServerUnavailable(
                f"{self.url} does not answer as a buildrunner server does",
                hint="check the address",
            ) from error
        return answer if isinstance(answer, dict) else {}

    def entries(
        self, path: str, name: str, query: Mapping[str, Any] | None = None
    ) -> Iterator[Document]:
        """Yield the entries of a list, page after page.

        Args:
            path: below the server's address.
            name: field of the answer that has the entries.
            query: parameters of each request.

        Raises:
            BuildrunnerError: see `json`.
        """
        requested = {key: value for key, value in (query or {}).items() if value}
        while True:
            page = self.json("GET", path, query=requested)
            yield from page.get(name, [])
            if not page.get("nextPageToken"):
                return
            requested["pageToken"] = page["nextPageToken"]

    def document(self, path: str) -> bytes:
        """Get a small document that is not JSON.

        Raises:
            BuildrunnerError: see `json`.
        """
        return self.answer("GET", path).content

    def answer(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        content: bytes | None = None,
        tries: int = _TRIES,
        answer_s: float = _ANSWER_S,
    ) -> httpx.Response:
        """Send a request and return its answer, which may have any form.

        Args:
            method: see `json`.
            path: see `json`.
            query: see `json`.
            body: JSON to send; None for none.
            content: bytes to send in place of JSON; None for none.
            tries: see `json`.
            answer_s: see `json`.

        Raises:
            BuildrunnerError: see `json`.
        """
        import httpx

        attempts = self.tries(tries)
        timeout = httpx.Timeout(answer_s, connect=_CONNECT_S)
        while True:
            try:
                response = self.http.request(
                    method, path, params=query, json=body, content=content, timeout=timeout
                )
                self.check(response)
            except httpx.TransportError as error:
                attempts.failed(self.unreachable(error), error)
            except ServerUnavailable as error:
                attempts.failed(error, error)
            else:
                return response

    def download(self, path: str, offset: int) -> Iterator[bytes]:
        """Yield the content from a byte offset; resumes after a connection failure.

        Args:
            path: below the server's address; takes ``offset``.
            offset: the byte.
        """
        import httpx

        tries = self.tries()
        while True:
            try:
                with self.http.stream("GET", path, params={"offset": offset}) as response:
                    self.check(response)
                    for block in response.iter_bytes():
                        offset += len(block)
                        tries.reset()
                        yield block
            except httpx.TransportError as error:
                tries.failed(self.unreachable(error), error)
            except ServerUnavailable as error:
                tries.failed(error, error)
            else:
                return

    def check(self, response: httpx.Response) -> None:
        """Raise the error for an answer that reports a failure."""
        if response.is_success:
            return
        if not response.is_closed:
            response.read()
        raise _refusal(self.url, response.status_code, response.text)

    def unreachable(self, error: httpx.TransportError) -> ServerUnavailable:
        """Return the error for a connection that failed."""
        text = re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__
        hint = "check that it runs there, and the address"
        if "CERTIFICATE_VERIFY_FAILED" in text:
            hint = "name the certificate to trust with --ca-file"
        return ServerUnavailable(f"{self.url} does not answer: {text}", hint=hint)


class Tries:
    """Counts failures in a row and waits between tries."""

    def __init__(self, pause: Callable[[float], object], limit: int = _TRIES) -> None:
        self._sleep = pause
        self._limit = limit
        self._failures = 0

    def reset(self) -> None:
        """Forget earlier failures after a success."""
        self._failures = 0

    def failed(self, error: ServerError, cause: Exception) -> None:
        """Wait, or raise ``error`` after the last try."""
        self._failures += 1
        if self._failures >= self._limit:
            raise error from (None if error is cause else cause)
        self._sleep(backoff(self._failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S))


def checked_url(url: str) -> str:
    """Return a URL without the slash at its end.

    Raises:
        UsageError: ``url`` is no address of a server.
    """
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query
        _ = parts.port
    except ValueError:
        sound = False
    if not sound:
        raise UsageError(f"{url} is not the address of a server", hint="e.g. http://127.0.0.1:8080")
    return url.rstrip("/")


def _http_client(url: str, token: str | Callable[[], str], ca_file: str) -> httpx.Client:
    import httpx

    headers = {"User-Agent": f"buildrunner/{__version__}"}

    def with_token(request: httpx.Request) -> None:
        value = token() if callable(token) else token
        if value:
            request.headers["Authorization"] = f"Bearer {value}"

    return httpx.Client(
        base_url=url,
        headers=headers,
        verify=_trust(ca_file, is_used=url.startswith("https:")),
        timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
        follow_redirects=False,  # the token must not go to another host
        event_hooks={"request": [with_token]},
    )


@cache  # 30 ms
def _trust(ca_file: str, *, is_used: bool) -> ssl.SSLContext:
    """Return the certificates that connections of this process trust.

    Args:
        ca_file: see `ServerConnection`.
        is_used: whether there are connections with TLS. If not, none would be trusted.

    Raises:
        UsageError: ``ca_file`` can't be read.
    """
    import ssl

    import httpx

    if ca_file:
        try:
            return ssl.create_default_context(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is an OSError, too
            raise UsageError(
                f"{ca_file} holds no certificates: {error.strerror or error}"
            ) from error
    return httpx.create_ssl_context() if is_used else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _refusal(url: str, code: int, text: str) -> Exception:
    try:
        error = json.loads(text)["error"]
        message, status, details = error["message"], error["status"], error.get("details", [])
    except (ValueError, RecursionError, KeyError, TypeError):
        message, status, details = f"{url} answers HTTP {code}", "", []
    if code in (401, 403):
        return AuthError(
            message,
            code=code,
            details=details,
            hint=f"`buildrunner login {url}` prompts for a token",
        )
    if code == 404:
        return NotFound(message if status else f"{message}; is it a buildrunner server?")
    if code == 409 or status == "FAILED_PRECONDITION":
        if any(isinstance(one, dict) and one.get("reason") == "LEASE_LOST" for one in details):
            return LeaseLost(message)
        is_known = any(
            isinstance(one, dict) and ("missing" in one or "offset" in one) for one in details
        )
        return ServerError(message, code=code, details=details) if is_known else Conflict(message)
    if code == 400 and "filter" in _wrong_fields(details):
        return FilterError(message)
    if code in _TRANSIENT:
        return ServerUnavailable(message, code=code, details=details)
    if 400 <= code < 500:
        return UsageError(message)
    return ServerError(message, code=code, details=details)


def _wrong_fields(details: Any) -> set[Any]:
    """Return the fields of a request that a refusal names as wrong."""
    violations = [
        violation
        for detail in details
        if isinstance(detail, dict)
        for violation in detail.get("fieldViolations", ())
    ]
    return {one.get("field") for one in violations if isinstance(one, dict)}
