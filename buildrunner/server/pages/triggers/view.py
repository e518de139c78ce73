"""The content of the pages of triggers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from buildrunner.spec.model.git_address import masked_trigger
from buildrunner.triggers.forge_host import request_word
from buildrunner.triggers.schedule import BadSchedule, Schedule, fire_times
from buildrunner.triggers.settings import TriggerSettings

_EVENTS_OF_GITLAB = "gitlabEnterpriseEventsConfig"
_EVENTS = {
    "github": "GitHub",
    "repositoryEventConfig": "repository",
    _EVENTS_OF_GITLAB: "GitLab",
    "bitbucketServerTriggerConfig": "Bitbucket Server",
}


class NextRun(msgspec.Struct, frozen=True):
    """A fire time: in UTC as the API writes it, and as the trigger's own zone has it."""

    at: str
    local: str


class TriggerView(msgspec.Struct, frozen=True, kw_only=True):
    """One trigger.

    Attributes:
        id, name, project, description: of the trigger.
        disabled: it fires by hand only.
        request_word: what the trigger's forge calls a pull request.
        fires_on: what fires it, in words.
        builds: what it builds, in words.
        conditions: what else must hold, each in words.
        needs_approval: its builds wait for somebody.
        has_source: a run by hand may name a branch, tag or commit.
        substitutions: its own.
        next_runs: coming fire times of its schedule.
        schedule: as it is written, with its zone; empty without one.
        json: the whole resource.
    """

    id: str
    name: str
    project: str
    description: str = ""
    disabled: bool = False
    request_word: str = "pull request"
    fires_on: str = ""
    builds: str = ""
    conditions: tuple[str, ...] = ()
    needs_approval: bool = False
    has_source: bool = False
    substitutions: dict[str, str] = {}
    next_runs: tuple[NextRun, ...] = ()
    schedule: str = ""
    json: str = ""

    @property
    def path(self) -> str:
        """Address of its page."""
        return f"/triggers/{self.project}/{self.id}"


def trigger_view(
    document: Mapping[str, Any],
    project: str,
    *,
    now: datetime,
    runs: int = 5,
    settings: TriggerSettings | None = None,
) -> TriggerView:
    """Return the facts of a trigger for its pages.

    Args:
        document: the BuildTrigger as JSON.
        project: its project.
        now: the present, for the next runs.
        runs: how many of them.
        settings: what is set beside it.
    """
    document = masked_trigger(dict(document))
    cron = document.get("cron", {})
    zone = cron.get("timeZone", "")
    word = _request_word(document, settings)
    return TriggerView(
        id=document.get("id", ""),
        name=document.get("name", ""),
        project=project,
        description=document.get("description", ""),
        disabled=bool(document.get("disabled", False)),
        request_word=word,
        fires_on=fires_on(document, word),
        builds=_builds(document),
        conditions=_conditions(document),
        needs_approval=document.get("approvalConfig", {}).get("approvalRequired", False) is True,
        has_source=not ("build" in document and not _has_repository(document)),
        substitutions=dict(document.get("substitutions", {})),
        next_runs=_next_runs((settings or TriggerSettings()).schedule(cron), now, runs),
        schedule=f"{cron['schedule']} ({zone or 'UTC'})" if cron.get("schedule") else "",
        json=msgspec.json.format(msgspec.json.encode(dict(document)), indent=2).decode(),
    )


def _request_word(document: Mapping[str, Any], settings: TriggerSettings | None) -> str:
    if settings is not None and settings.forge is not None:
        return request_word(settings.forge.kind)
    return request_word("gitlab" if _EVENTS_OF_GITLAB in document else "")


def fires_on(document: Mapping[str, Any], word: str = "pull request") -> str:
    """Describe in words which events fire a trigger.

    Args:
        document: the BuildTrigger as JSON.
        word: what its forge calls a pull request.
    """
    for field, forge in _EVENTS.items():
        if field in document:
            return _event(document[field], forge, word)
    template = document.get("triggerTemplate")
    if template is not None:
        ref = _ref(template, "branchName", "tagName", inverted=template.get("invertRegex", False))
        return f"push of {ref} to {template.get('repoName', '')}"
    if "webhookConfig" in document:
        return "a call of its webhook"
    if "pubsubConfig" in document:
        return f"a message of {document['pubsubConfig'].get('topic', 'its topic')}"
    if document.get("cron", {}).get("schedule"):
        return "the clock"
    return "by hand only"


def _event(config: Mapping[str, Any], forge: str, word: str) -> str:
    name = "/".join(filter(None, (config.get("owner"), config.get("name"))))
    name = (
        name
        or config.get("repository", "").rpartition("/")[2]
        or config.get("projectNamespace", "")
        or "/".join(filter(None, (config.get("projectKey"), config.get("repoSlug"))))
    )
    push, pull = config.get("push"), config.get("pullRequest")
    if push is not None:
        ref = _ref(push, "branch", "tag", inverted=push.get("invertRegex", False))
        return f"push of {ref} to {name} ({forge})"
    inverted = " not" if (pull or {}).get("invertRegex") else ""
    into = (pull or {}).get("branch", "")
    return f"{word} into a branch{inverted} like {into} of {name} ({forge})"


def _ref(config: Mapping[str, Any], branch: str, tag: str, *, inverted: bool) -> str:
    kind, pattern = ("tag", config[tag]) if config.get(tag) else ("branch", config.get(branch, ""))
    return f"a {kind}{' not' if inverted else ''} like {pattern}"


def _builds(document: Mapping[str, Any]) -> str:
    if "build" in document:
        count = len(document["build"].get("steps", ()))
        return f"{count} step{'s' if count != 1 else ''} of its own"
    if document.get("filename"):
        return f"{document['filename']} of the repository"
    if "gitFileSource" in document:
        file = document["gitFileSource"]
        return (
            f"{file.get('path', '')} of {file.get('uri') or file.get('repository') or 'the source'}"
        )
    return "the repository's own config"


def _conditions(document: Mapping[str, Any]) -> tuple[str, ...]:
    found = []
    if document.get("includedFiles"):
        found.append(f"a file of {', '.join(document['includedFiles'])} changed")
    if document.get("ignoredFiles"):
        found.append(f"a file outside {', '.join(document['ignoredFiles'])} changed")
    if document.get("filter"):
        found.append(f"filter: {document['filter']}")
    return tuple(found)


def _has_repository(document: Mapping[str, Any]) -> bool:
    return any(name in document for name in (*_EVENTS, "triggerTemplate", "sourceToBuild"))


def _next_runs(schedule: Schedule, now: datetime, count: int) -> tuple[NextRun, ...]:
    if not schedule.cron or not count:
        return ()
    try:
        times = fire_times(schedule, now, count)
    except BadSchedule:
        return ()
    from zoneinfo import ZoneInfo

    zone = ZoneInfo(schedule.time_zone or "UTC")
    return tuple(
        NextRun(
            moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            moment.astimezone(zone).strftime("%a %d %b %Y, %H:%M %Z"),
        )
        for moment in times
    )
