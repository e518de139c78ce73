"""Asks a forge's API for what a delivery does not tell."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from buildrunner.errors import SecretError, ServerError, ServerUnavailable
from buildrunner.server.trust import tls_context
from buildrunner.sources.source_gate import SourceGate
from buildrunner.triggers.forges.completion import completed, may_write
from buildrunner.triggers.forges.forge import BadDelivery

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from buildrunner.sources.source_policy import SourcePolicy
    from buildrunner.triggers.events import PullRequestEvent

_TIMEOUT_S: Final = 10.0
_LONGEST_ANSWER_S: Final = 30.0
_PASSING: Final = frozenset({408, 425, 429})
_MOST_BYTES: Final = 5 << 20


def token_secret(base_url: str) -> str:
    """The secret with a forge's token, by host and port: ``status-github-com``.

    Names of secrets have neither dots nor colons.
    """
    netloc = urlsplit(base_url).netloc.rpartition("@")[2]
    return "status-" + re.sub("[^A-Za-z0-9_-]", "-", netloc)


class ForgeApi:
    """Completes pull requests, and tells who may write. Thread-safe.

    The token is that of the forge's host, as for statuses (`token_secret`), and is
    shown to no other host. Without one the API is asked all the same: it tells all of public
    repositories.

    Args:
        secret: value of a secret by name. Raises `SecretError`.
        policy: which hosts may be asked.
    """

    def __init__(self, secret: Callable[[str], str], policy: SourcePolicy) -> None:
        self._secret = secret
        self._policy = policy

    def complete(self, event: PullRequestEvent) -> PullRequestEvent:
        """The event with its branches and its commits.

        Raises:
            ServerUnavailable: the API does not answer now.
            ServerError: it refuses, or answers not as expected.
        """
        if not event.api_url:
            return event
        try:
            return completed(event, self._get(event.api_url, event.repository.forge))
        except BadDelivery as error:
            raise ServerError(f"{_host(event.api_url)} tells no pull request: {error}") from error

    def may_write(self, url: str, forge: str, person: str) -> bool:
        """Whether a person may write to a repository.

        Args:
            url: where the API tells it (`PullRequestEvent.author_rights_url`).
            forge: see `Repository`.
            person: the login.

        Raises:
            ServerUnavailable: the API does not answer now.
            ServerError: it refuses, or answers not as expected.
        """
        return may_write(forge, person, self._get(url, forge, {} if forge == "gitlab" else None))

    def _get(self, url: str, forge: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer; ``missing`` when there is no such thing, if that is an answer."""
        import httpx

        host = _host(url)
        if not host or not SourceGate(self._policy).allows(host):
            raise ServerError(f"the server may not ask {host or url}")
        try:
            with (
                httpx.Client(timeout=_TIMEOUT_S, verify=tls_context(), trust_env=False) as client,
                client.stream("GET", url, headers=self._headers(url, forge)) as answer,
            ):
                content = _content(answer, host)
        except httpx.InvalidURL as error:
            raise ServerError(f"{host} can't be asked: its address is none") from error
        except httpx.HTTPError as error:
            raise ServerUnavailable(f"{host} does not answer: {type(error).__name__}") from error
        code = answer.status_code
        if code == 404 and missing is not None:
            return missing
        if code in _PASSING or code >= 500 or (code == 403 and _is_limited(answer)):
            raise ServerUnavailable(f"{host} answers {code} when asked for {urlsplit(url).path}")
        if code != 200:
            raise ServerError(
                f"{host} answers {code} when asked for {urlsplit(url).path}",
                hint=f"set its token: buildrunner secrets set {token_secret(_base(url))}",
            )
        try:
            found = msgspec.json.decode(content)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ServerError(f"{host} does not answer with JSON") from error
        return found if isinstance(found, dict) else {}

    def _headers(self, url: str, forge: str) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        try:
            token = self._secret(token_secret(_base(url))).strip()
        except SecretError:
            return headers
        scheme = "token" if forge in ("github", "gitea") else "Bearer"
        return {**headers, "Authorization": f"{scheme} {token}"}


def _content(answer: httpx.Response, host: str) -> bytes:
    """What is answered, within limits of size and time."""
    until = time.monotonic() + _LONGEST_ANSWER_S
    content = b""
    for piece in answer.iter_bytes():
        content += piece
        if len(content) > _MOST_BYTES:
            raise ServerError(f"{host} answers with more than {_MOST_BYTES} bytes")
        if time.monotonic() > until:
            raise ServerUnavailable(f"{host} takes more than {_LONGEST_ANSWER_S:g} s to answer")
    return content


def _is_limited(answer: httpx.Response) -> bool:
    """Whether a refusal is about how often we asked.

    Source: GitHub's "Rate limits for the REST API".
    """
    return "retry-after" in answer.headers or answer.headers.get("x-ratelimit-remaining") == "0"


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _base(url: str) -> str:
    """The forge's own address, of that of its API."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.removeprefix('api.')}"
