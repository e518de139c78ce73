"""Commit statuses: makes messages of the outbox that report builds to their forges."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from buildrunner.errors import SecretError, UsageError
from buildrunner.secrets.secret_name import forge_host, forge_token_name
from buildrunner.server.context import ServerSecrets
from buildrunner.server.http.pinned import is_private_to_us
from buildrunner.server.outbox.http import HTTP, HttpMessage
from buildrunner.store.model.outbox import BuildChange, NewMessage
from buildrunner.triggers.built_revision import labelled_ref
from buildrunner.triggers.forge_host import ForgeHost, named_forge
from buildrunner.triggers.hook_binding import HookBinding, may_speak_for
from buildrunner.triggers.labels import FORK, trigger_name
from buildrunner.triggers.matching import COMMENT
from buildrunner.triggers.status_report import Report, context_of, report_of, status_request

_MOST_LOGGED: Final = 1000
# GitLab refuses a status that it already has, which counts as delivered.
_KNOWN_ALREADY: Final = "Cannot transition status"

_log = logging.getLogger("buildrunner.server")


class StatusReporter:
    """A `Reporter` of the outbox: its messages are commit statuses.

    Args:
        secrets: the server's secrets.
        hooks: returns the bindings of hooks by name. They decide which projects may report to
            a repository: see `may_speak_for`.
        changed_build: returns the Build at a change, by the change's id; None if it was deleted.
    """

    def __init__(
        self,
        secrets: ServerSecrets,
        hooks: Callable[[], Mapping[str, HookBinding]],
        changed_build: Callable[[int], dict[str, Any] | None],
    ) -> None:
        self._secrets = secrets
        self._hooks = hooks
        self._changed_build = changed_build
        self._logged: set[str] = set()

    def __call__(self, change: BuildChange) -> Sequence[NewMessage]:
        """Return the message to the forge about a change; none if the forge has no token."""
        labels = change.labels
        forge, repository = _forge_of(labels), labels.get("repository", "")
        if forge is None or not repository or not self._may_have_token(forge.url):
            return ()
        build = self._changed_build(change.id)
        if build is None:
            return ()
        commit = labels.get("commit") or _commit_of(build)
        key, project = f"status/{change.id}", change.project_id
        context = context_of(project, trigger_name(change.labels, change.trigger_id) or "build")
        report = report_of(repository, commit, build, context, _ref_of(labels))
        message = self._message(forge, report, key, project)
        return () if message is None else (replace(message, build_id=change.build_id),)

    def waiting(
        self, labels: Mapping[str, str], project: str, trigger: str, *, url: str, key: str
    ) -> NewMessage | None:
        """Return the report about a pull request whose build waits for a comment.

        Source: semantics 9.11: the commit has a pending status until the comment.

        Args:
            labels: labels of the event, as for a build.
            project: project of the trigger.
            trigger: name of the trigger.
            url: page with the reason.
            key: key of the message.
        """
        report = Report(
            repository=labels.get("repository", ""),
            commit=labels.get("commit", ""),
            status="PENDING",
            context=context_of(project, trigger),
            text=f"Waits for {COMMENT} by a user with write access",
            url=url,
            ref=labels.get("branch", ""),
        )
        return self._message(_forge_of(labels), report, key, project)

    def _message(
        self, forge: ForgeHost | None, report: Report, key: str, project: str
    ) -> NewMessage | None:
        """Return the message; None if the forge is unknown, has no token, or may not be used."""
        if forge is None or not (report.repository and report.commit):
            return None
        request = status_request(forge, report) if self._may_have_token(forge.url) else None
        if request is None or not self._may_report(forge, report.repository, project):
            return None
        call = HttpMessage(
            method=request.method,
            url=request.url,
            body=msgspec.json.encode(request.body).decode(),
            token_header=request.header,
            token_scheme=request.scheme,
            fine_when=_KNOWN_ALREADY if forge.kind == "gitlab" else "",
            to_forge=True,
        )
        return NewMessage(
            key=key,
            lane=f"status/{forge.url}/{report.repository}/{report.commit}/{report.context}",
            kind=HTTP,
            project_id=project,
            build_id="",
            target=f"{forge.kind} {report.repository} {report.context} on {report.commit[:12]}",
            message=msgspec.to_builtins(call),
            replaces=True,
        )

    def _may_report(self, forge: ForgeHost, repository: str, project: str) -> bool:
        if may_speak_for(self._hooks(), forge, repository, project):
            return True
        self._log_once(
            f"project {project} reports no statuses to {repository} on {forge.url}: the hooks of"
            " its owner are bound to other projects"
        )
        return False

    def _may_have_token(self, base: str) -> bool:
        """Return whether a forge has a token that may be sent; True while that is unknown."""
        host = forge_host(base)
        try:
            has = forge_token_name(host) in self._secrets.own_names()
        except SecretError as error:
            _log.warning("the token of %s can't be looked up: %s", host, error)
            return True
        if not has:
            self._log_once(f"no statuses are sent to {host}: it has no token")
        elif not is_private_to_us(base):
            self._log_once(f"no statuses are sent to {base}: a token is never sent unencrypted")
            return False
        return has

    def _log_once(self, text: str) -> None:
        if text not in self._logged:
            if len(self._logged) >= _MOST_LOGGED:
                self._logged.clear()
            self._logged.add(text)
            _log.info("%s", text)


def _ref_of(labels: Mapping[str, str]) -> str:
    """Return the ref of a build in its repository: of a fork's build, GitLab's merge request."""
    number = labels.get("pull_request", "")
    if labels.get(FORK) and number:
        return f"refs/merge-requests/{number}/head"
    return labelled_ref(labels)


def _forge_of(labels: Mapping[str, str]) -> ForgeHost | None:
    """Return the forge that a build's labels name; None if they name none."""
    try:
        return named_forge(labels.get("forge", ""), labels.get("forge_url", ""))
    except UsageError:
        return None


def _commit_of(build: dict[str, Any]) -> str:
    """Return the commit that a trigger's build fetched; empty before the fetch."""
    resolved = build.get("sourceProvenance", {}).get("resolvedGitSource", {})
    return str(resolved.get("revision", "")) if build.get("buildTriggerId") else ""
