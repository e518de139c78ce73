"""Tells forges of builds of their commits: makes the messages of the outbox."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from buildrunner.errors import SecretError
from buildrunner.server.forge_api import token_secret
from buildrunner.server.outbox_http import HTTP, HttpMessage
from buildrunner.store.outbox_store import NewMessage
from buildrunner.triggers.repository_names import repository_key
from buildrunner.triggers.status_report import report_of, status_request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buildrunner.store.outbox_store import BuildChange
    from buildrunner.store.server_store import StoredBuild

# GitLab refuses to be told the same state twice: then it knows.
_KNOWN_ALREADY: Final = "Cannot transition status"

_PUBLIC: Final = {
    "github": "github.com",
    "gitlab": "gitlab.com",
    "bitbucket": "bitbucket.org",
}

_log = logging.getLogger("buildrunner.server")


class StatusReporter:
    """A `Reporter` of the outbox.

    Args:
        secret: value of a secret by name. Raises `SecretError`.
    """

    def __init__(self, secret: Callable[[str], str]) -> None:
        self._secret = secret
        self._told: set[str] = set()

    def __call__(self, change: BuildChange, stored: StoredBuild | None) -> Sequence[NewMessage]:
        """What the forge is told of a change; nothing without a token for it."""
        if stored is None:
            return ()
        forge, repository, bases = _place(stored)
        commit = stored.labels.get("commit", "") or _commit_of(change.document)
        base = next((base for base in bases if self._has(token_secret(base))), "")
        if not (forge and repository and commit and base):
            return ()
        report = report_of(repository, commit, change.document, _trigger_name(stored))
        request = status_request(forge, base, report)
        if request is None:
            return ()
        call = HttpMessage(
            method=request.method,
            url=request.url,
            body=msgspec.json.encode(request.body).decode(),
            token_secret=token_secret(base),
            token_header=request.header,
            token_scheme=request.scheme,
            fine_when=_KNOWN_ALREADY if forge == "gitlab" else "",
            to_forge=True,
        )
        message = NewMessage(
            key=f"status/{change.id}",
            lane=f"status/{base}/{repository}/{commit}/{report.context}",
            kind=HTTP,
            project_id=change.project_id,
            build_id=change.build_id,
            target=f"{forge} {repository} {report.context} on {commit[:12]}",
            message=msgspec.to_builtins(call),
            replaces=True,
        )
        return (message,)

    def _has(self, name: str) -> bool:
        try:
            return bool(self._secret(name))
        except SecretError:
            if name not in self._told:
                self._told.add(name)
                _log.info("no statuses are sent: there is no secret %s", name)
            return False


def _place(stored: StoredBuild) -> tuple[str, str, list[str]]:
    """Forge, repository, and where the forge may be.

    What a forge told is in the labels. A build that was begun by hand, or by the clock, has its
    repository's URL: of the public forges that is enough.
    """
    labels = stored.labels
    forge, repository = labels.get("forge", ""), labels.get("repository", "")
    url = str(stored.request.get("source", {}).get("gitSource", {}).get("url", ""))
    host, path = _host_and_path(url)
    if forge in ("", "git"):
        forge = next((name for name, one in _PUBLIC.items() if one == host), "")
        return forge, path, [f"https://{host}"] if forge else []
    if labels.get("forge_url"):
        return forge, repository, [labels["forge_url"]]
    parts = urlsplit(url)
    is_web = parts.scheme in ("https", "http")
    bases = [f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"] if is_web else []
    return forge, repository, [*bases, *([f"https://{_PUBLIC[forge]}"] if forge in _PUBLIC else [])]


def _host_and_path(url: str) -> tuple[str, str]:
    """``github.com`` and ``acme/app`` of a repository's URL in any form."""
    key = repository_key(url) if url else ""
    host, _, path = key.partition("/")
    # Names are as they were written, and compared in small letters.
    return host, url.removesuffix("/").removesuffix(".git")[-len(path) :] if path else ""


def _commit_of(build: dict[str, Any]) -> str:
    """The commit that was fetched, of a trigger's build; empty before."""
    resolved = build.get("sourceProvenance", {}).get("resolvedGitSource", {})
    return str(resolved.get("revision", "")) if build.get("buildTriggerId") else ""


def _trigger_name(stored: StoredBuild) -> str:
    name = stored.request.get("substitutions", {}).get("TRIGGER_NAME", "")
    return str(name or stored.document.get("buildTriggerId", "") or "build")
