"""Requests to a forge's API for the parts of an event that its delivery lacks.

A comment's payload on GitHub and Gitea names neither the branches nor the commits of its pull
request, and few payloads say who may write.

Source: GitHub's "Get a pull request" and "Get repository permissions for a user", Gitea's
``repoGetPullRequest`` and ``repoGetRepoPermissions``; see the forges' modules for the others.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from buildrunner.errors import SecretError, SecretNotFound, ServerError, ServerUnavailable
from buildrunner.secrets.secret_name import forge_host
from buildrunner.server.context import ServerSecrets
from buildrunner.server.http.pinned import (
    HostNotFound,
    HttpAnswer,
    NotDelivered,
    PinnedHttp,
    TargetGate,
)
from buildrunner.server.outbox.http import ForgeInClear, forge_token
from buildrunner.triggers.events import PullRequestEvent, Repository
from buildrunner.triggers.forge_host import is_full_name, repository_key
from buildrunner.triggers.forges.forge import BadDelivery, items, number, part, text
from buildrunner.triggers.forges.github import pull_request_event

if TYPE_CHECKING:
    import httpx


_PASSING: Final = frozenset({408, 425, 429})
_MOST_BYTES: Final = 5 << 20


class ForgeApi:
    """Completes pull requests, and tells who may write. Thread-safe.

    The token is that of the forge's host, as for statuses (`forge_token`). Without one the API is
    asked all the same: it tells all of public repositories.

    Args:
        secrets: the server's.
        gate: which hosts may be asked.
    """

    def __init__(self, secrets: ServerSecrets, gate: TargetGate) -> None:
        self._secrets = secrets
        self._gate = gate

    def complete(self, event: PullRequestEvent) -> PullRequestEvent:
        """The event with its branches and its commits.

        Raises:
            ServerUnavailable: the API does not answer now.
            ServerError: the API refuses the request, or its answer is not as expected.
        """
        repository = event.repository
        url = (
            repository.host.pull_request_api(repository.full_name, event.number)
            if repository.host
            else ""
        )
        if not url:
            return event
        try:
            return completed(event, self._get(url, repository.forge))
        except BadDelivery as error:
            raise ServerError(f"{_host(url)} sent no pull request: {error}") from error

    def may_write(self, repository: Repository, identity: str, person: str) -> bool:
        """Whether a person may write to a repository.

        Args:
            repository: a repository of a forge.
            identity: the person's id in the forge's API.
            person: the person's login.

        Raises:
            ServerUnavailable: the API does not answer now.
            ServerError: the API refuses the request, or its answer is not as expected.
        """
        host, forge = repository.host, repository.forge
        if host is None:
            return False
        url = host.rights_api(repository.full_name, identity)
        return may_write(forge, person, self._get(url, forge, {} if forge == "gitlab" else None))

    def _get(self, url: str, forge: str, missing: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer as JSON. A 404 returns ``missing``, or is an error if that is None."""
        import httpx

        host = _host(url)
        try:
            headers = self._headers(url, forge)
            with closing(PinnedHttp()) as http:
                answer = http.call(self._gate, "GET", url, headers, most_bytes=_MOST_BYTES)
        except HostNotFound as error:
            raise ServerUnavailable(str(error)) from error
        except NotDelivered as error:
            raise ServerError(f"the server may not ask {host or url}: {error}") from error
        except httpx.InvalidURL as error:
            raise ServerError(f"{host} can't be reached: its address is invalid") from error
        except httpx.HTTPError as error:
            raise ServerUnavailable(f"{host} does not answer: {_said(error)}") from error
        if answer.is_cut:
            raise ServerError(f"{host} answers with more than {_MOST_BYTES} bytes")
        code = answer.status_code
        if code == 404 and missing is not None:
            return missing
        if code in _PASSING or code >= 500 or (code == 403 and _is_limited(answer)):
            raise ServerUnavailable(f"{host} answers {code} when asked for {urlsplit(url).path}")
        if code != 200:
            raise ServerError(
                f"{host} answers {code} when asked for {urlsplit(url).path}",
                hint=f"set its token: buildrunner secrets set --forge {forge_host(url)}",
            )
        try:
            found = msgspec.json.decode(answer.content)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ServerError(f"{host} does not answer with JSON") from error
        return found if isinstance(found, dict) else {}

    def _headers(self, url: str, forge: str) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        try:
            token = forge_token(self._secrets, url)
        except (SecretNotFound, ForgeInClear):
            return headers
        except SecretError as error:
            host = forge_host(url)
            raise ServerUnavailable(f"the token of {host} can't be had now: {error}") from error
        scheme = "token" if forge in ("github", "gitea") else "Bearer"
        return {**headers, "Authorization": f"{scheme} {token}"}


def _said(error: httpx.HTTPError) -> str:
    """Return the name of the error, or its text if buildrunner raised it."""
    import httpx

    return str(error) if type(error) is httpx.TransportError else type(error).__name__


def _is_limited(answer: HttpAnswer) -> bool:
    """Whether a refusal is about how often we asked.

    Source: GitHub's "Rate limits for the REST API".
    """
    return "retry-after" in answer.headers or answer.headers.get("x-ratelimit-remaining") == "0"


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


_WRITING = frozenset({"write", "maintain", "admin", "owner"})
_GITLAB_DEVELOPER = 30


def completed(event: PullRequestEvent, pull: dict[str, Any]) -> PullRequestEvent:
    """The event with what the API says about its pull request.

    Args:
        event: of a comment.
        pull: answer of the API.

    Raises:
        BadDelivery: it is no pull request, or one of another repository.
    """
    body = {"repository": part(pull, "base", "repo"), "pull_request": pull}
    told = pull_request_event(body, event.action, event.repository.forge)
    base, head = event.repository, told.head_full_name
    if repository_key(told.repository.full_name) != repository_key(base.full_name):
        raise BadDelivery(f"it is one of {told.repository.full_name}, not of {base.full_name}")
    if head and not is_full_name(head):
        raise BadDelivery(f"{head!r} is not the full name of a repository")
    return replace(
        event,
        base_branch=told.base_branch,
        head_branch=told.head_branch,
        head_commit=told.head_commit,
        base_commit=told.base_commit,
        head_full_name=head,
        head_clone_url=base.host.clone_url(head) if base.host and head else "",
        is_fork=told.is_fork,
    )


def may_write(forge: str, person: str, answer: dict[str, Any]) -> bool:
    """Whether a person may write to the repository, by what the API says at the address of rights.

    Args:
        forge: see `Repository`.
        person: the login.
        answer: of the API.
    """
    match forge:
        case "gitlab":
            return number(answer, "access_level") >= _GITLAB_DEVELOPER
        case "bitbucket":
            return any(text(one, "permission") in _WRITING for one in items(answer, "values"))
        case "bitbucket-server":
            return any(text(one, "name") == person for one in items(answer, "values"))
        case _:
            return text(answer, "permission") in _WRITING
