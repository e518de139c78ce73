"""Commit statuses: the request that reports a build to its forge. Pure: nothing is sent.

The context, ``buildrunner/PROJECT/TRIGGER``, stays the same for all builds of a trigger, so that
rules for protected branches can require it. It names the project because triggers of several
projects can have one name and one repository.

Source: semantics 9.11; the forges' own documentation of commit statuses: GitHub "Create a commit
status", GitLab "Set the pipeline status of a commit", Gitea ``/repos/{owner}/{repo}/statuses``,
Bitbucket Cloud "Create a build status for a commit", Bitbucket Data Center "Updating build status
for commits" (7.4 and later; before, a status belonged to the commit in every repository).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

from buildrunner.triggers.forge_host import ForgeHost

_PENDING, _QUEUED, _WORKING = "PENDING", "QUEUED", "WORKING"
_LONGEST_TEXT: Final = 140  # GitHub's limit; the others accept more
_LONGEST_KEY: Final = 40  # Bitbucket's limit

# Build status -> state, by forge.
_GITHUB: Final = {
    "PENDING": "pending",
    "QUEUED": "pending",
    "WORKING": "pending",
    "SUCCESS": "success",
    "FAILURE": "failure",
    "TIMEOUT": "failure",
    "INTERNAL_ERROR": "error",
    "CANCELLED": "error",
    "EXPIRED": "error",
}
_GITLAB: Final = {
    "PENDING": "pending",
    "QUEUED": "pending",
    "WORKING": "running",
    "SUCCESS": "success",
    "FAILURE": "failed",
    "TIMEOUT": "failed",
    "INTERNAL_ERROR": "failed",
    "CANCELLED": "canceled",
    "EXPIRED": "canceled",
}
_BITBUCKET: Final = {
    "PENDING": "INPROGRESS",
    "QUEUED": "INPROGRESS",
    "WORKING": "INPROGRESS",
    "SUCCESS": "SUCCESSFUL",
    "FAILURE": "FAILED",
    "TIMEOUT": "FAILED",
    "INTERNAL_ERROR": "FAILED",
    "CANCELLED": "STOPPED",
    "EXPIRED": "STOPPED",
}
_BITBUCKET_SERVER: Final = {**_BITBUCKET, "CANCELLED": "FAILED", "EXPIRED": "FAILED"}
# Bitbucket Cloud sends the beginning of a commit.
_COMMIT: Final = re.compile(r"[0-9A-Fa-f]{4,64}")
_TEXTS: Final = {
    "PENDING": "Waits for an approval",
    "QUEUED": "Queued",
    "WORKING": "Running",
    "SUCCESS": "Succeeded",
    "FAILURE": "Failed",
    "TIMEOUT": "Timed out",
    "INTERNAL_ERROR": "Failed by an internal error",
    "CANCELLED": "Cancelled",
    "EXPIRED": "Expired in the queue",
}


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to a forge, without the token.

    Attributes:
        method, url: method and URL of the request.
        body: the body, which is sent as JSON.
        header: name of the header for the token.
        scheme: word before the token in that header; may be empty.
    """

    method: str
    url: str
    body: dict[str, Any]
    header: str = "Authorization"
    scheme: str = "Bearer"


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The status of a build, in a form for all forges.

    Attributes:
        repository: ``owner/name``; ``PROJECT/slug`` on Bitbucket Server.
        commit: full SHA.
        status: status of the build.
        context: name of the status: see `context_of`.
        text: a short sentence about the build.
        url: URL of the build's page.
        ref: branch or tag that was built; empty if unknown.
    """

    repository: str
    commit: str
    status: str
    context: str
    text: str
    url: str
    ref: str = ""


def context_of(project: str, trigger_name: str) -> str:
    """Return the name of the status for the builds of a trigger.

    Forges ignore case in these names, so the name of a project with capitals gets a digest.
    """
    if project != project.lower():
        project = f"{project}~{hashlib.sha256(project.encode()).hexdigest()[:6]}"
    return f"buildrunner/{project}/{trigger_name}"


def report_of(
    repository: str, commit: str, build: Mapping[str, Any], context: str, ref: str = ""
) -> Report:
    """Return the report of a build.

    Args:
        repository: full name on the forge.
        commit: the commit that gets the status.
        build: the Build, as JSON.
        context: see `context_of`.
        ref: see `Report`. Never from substitutions, which whoever runs a trigger chooses.
    """
    status = str(build.get("status", ""))
    text = _TEXTS.get(status, status)
    detail = build.get("failureInfo", {}).get("detail") or build.get("statusDetail", "")
    if detail and status not in (_PENDING, _QUEUED, _WORKING, "SUCCESS"):
        text = f"{text}: {detail}"
    return Report(
        repository=repository,
        commit=commit,
        status=status,
        context=context,
        text=_short(text),
        url=str(build.get("logUrl", "")),
        ref=ref,
    )


def status_request(forge: ForgeHost, report: Report) -> HttpRequest | None:
    """Return the request for a report; None for an unknown status or an invalid commit."""
    if report.status not in _TEXTS or not _COMMIT.fullmatch(report.commit):
        return None  # the commit becomes a part of the URL
    return _FORGES[forge.kind](forge.api, report)


def _github(api: str, report: Report) -> HttpRequest:
    return HttpRequest(
        method="POST",
        url=f"{api}/repos/{_path(report.repository)}/statuses/{report.commit}",
        body={
            "state": _GITHUB[report.status],
            "target_url": report.url,
            "description": report.text,
            "context": report.context,
        },
    )


def _gitlab(api: str, report: Report) -> HttpRequest:
    project = quote(report.repository, safe="")
    return HttpRequest(
        method="POST",
        url=f"{api}/projects/{project}/statuses/{report.commit}",
        body={
            "state": _GITLAB[report.status],
            "target_url": report.url,
            "description": report.text,
            "name": report.context,
            # For a commit of a fork, GitLab finds no branch itself, and then refuses the status.
            **({"ref": report.ref} if report.ref else {}),
        },
        header="PRIVATE-TOKEN",
        scheme="",
    )


def _gitea(api: str, report: Report) -> HttpRequest:
    return msgspec.structs.replace(_github(api, report), scheme="token")


def _bitbucket(api: str, report: Report) -> HttpRequest:
    where = f"{_path(report.repository)}/commit/{report.commit}/statuses/build"
    return HttpRequest(
        method="POST",
        url=f"{api}/repositories/{where}",
        body=_bitbucket_body(_BITBUCKET[report.status], report),
    )


def _bitbucket_server(api: str, report: Report) -> HttpRequest:
    project, _, slug = report.repository.partition("/")
    where = f"projects/{_path(project)}/repos/{_path(slug)}/commits/{report.commit}/builds"
    return HttpRequest(
        method="POST",
        url=f"{api}/api/latest/{where}",
        body=_bitbucket_body(_BITBUCKET_SERVER[report.status], report),
    )


def _bitbucket_body(state: str, report: Report) -> dict[str, Any]:
    key = report.context
    if len(key) > _LONGEST_KEY:  # long enough that no name can be found with the same key
        digest = hashlib.sha256(key.encode()).hexdigest()[:24]
        key = f"{key[: _LONGEST_KEY - 25]}-{digest}"
    return {
        "state": state,
        "key": key,
        "name": report.context,
        "url": report.url,
        "description": report.text,
    }


def _path(repository: str) -> str:
    return quote(repository, safe="/")


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_TEXT else f"{line[: _LONGEST_TEXT - 1]}…"


_FORGES: Final[Mapping[str, Callable[[str, Report], HttpRequest]]] = {
    "github": _github,
    "gitlab": _gitlab,
    "gitea": _gitea,
    "bitbucket": _bitbucket,
    "bitbucket-server": _bitbucket_server,
}
