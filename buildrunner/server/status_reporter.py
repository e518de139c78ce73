"""Tells forges of builds of their commits: makes the messages of the outbox."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from buildrunner.errors import SecretError
from buildrunner.server.forge_api import token_secret
from buildrunner.server.outbox_delivery import HTTP, HttpMessage, http_message
from buildrunner.store.outbox_store import NewMessage
from buildrunner.triggers.status_report import report_of, status_request

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from buildrunner.store.outbox_store import BuildChange
    from buildrunner.store.server_store import StoredBuild

# GitLab refuses to be told the same state twice: then it knows.
_KNOWN_ALREADY: Final = "Cannot transition status"

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
        labels = stored.labels
        forge, repository, commit = (
            labels.get(name, "") for name in ("forge", "repository", "commit")
        )
        base = labels.get("forge_url", "") or _base_of(stored.request)
        if not (forge and repository and commit and base):
            return ()
        report = report_of(repository, commit, change.document, _trigger_name(stored))
        request = status_request(forge, base, report)
        name = token_secret(base)
        if request is None or not self._has(name):
            return ()
        call = HttpMessage(
            method=request.method,
            url=request.url,
            body=msgspec.json.encode(request.body).decode(),
            token_secret=name,
            token_header=request.header,
            token_scheme=request.scheme,
            fine_when=_KNOWN_ALREADY if forge == "gitlab" else "",
        )
        message = NewMessage(
            key=f"status/{change.id}",
            lane=f"status/{base}/{repository}/{commit}/{report.context}",
            kind=HTTP,
            project_id=change.project_id,
            build_id=change.build_id,
            target=f"{forge} {repository} {report.context} on {commit[:12]}",
            message=http_message(call),
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


def _base_of(request: dict[str, Any]) -> str:
    """Scheme and host that the build's repository is fetched from; empty unless by http."""
    url = str(request.get("source", {}).get("gitSource", {}).get("url", ""))
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http"):
        return ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _trigger_name(stored: StoredBuild) -> str:
    name = stored.request.get("substitutions", {}).get("TRIGGER_NAME", "")
    return str(name or stored.document.get("buildTriggerId", "") or "build")
