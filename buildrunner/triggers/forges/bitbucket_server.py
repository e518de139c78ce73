"""Bitbucket Server and Data Center.

Source: Atlassian's "Event payload" and "Manage webhooks" of Bitbucket Data Center.
"""

from __future__ import annotations

from typing import Any

from buildrunner.triggers.events import PullRequestEvent, PushEvent, Repository, is_commit
from buildrunner.triggers.forges.forge import (
    ParsedDelivery,
    WebhookRequest,
    body_digest,
    event_kind,
    hmac_matches,
    items,
    json_object,
    number,
    part,
    refs_of,
    required,
    required_items,
    text,
)

_ACTIONS = {
    "pr:opened": "opened",
    "pr:reopened": "reopened",
    "pr:from_ref_updated": "pushed",
    "pr:comment:added": "commented",
}


class BitbucketServer:
    """See `Forge`."""

    name = "bitbucket-server"

    def is_genuine(self, request: WebhookRequest, secret: str) -> bool:
        """See `Forge.is_genuine`."""
        presented = request.header("x-hub-signature")
        return hmac_matches(request.body, secret, presented, prefix="sha256=")

    def sent_at(self, request: WebhookRequest) -> float | None:  # noqa: ARG002
        """See `Forge.sent_at`."""
        return None

    def delivery_id(self, request: WebhookRequest) -> str:
        """See `Forge.delivery_id`."""
        return request.header("x-request-id") or body_digest(request)

    def parse(self, request: WebhookRequest) -> ParsedDelivery:
        """See `Forge.parse`."""
        kind = event_kind(request, "x-event-key")
        if kind == "diagnostics:ping":  # its body is {"test": true}, or nothing
            return ParsedDelivery(kind=kind, ignored="a ping: the webhook works")
        body = json_object(request)
        if kind == "repo:refs_changed":
            changes = refs_of(required_items(body, "changes"))
            return ParsedDelivery(
                kind=kind,
                events=tuple(_push(body, change) for change in changes),
                ignored="" if changes else "no ref changed",
            )
        if kind in _ACTIONS:
            return ParsedDelivery(kind=kind, events=(_pull_request(body, _ACTIONS[kind]),))
        return ParsedDelivery(kind=kind, ignored=f'"{kind}" is nothing that fires a trigger')


def _repository(value: object) -> Repository:
    clones = {text(one, "name"): text(one, "href") for one in items(value, "links", "clone")}
    project = required(value, "project", "key", of="repository")
    others = [url for name, url in clones.items() if name != "http" and url]
    return Repository(
        full_name=f"{project}/{required(value, 'slug', of='repository')}",
        clone_url=clones.get("http", ""),
        urls=(*others, *(text(one, "href") for one in items(value, "links", "self"))),
        forge="bitbucket-server",
    )


def _push(body: dict[str, Any], change: Any) -> PushEvent:
    before, after = text(change, "fromHash"), required(change, "toHash")
    commits = items(body, "commits")  # of newer versions, newest first
    head = part(body, "toCommit") or (commits[0] if commits else None)
    ref = required(change, "ref", "id")
    return PushEvent(
        repository=_repository(part(body, "repository")),
        ref=ref,
        before=before if is_commit(before) else "",
        after=after if is_commit(after) else "",
        may_be_unpeeled=ref.startswith("refs/tags/"),
        message=text(head, "message") if text(head, "id") == after else "",
        author=text(body, "actor", "name"),
        body=body,
    )


def _pull_request(body: dict[str, Any], action: str) -> PullRequestEvent:
    pull = part(body, "pullRequest")
    base = _repository(part(pull, "toRef", "repository"))
    base_branch = required(pull, "toRef", "displayId", of="pullRequest")
    head_branch = required(pull, "fromRef", "displayId", of="pullRequest")
    head_commit = required(pull, "fromRef", "latestCommit", of="pullRequest")
    head = _repository(part(pull, "fromRef", "repository")).full_name
    is_comment = action == "commented"
    return PullRequestEvent(
        repository=base,
        number=number(pull, "id"),
        action=action,
        base_branch=base_branch,
        head_branch=head_branch,
        head_commit=head_commit,
        base_commit=text(pull, "toRef", "latestCommit"),
        head_full_name=head,
        is_fork=head != base.full_name,
        title=text(pull, "title"),
        description=text(pull, "description"),
        author=text(pull, "author", "user", "name"),
        actor=text(body, "actor", "name"),
        comment=text(body, "comment", "text") if is_comment else "",
        commenter=text(body, "actor", "name") if is_comment else "",
        author_id=text(pull, "author", "user", "name"),
        commenter_id=text(body, "actor", "name") if is_comment else "",
        body=body,
    )
