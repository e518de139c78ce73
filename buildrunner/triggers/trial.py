"""Test events, with which `triggers test` checks whether a trigger would fire. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.triggers.events import Event, MessageEvent, PullRequestEvent, PushEvent, Repository
from buildrunner.triggers.forge_host import PUBLIC, named_forge, reported_forge
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.forges.forge import (
    BadDelivery,
    WebhookRequest,
    parse_delivery,
    part,
    text,
)
from buildrunner.triggers.forges.pubsub import pubsub_event
from buildrunner.triggers.hook_binding import HookBinding, bound, on_host
from buildrunner.triggers.repository import TriggerRepository

_SOME_COMMIT = "1" * 40


def trial_events(
    trigger: BuildTrigger,
    requested: Mapping[str, Any],
    wanted: TriggerRepository | None,
    bindings: Mapping[str, HookBinding],
) -> tuple[Event, ...]:
    """Return the events of a test.

    Args:
        trigger: the trigger to test.
        requested: ``{"hook": "github", "headers": {...}, "event": {...}}`` for a payload of a
            forge, ``{"ref", "files", "message"}`` for a push, the same with ``baseBranch`` for a
            pull request of branch ``ref``.
        wanted: the trigger's repository, used for events without a repository.
        bindings: bindings of hooks, by name. A payload for an unbound hook counts as one of the
            forge that it names.

    Raises:
        BadDelivery: ``requested`` has none of these forms.
    """
    if requested.get("event") is not None:
        return _delivered_events(trigger, requested, wanted, bindings)
    ref = text(requested, "ref")
    if not ref:
        raise BadDelivery("give either an event or a ref")
    ref = ref if ref.startswith("refs/") else f"refs/heads/{ref}"
    files = requested.get("files")
    repository = _repository_of(wanted)
    changed = tuple(map(str, files)) if isinstance(files, list) else None
    base = text(requested, "baseBranch")
    if base:
        return (
            PullRequestEvent(
                repository=repository,
                number=1,
                action="commented" if text(requested, "comment") else "opened",
                base_branch=base,
                head_branch=ref.removeprefix("refs/heads/"),
                head_commit=_SOME_COMMIT,
                message=text(requested, "message"),
                author_may_write=requested.get("writer") is not False,
                comment=text(requested, "comment"),
                commenter_may_write=requested.get("writer") is not False,
                is_fork=requested.get("fork") is True,
                files=changed,
                body={},
            ),
        )
    return (
        PushEvent(
            repository=repository,
            ref=ref,
            after=_SOME_COMMIT,
            message=text(requested, "message"),
            files=changed,
            body={},
        ),
    )


def _repository_of(wanted: TriggerRepository | None) -> Repository:
    if wanted is None:
        return Repository(full_name="some repository")
    host = wanted.host
    if host is None:
        bare = bool(wanted.bare)
        return Repository(full_name=wanted.bare or wanted.name, clone_url=wanted.url, bare=bare)
    return on_host(Repository(full_name=wanted.name), host)


def _delivered_events(
    trigger: BuildTrigger,
    requested: Mapping[str, Any],
    wanted: TriggerRepository | None,
    bindings: Mapping[str, HookBinding],
) -> tuple[Event, ...]:
    body = requested["event"]
    headers = {
        str(name).lower(): str(value) for name, value in (part(requested, "headers") or {}).items()
    }
    named = text(requested, "hook")
    hook = named.partition("/")[0] or _forge_of(trigger, headers, body, wanted)
    if hook == "webhook":
        return (MessageEvent(kind="webhook", body=body),)
    request = WebhookRequest(_with_kind(hook, headers, body), msgspec.json.encode(body))
    if hook == "pubsub":
        return (pubsub_event(request),)
    if hook not in FORGES:
        raise BadDelivery(
            f"unknown kind of hook: {hook}; use one of {', '.join(FORGES)}, pubsub, webhook"
        )
    try:
        parsed = parse_delivery(FORGES[hook], request)
    except BadDelivery as error:
        raise BadDelivery(
            f"this is no delivery of {hook}: {error} (set its kind by --hook and --header)"
        ) from error
    if not parsed.events:
        raise BadDelivery(f"no trigger can fire: {parsed.ignored}")
    if named in bindings:
        try:
            return bound(parsed, named, bindings[named]).events
        except BadDelivery as error:  # its message names the binding, which is the admin's
            raise BadDelivery(f"the hook {named} may not report this event") from error
    return tuple(_on_reported_forge(event, hook) for event in parsed.events)


def _on_reported_forge(event: Event, kind: str) -> Event:
    """Return an event with the forge that its payload names."""
    if isinstance(event, MessageEvent) or event.repository.bare:
        return event
    repository = event.repository
    host = reported_forge(kind, repository.full_name, (repository.clone_url, *repository.urls))
    if host is None and repository.forge in PUBLIC:
        host = named_forge(repository.forge)
    return replace(event, repository=on_host(repository, host)) if host else event


def _forge_of(
    trigger: BuildTrigger,
    headers: Mapping[str, str],
    body: Any,
    wanted: TriggerRepository | None,
) -> str:
    for forge, header in (
        ("gitea", "x-gitea-event"),
        ("github", "x-github-event"),
        ("gitlab", "x-gitlab-event"),
        ("bitbucket", "x-event-key"),
    ):
        if header in headers:
            return forge
    if trigger.webhook_config is not None:
        return "webhook"
    if trigger.pubsub_config is not None:
        return "pubsub"
    usual = wanted.host.kind if wanted is not None and wanted.host is not None else "github"
    return _forge_by_payload(body) or usual


def _forge_by_payload(body: Any) -> str:
    """Guess the forge of a payload; empty for a form that GitHub and Gitea share."""
    for forge, path in (
        ("gitlab", ("object_kind",)),
        ("gitlab", ("event_name",)),
        ("bitbucket-server", ("eventKey",)),
        ("bitbucket", ("pullrequest",)),
        ("bitbucket", ("push", "changes")),
        ("gitea", ("compare_url",)),
        ("gitea", ("pull_request", "merge_base")),
        ("gitea", ("is_pull",)),
    ):
        if part(body, *path) is not None:
            return forge
    return ""


def _with_kind(hook: str, headers: dict[str, str], body: Any) -> dict[str, str]:
    """Return the headers, with the kind of the event as the payload suggests it."""
    if hook in ("github", "gitea", "forgejo"):
        kind = "push"
        if part(body, "zen") is not None:
            kind = "ping"
        elif part(body, "pull_request") is not None:
            kind = "pull_request"
        elif part(body, "comment") is not None:
            kind = "issue_comment"
        return {"x-github-event": kind, "x-gitea-event": kind, **headers}
    if hook.startswith("bitbucket"):
        is_cloud = hook == "bitbucket"
        is_pull = part(body, "pullrequest") is not None or part(body, "pullRequest") is not None
        guess = "repo:push" if is_cloud else "repo:refs_changed"
        if is_pull:
            guess = "pullrequest:created" if is_cloud else "pr:opened"
        kind = text(body, "eventKey") or guess  # Bitbucket Server also has it in the payload
        return {"x-event-key": kind, **headers}
    return headers
