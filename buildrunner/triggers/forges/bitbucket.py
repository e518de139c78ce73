"""Bitbucket Cloud.

Source: Atlassian's "Event payloads" and "Manage webhooks" of Bitbucket Cloud.
"""

from __future__ import annotations

from typing import Any

from buildrunner.triggers.events import PullRequestEvent, PushEvent, Repository
from buildrunner.triggers.forges.forge import (
    BadDelivery,
    ParsedDelivery,
    WebhookRequest,
    body_digest,
    event_kind,
    hmac_matches,
    json_object,
    number,
    part,
    refs_of,
    required,
    required_items,
    text,
)

_ACTIONS = {
    "pullrequest:created": "opened",
    "pullrequest:updated": "updated",
    "pullrequest:comment_created": "commented",
}
_PREFIXES = {"branch": "refs/heads/", "named_branch": "refs/heads/", "tag": "refs/tags/",
             "annotated_tag": "refs/tags/"}  # fmt: skip


class Bitbucket:
    """See `Forge`."""

    name = "bitbucket"

    def is_genuine(self, request: WebhookRequest, secret: str) -> bool:
        """See `Forge.is_genuine`."""
        presented = request.header("x-hub-signature")
        return hmac_matches(request.body, secret, presented, prefix="sha256=")

    def sent_at(self, request: WebhookRequest) -> float | None:  # noqa: ARG002
        """See `Forge.sent_at`."""
        return None

    def delivery_id(self, request: WebhookRequest) -> str:
        """See `Forge.delivery_id`."""
        return request.header("x-request-uuid") or body_digest(request)

    def parse(self, request: WebhookRequest) -> ParsedDelivery:
        """See `Forge.parse`."""
        kind = event_kind(request, "x-event-key")
        body = json_object(request)
        if kind == "repo:push":
            changes = refs_of(required_items(body, "push", "changes"))
            return ParsedDelivery(
                kind=kind,
                events=tuple(_push(body, change) for change in changes),
                ignored="" if changes else "no ref changed",
            )
        if kind in _ACTIONS:
            return ParsedDelivery(kind=kind, events=(_pull_request(body, _ACTIONS[kind]),))
        return ParsedDelivery(kind=kind, ignored=f'"{kind}" is nothing that fires a trigger')


def _repository(value: object) -> Repository:
    return Repository(
        full_name=required(value, "full_name", of="repository"),
        clone_url=text(value, "links", "html", "href"),
        forge="bitbucket",
    )


def _push(body: dict[str, Any], change: Any) -> PushEvent:
    new, old = part(change, "new"), part(change, "old")
    ref = new if new is not None else old
    prefix = _PREFIXES.get(text(ref, "type"))
    if prefix is None:
        raise BadDelivery("a change of push.changes names neither a branch nor a tag")
    return PushEvent(
        repository=_repository(part(body, "repository")),
        ref=prefix + required(ref, "name"),
        before=text(old, "target", "hash"),
        after=text(new, "target", "hash"),
        message=text(new, "target", "message"),
        forced=part(change, "forced") is True,
        author=text(body, "actor", "nickname") or text(body, "actor", "display_name"),
        body=body,
    )


def _pull_request(body: dict[str, Any], action: str) -> PullRequestEvent:
    pull = part(body, "pullrequest")
    base = _repository(part(pull, "destination", "repository"))
    head = text(pull, "source", "repository", "full_name")
    is_comment = action == "commented"
    return PullRequestEvent(
        repository=base,
        number=number(pull, "id"),
        action=action,
        base_branch=required(pull, "destination", "branch", "name", of="pullrequest"),
        head_branch=required(pull, "source", "branch", "name", of="pullrequest"),
        head_commit=required(pull, "source", "commit", "hash", of="pullrequest"),  # its beginning
        base_commit=text(pull, "destination", "commit", "hash"),
        head_full_name=head,
        is_fork=head.casefold() != base.full_name.casefold(),
        title=text(pull, "title"),
        description=text(pull, "description"),
        author=text(pull, "author", "nickname") or text(pull, "author", "display_name"),
        actor=text(body, "actor", "nickname"),
        comment=text(body, "comment", "content", "raw") if is_comment else "",
        commenter=text(body, "actor", "nickname") if is_comment else "",
        author_id=text(pull, "author", "uuid"),
        commenter_id=text(body, "actor", "uuid") if is_comment else "",
        body=body,
    )
