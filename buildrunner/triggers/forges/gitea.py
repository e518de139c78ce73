"""Webhooks of Gitea, Forgejo and Gogs, whose payloads resemble GitHub's.

Source: the page "Webhooks" of each.
"""

from __future__ import annotations

from typing import Any

from buildrunner.triggers.events import PullRequestEvent
from buildrunner.triggers.forges.forge import (
    ParsedDelivery,
    WebhookRequest,
    body_digest,
    event_kind,
    hmac_matches,
    json_object,
    number,
    part,
    required,
    text,
)
from buildrunner.triggers.forges.github import pull_request_event, push_event, repository

_MAKERS = ("gitea", "forgejo", "gogs")
_ACTIONS = {
    "opened": "opened",
    "reopened": "reopened",
    "synchronized": "pushed",
    "synchronize": "pushed",
}


class Gitea:
    """See `Forge`."""

    name = "gitea"

    def is_genuine(self, request: WebhookRequest, secret: str) -> bool:
        """See `Forge.is_genuine`."""
        own = _own(request, "signature")
        if own:
            return hmac_matches(request.body, secret, own)
        presented = request.header("x-hub-signature-256")
        return hmac_matches(request.body, secret, presented, prefix="sha256=")

    def sent_at(self, request: WebhookRequest) -> float | None:  # noqa: ARG002
        """See `Forge.sent_at`."""
        return None

    def delivery_id(self, request: WebhookRequest) -> str:
        """See `Forge.delivery_id`."""
        return _own(request, "delivery") or body_digest(request)

    def parse(self, request: WebhookRequest) -> ParsedDelivery:
        """See `Forge.parse`."""
        kind = event_kind(request, *(f"x-{maker}-event" for maker in _MAKERS))
        body = json_object(request)
        action = text(body, "action")
        named = f"{kind}.{action}" if action else kind
        match kind:
            case "push":
                return ParsedDelivery(kind=kind, events=(push_event(body, self.name),))
            case "pull_request" | "pull_request_sync":
                action = "pushed" if kind == "pull_request_sync" else _ACTIONS.get(action, action)
                return ParsedDelivery(kind=named, events=(_pull_request(body, action),))
            case "issue_comment" | "pull_request_comment":
                return _comment(body, named)
            case _:
                ignored = f'"{named}" fires no trigger'
                return ParsedDelivery(kind=named, ignored=ignored)


def _pull_request(body: dict[str, Any], action: str) -> PullRequestEvent:
    """Read a pull request in GitHub's form, or in that of Gogs, which omits the commits."""
    pull = part(body, "pull_request")
    if part(pull, "head") is not None or part(pull, "head_branch") is None:
        return pull_request_event(body, action, "gitea")
    base = repository(part(body, "repository"), "gitea")
    return PullRequestEvent(
        repository=base,
        number=number(pull, "number") or number(body, "number"),
        action=action,
        base_branch=required(pull, "base_branch", of="pull_request"),
        head_branch=required(pull, "head_branch", of="pull_request"),
        head_full_name=text(pull, "head_repo", "full_name"),
        is_fork=text(pull, "head_repo", "full_name").casefold() != base.full_name.casefold(),
        title=text(pull, "title"),
        description=text(pull, "body"),
        author=text(pull, "user", "login"),
        actor=text(body, "sender", "login"),
        author_id=text(pull, "user", "login"),
        body=body,
    )


def _own(request: WebhookRequest, what: str) -> str:
    """Return a header from the first maker's name that is present; empty if none is."""
    found = (request.header(f"x-{maker}-{what}") for maker in _MAKERS)
    return next((value for value in found if value), "")


def _comment(body: dict[str, Any], kind: str) -> ParsedDelivery:
    if part(body, "is_pull") is not True and part(body, "issue", "pull_request") is None:
        return ParsedDelivery(kind=kind, ignored="a comment on an issue, not on a pull request")
    if text(body, "action") != "created":
        return ParsedDelivery(kind=kind, ignored="only a new comment counts")
    event = PullRequestEvent(
        repository=repository(part(body, "repository"), "gitea"),
        number=number(body, "issue", "number"),
        action="commented",
        base_branch="",
        head_branch="",
        title=text(body, "issue", "title"),
        description=text(body, "issue", "body"),
        author=text(body, "issue", "user", "login"),
        author_id=text(body, "issue", "user", "login"),
        comment=text(body, "comment", "body"),
        commenter=text(body, "comment", "user", "login"),
        actor=text(body, "comment", "user", "login"),
        commenter_id=text(body, "comment", "user", "login"),
        body=body,
    )
    return ParsedDelivery(kind=kind, events=(event,))
