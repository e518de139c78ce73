"""GitLab.

Source: GitLab's "Webhook events" and "Webhooks: validate payloads".
"""

from __future__ import annotations

from typing import Any

from buildrunner.triggers.events import NO_COMMIT, PullRequestEvent, PushEvent, Repository
from buildrunner.triggers.forges.forge import (
    ParsedDelivery,
    WebhookRequest,
    body_digest,
    files_of,
    items,
    json_object,
    number,
    part,
    required,
    text,
    token_matches,
)

_ACTIONS = {"open": "opened", "reopen": "reopened"}


class GitLab:
    """See `Forge`."""

    name = "gitlab"

    def is_genuine(self, request: WebhookRequest, secret: str) -> bool:
        """See `Forge.is_genuine`; GitLab sends the secret token itself."""
        return token_matches(request.header("x-gitlab-token"), secret)

    def delivery_id(self, request: WebhookRequest) -> str:
        """See `Forge.delivery_id`; retries keep the idempotency key."""
        return (
            request.header("idempotency-key")
            or request.header("x-gitlab-event-uuid")
            or body_digest(request)
        )

    def parse(self, request: WebhookRequest) -> ParsedDelivery:
        """See `Forge.parse`."""
        body = json_object(request)
        kind = text(body, "object_kind")
        match kind:
            case "push" | "tag_push":
                return ParsedDelivery(kind=kind, events=(_push(body),))
            case "merge_request":
                return _merge_request(body)
            case "note":
                return _note(body)
            case _:
                named = kind or request.header("x-gitlab-event") or "something"
                ignored = f'"{named}" is nothing that fires a trigger'
                return ParsedDelivery(kind=named, ignored=ignored)


def _repository(body: dict[str, Any]) -> Repository:
    project = part(body, "project")
    others = (text(project, name) for name in ("web_url", "git_ssh_url", "homepage"))
    return Repository(
        full_name=required(project, "path_with_namespace"),
        clone_url=text(project, "git_http_url"),
        urls=tuple(url for url in others if url),
        forge="gitlab",
    )


def _push(body: dict[str, Any]) -> PushEvent:
    before, after = text(body, "before"), required(body, "after")
    commits = items(body, "commits")
    is_new = before in ("", NO_COMMIT)
    # checkout_sha is the commit, also of an annotated tag; null when the ref was deleted.
    commit = "" if after == NO_COMMIT else text(body, "checkout_sha") or after
    head = next((one for one in commits if text(one, "id") == commit), None)
    told = bool(commits) and not is_new and number(body, "total_commits_count") == len(commits)
    return PushEvent(
        repository=_repository(body),
        ref=required(body, "ref"),
        before="" if is_new else before,
        after=commit,
        message=text(head, "message"),
        files=files_of(commits) if told else None,
        author=text(body, "user_username") or text(body, "user_name"),
        body=body,
    )


def _merge_request(body: dict[str, Any]) -> ParsedDelivery:
    request = part(body, "object_attributes")
    action = text(request, "action")
    kind = f"merge_request.{action}" if action else "merge_request"
    if action == "update":
        if not text(request, "oldrev"):
            return ParsedDelivery(kind=kind, ignored="its text changed, not its commits")
        action = "pushed"
    event = _pull_request(body, request, _ACTIONS.get(action, action), part(body, "user"))
    return ParsedDelivery(kind=kind, events=(event,))


def _note(body: dict[str, Any]) -> ParsedDelivery:
    if text(body, "object_attributes", "noteable_type") != "MergeRequest":
        return ParsedDelivery(kind="note", ignored="a comment, but not on a merge request")
    if text(body, "object_attributes", "action") == "update":
        return ParsedDelivery(kind="note", ignored="only a new comment counts")
    event = _pull_request(body, part(body, "merge_request"), "commented", None)
    return ParsedDelivery(kind="note", events=(event,))


def _pull_request(body: dict[str, Any], request: Any, action: str, actor: Any) -> PullRequestEvent:
    is_comment = action == "commented"
    return PullRequestEvent(
        repository=_repository(body),
        number=number(request, "iid"),
        action=action,
        base_branch=required(request, "target_branch"),
        head_branch=required(request, "source_branch"),
        head_commit=required(request, "last_commit", "id"),
        head_clone_url=text(request, "source", "git_http_url"),
        is_fork=number(request, "source_project_id") != number(request, "target_project_id"),
        title=text(request, "title"),
        description=text(request, "description"),
        message=text(request, "last_commit", "message"),
        # Who acts opens it only when it is opened; the payload names the author by number else.
        author=text(actor, "username") if action == "opened" else "",
        comment=text(body, "object_attributes", "note") if is_comment else "",
        commenter=text(body, "user", "username") if is_comment else "",
        body=body,
    )
