"""Gitea and Forgejo, which speak nearly GitHub's language.

Source: Gitea's "Webhooks", and Forgejo's.
"""

from __future__ import annotations

from typing import Any

from buildrunner.triggers.events import PullRequestEvent
from buildrunner.triggers.forges.forge import (
    ParsedDelivery,
    WebhookRequest,
    body_digest,
    hmac_matches,
    json_object,
    number,
    part,
    text,
)
from buildrunner.triggers.forges.github import pull_request_event, push_event, repository

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
        own = request.header("x-gitea-signature") or request.header("x-forgejo-signature")
        if own:
            return hmac_matches(request.body, secret, own)
        presented = request.header("x-hub-signature-256")
        return hmac_matches(request.body, secret, presented, prefix="sha256=")

    def delivery_id(self, request: WebhookRequest) -> str:
        """See `Forge.delivery_id`."""
        return (
            request.header("x-gitea-delivery")
            or request.header("x-forgejo-delivery")
            or body_digest(request)
        )

    def parse(self, request: WebhookRequest) -> ParsedDelivery:
        """See `Forge.parse`."""
        kind = request.header("x-gitea-event") or request.header("x-forgejo-event")
        body = json_object(request)
        action = text(body, "action")
        named = f"{kind}.{action}" if action else kind
        match kind:
            case "push":
                return ParsedDelivery(kind=kind, events=(push_event(body, self.name),))
            case "pull_request" | "pull_request_sync":
                action = "pushed" if kind == "pull_request_sync" else _ACTIONS.get(action, action)
                event = pull_request_event(body, action, self.name)
                return ParsedDelivery(kind=named, events=(event,))
            case "issue_comment" | "pull_request_comment":
                return _comment(body, named)
            case _:
                ignored = f'"{named}" is nothing that fires a trigger'
                return ParsedDelivery(kind=named, ignored=ignored)


def _comment(body: dict[str, Any], kind: str) -> ParsedDelivery:
    if part(body, "is_pull") is not True and part(body, "issue", "pull_request") is None:
        return ParsedDelivery(kind=kind, ignored="a comment on an issue, not on a pull request")
    if text(body, "action") != "created":
        return ParsedDelivery(kind=kind, ignored="only a new comment counts")
    base = repository(part(body, "repository"), "gitea")
    index = number(body, "issue", "number")
    root = text(body, "repository", "html_url").removesuffix(f"/{base.full_name}")
    event = PullRequestEvent(
        repository=base,
        number=index,
        action="commented",
        base_branch="",
        head_branch="",
        title=text(body, "issue", "title"),
        description=text(body, "issue", "body"),
        author=text(body, "issue", "user", "login"),
        comment=text(body, "comment", "body"),
        commenter=text(body, "comment", "user", "login"),
        api_url=f"{root}/api/v1/repos/{base.full_name}/pulls/{index}",
        body=body,
    )
    return ParsedDelivery(kind=kind, events=(event,))
