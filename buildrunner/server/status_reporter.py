"""Tells forges of builds of their commits: makes the messages of the outbox."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from buildrunner.errors import SecretError
from buildrunner.secrets.secret_name import forge_host, forge_token_name
from buildrunner.server.outbox_http import HTTP, HttpMessage
from buildrunner.server.pinned_http import is_private_to_us
from buildrunner.store.outbox_store import NewMessage
from buildrunner.triggers.matching import COMMENT
from buildrunner.triggers.repository_names import repository_key
from buildrunner.triggers.status_report import Report, context_of, report_of, status_request

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from buildrunner.server.context import ServerSecrets
    from buildrunner.store.outbox_store import BuildChange
    from buildrunner.store.stored_build import StoredBuild

# GitLab refuses to be told the same state twice: then it knows.
_KNOWN_ALREADY: Final = "Cannot transition status"

_PUBLIC: Final = {
    "github": "github.com",
    "gitlab": "gitlab.com",
    "bitbucket": "bitbucket.org",
}

_log = logging.getLogger("buildrunner.server")


class _Place(msgspec.Struct, frozen=True):
    """Where a status belongs: the forge's kind, the repository, where the forge may be."""

    forge: str
    repository: str
    bases: tuple[str, ...]


class StatusReporter:
    """A `Reporter` of the outbox.

    Args:
        secrets: the server's.
    """

    def __init__(self, secrets: ServerSecrets) -> None:
        self._secrets = secrets
        self._told: set[str] = set()

    def __call__(self, change: BuildChange, stored: StoredBuild | None) -> Sequence[NewMessage]:
        """What the forge is told of a change; nothing without a token for it."""
        if stored is None:
            return ()
        labels, commit = stored.labels, stored.labels.get("commit", "")
        url = str(stored.request.get("source", {}).get("gitSource", {}).get("url", ""))
        place = _place(labels, url)
        commit = commit or _commit_of(change.document)
        report = report_of(place.repository, commit, change.document, _trigger_name(stored))
        message = self._message(place, report, f"status/{change.id}", change.project_id)
        return () if message is None else (replace(message, build_id=change.build_id),)

    def waiting(
        self, labels: Mapping[str, str], project: str, trigger: str, *, url: str, key: str
    ) -> NewMessage | None:
        """What the forge is told of a pull request whose build waits for a comment.

        Source: semantics 9.11: it should show something that is pending.

        Args:
            labels: of the event, as for a build.
            project: the trigger's.
            trigger: its name.
            url: where the reason can be read.
            key: of the message.
        """
        place = _place(labels, "")
        report = Report(
            repository=place.repository,
            commit=labels.get("commit", ""),
            status="PENDING",
            context=context_of(trigger),
            text=f"Waits for {COMMENT} by somebody who may write",
            url=url,
            ref=labels.get("branch", ""),
        )
        return self._message(place, report, key, project)

    def _message(self, place: _Place, report: Report, key: str, project: str) -> NewMessage | None:
        """The message; None where there is nobody to tell, or no token for it."""
        if not (place.forge and place.repository and report.commit):
            return None
        base = next((base for base in place.bases if self._may_have_token(base)), "")
        request = status_request(place.forge, base, report) if base else None
        if request is None:
            return None
        call = HttpMessage(
            method=request.method,
            url=request.url,
            body=msgspec.json.encode(request.body).decode(),
            token_header=request.header,
            token_scheme=request.scheme,
            fine_when=_KNOWN_ALREADY if place.forge == "gitlab" else "",
            to_forge=True,
        )
        return NewMessage(
            key=key,
            lane=f"status/{base}/{place.repository}/{report.commit}/{report.context}",
            kind=HTTP,
            project_id=project,
            build_id="",
            target=f"{place.forge} {place.repository} {report.context} on {report.commit[:12]}",
            message=msgspec.to_builtins(call),
            replaces=True,
        )

    def _may_have_token(self, base: str) -> bool:
        """Whether there is a token for a forge, or nobody can tell now: then the message waits."""
        host = forge_host(base)
        try:
            has = self._secrets.has_own(forge_token_name(host))
        except SecretError as error:
            _log.warning("whether there is a token of %s can't be told: %s", host, error)
            return True
        if not has:
            self._tell_once(f"no statuses are sent to {host}: it has no token")
        elif not is_private_to_us(base):
            self._tell_once(f"no statuses are sent to {base}: a token is never sent in clear")
            return False
        return has

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            _log.info("%s", text)


def _place(labels: Mapping[str, str], url: str) -> _Place:
    """Where to tell of a build with these labels, whose repository has this URL.

    What a forge told is in the labels. A build that was begun by hand, or by the clock, has its
    repository's URL: of the public forges that is enough.
    """
    forge, repository = labels.get("forge", ""), labels.get("repository", "")
    host, path = _host_and_path(url)
    if forge in ("", "git"):
        forge = next((name for name, one in _PUBLIC.items() if one == host), "")
        return _Place(forge, path, (f"https://{host}",) if forge else ())
    if labels.get("forge_url"):
        return _Place(forge, repository, (labels["forge_url"],))
    parts = urlsplit(url)
    is_web = parts.scheme in ("https", "http")
    bases = [f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"] if is_web else []
    bases += [f"https://{_PUBLIC[forge]}"] if forge in _PUBLIC else []
    return _Place(forge, repository, tuple(bases))


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
