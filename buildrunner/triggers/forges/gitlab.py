"""GitLab: webhooks of projects and groups, and system hooks.

Source: GitLab's "Webhook events", "System hooks" and "Webhooks: validate payloads".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from typing import Any

from buildrunner.triggers.events import PullRequestEvent, PushEvent, Repository, is_commit
from buildrunner.triggers.forges.forge import (
    BadDelivery,
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
# The first is for GitLab's own pipelines, the second for other CI services.
_SKIP_OPTIONS = (("ci", "skip"), ("integrations", "skip_ci"))
_SIGNING_TOKEN = "whsec_"  # noqa: S105  (the prefix of such tokens)


class GitLab:
    """See `Forge`."""

    name = "gitlab"

    def is_genuine(self, request: WebhookRequest, secret: str) -> bool:
        """See `Forge.is_genuine`; GitLab sends the secret token itself, or signs."""
        signed = _is_signed(request, secret)
        return token_matches(request.header("x-gitlab-token"), secret) or signed

    def sent_at(self, request: WebhookRequest) -> float | None:
        """See `Forge.sent_at`; the time is signed."""
        try:
            return float(request.header("webhook-timestamp"))
        except ValueError:
            return None

    def delivery_id(self, request: WebhookRequest) -> str:
        """See `Forge.delivery_id`; retries keep the idempotency key.

        Events caused by another event share its UUID, so the body distinguishes them.
        """
        key = request.header("idempotency-key") or request.header("webhook-id")
        event = request.header("x-gitlab-event-uuid")
        return key or (f"{event} {body_digest(request)[:16]}" if event else body_digest(request))

    def parse(self, request: WebhookRequest) -> ParsedDelivery:
        """See `Forge.parse`."""
        body = json_object(request)
        # System hooks have event_name.
        kind = text(body, "object_kind") or text(body, "event_name")
        match kind:
            case "push" | "tag_push":
                return ParsedDelivery(kind=kind, events=(_push(body),))
            case "merge_request":
                return _merge_request(body)
            case "note":
                return _note(body)
            case "repository_update":
                return ParsedDelivery(kind=kind, ignored="push and tag events report it, too")
            case _:
                named = kind or request.header("x-gitlab-event")
                if not named:
                    raise BadDelivery("object_kind is missing: it says what happened")
                ignored = f'"{named}" is nothing that fires a trigger'
                return ParsedDelivery(kind=named, ignored=ignored)


def _is_signed(request: WebhookRequest, secret: str) -> bool:
    """Return whether one of the signatures is valid.

    Source: the "Standard Webhooks" specification, which GitLab's signing tokens follow.
    """
    stamp = f"{request.header('webhook-id')}.{request.header('webhook-timestamp')}."
    key = secret.encode()
    if secret.startswith(_SIGNING_TOKEN):
        try:
            key = base64.b64decode(secret.removeprefix(_SIGNING_TOKEN), validate=True)
        except (binascii.Error, ValueError):
            return False
    digest = hmac.new(key, stamp.encode() + request.body, hashlib.sha256).digest()
    expected = f"v1,{base64.b64encode(digest).decode()}"
    given = request.header("webhook-signature").split()
    return any(token_matches(one, expected) for one in given) and bool(secret)


def _repository(body: dict[str, Any]) -> Repository:
    project = part(body, "project")
    others = (text(project, name) for name in ("web_url", "git_ssh_url", "homepage"))
    return Repository(
        full_name=required(body, "project", "path_with_namespace"),
        clone_url=text(project, "git_http_url"),
        urls=tuple(url for url in others if url),
        forge="gitlab",
    )


def _push(body: dict[str, Any]) -> PushEvent:
    before, after = text(body, "before"), required(body, "after")
    commits = items(body, "commits")
    is_new = not is_commit(before)
    # checkout_sha is the commit, also of an annotated tag; null if the ref was deleted.
    commit = (text(body, "checkout_sha") or after) if is_commit(after) else ""
    head = next((one for one in commits if text(one, "id") == commit), None)
    is_complete = (
        bool(commits) and not is_new and number(body, "total_commits_count") == len(commits)
    )
    # System hooks list commits without their files.
    is_complete = is_complete and all(isinstance(part(one, "modified"), list) for one in commits)
    return PushEvent(
        repository=_repository(body),
        ref=required(body, "ref"),
        before="" if is_new else before,
        after=commit,
        message=text(head, "message"),
        files=files_of(commits) if is_complete else None,
        doubtful_files=is_complete,  # GitLab never says whether a push was forced
        skip_option=_skip_option(body),
        author=text(body, "user_username"),  # user_name is no login: users choose it
        body=body,
    )


def _skip_option(body: dict[str, Any]) -> str:
    """Return the push option that requests no build; empty without one.

    Source: GitLab's "Push options", where the option's value does not count, either.
    """
    given = (".".join(path) for path in _SKIP_OPTIONS if part(body, "push_options", *path))
    return next(given, "")


def _merge_request(body: dict[str, Any]) -> ParsedDelivery:
    request = part(body, "object_attributes")
    action = text(request, "action")
    kind = f"merge_request.{action}" if action else "merge_request"
    if action == "update":
        if not text(request, "oldrev"):
            return ParsedDelivery(kind=kind, ignored="its text changed, not its commits")
        action = "pushed"
    if not action:
        return ParsedDelivery(kind=kind, ignored="it has no action: nothing happened to it")
    if isinstance(request, dict) and request.get("last_commit", "") is None:
        return ParsedDelivery(kind=kind, ignored="its branch has no commit yet")
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
    where = "merge_request" if is_comment else "object_attributes"
    head, base = number(request, "source_project_id"), number(request, "target_project_id")
    commenter = number(body, "user", "id") or number(body, "object_attributes", "author_id")
    author = number(request, "author_id")
    repository, source = _repository(body), text(request, "source", "path_with_namespace")
    is_other = bool(source) and source.casefold() != repository.full_name.casefold()
    return PullRequestEvent(
        repository=repository,
        number=number(request, "iid"),
        action=action,
        base_branch=required(request, "target_branch", of=where),
        head_branch=required(request, "source_branch", of=where),
        head_commit=required(request, "last_commit", "id", of=where),
        head_full_name=source,
        is_fork=head != base or not head or is_other,
        title=text(request, "title"),
        description=text(request, "description"),
        message=text(request, "last_commit", "message"),
        # Only for "opened" the actor is the author; otherwise the payload has the author's number.
        author=text(actor, "username") if action == "opened" else "",
        actor=text(body, "user", "username"),
        comment=text(body, "object_attributes", "note") if is_comment else "",
        commenter=text(body, "user", "username") if is_comment else "",
        author_id=str(author) if author else "",
        commenter_id=str(commenter) if is_comment and commenter else "",
        body=body,
    )
