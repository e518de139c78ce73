"""GitHub, and GitHub Enterprise Server.

Source: GitHub's "Webhook events and payloads" and "Validating webhook deliveries".
"""

from __future__ import annotations

from typing import Any

from buildrunner.triggers.events import PullRequestEvent, PushEvent, Repository, is_commit
from buildrunner.triggers.forges.forge import (
    ParsedDelivery,
    WebhookRequest,
    body_digest,
    event_kind,
    files_of,
    hmac_matches,
    items,
    json_object,
    number,
    part,
    required,
    text,
)

# Associations of authors that decide whether they may write. A MEMBER of the organization may have
# no access to the repository, and a COLLABORATOR may only read: the API has to be asked for these.
_MAY_WRITE = {"OWNER": True, "MEMBER": None, "COLLABORATOR": None, "": None}

_ACTIONS = {"opened": "opened", "reopened": "reopened", "synchronize": "pushed"}
# GitHub reports at most this many commits of a push, and at most this many files of a commit.
_MOST_COMMITS = 2048
_MOST_FILES = 3000


class GitHub:
    """See `Forge`."""

    name = "github"

    def is_genuine(self, request: WebhookRequest, secret: str) -> bool:
        """See `Forge.is_genuine`; the SHA-1 signature is ignored."""
        presented = request.header("x-hub-signature-256")
        return hmac_matches(request.body, secret, presented, prefix="sha256=")

    def sent_at(self, request: WebhookRequest) -> float | None:  # noqa: ARG002
        """See `Forge.sent_at`."""
        return None

    def delivery_id(self, request: WebhookRequest) -> str:
        """See `Forge.delivery_id`; a redelivery has the same GUID."""
        return request.header("x-github-delivery") or body_digest(request)

    def parse(self, request: WebhookRequest) -> ParsedDelivery:
        """See `Forge.parse`."""
        kind = event_kind(request, "x-github-event")
        body = json_object(request)
        action = text(body, "action")
        named = f"{kind}.{action}" if action else kind
        match kind:
            case "push":
                return ParsedDelivery(kind=kind, events=(push_event(body, self.name),))
            case "pull_request":
                event = pull_request_event(body, _ACTIONS.get(action, action), self.name)
                return ParsedDelivery(kind=named, events=(event,))
            case "issue_comment":
                return _comment(body, named)
            case "ping":
                return ParsedDelivery(kind=kind, ignored="a ping: the webhook works")
            case _:
                ignored = f'"{named}" is nothing that fires a trigger'
                return ParsedDelivery(kind=named, ignored=ignored)


def push_event(body: dict[str, Any], forge: str) -> PushEvent:
    """Read a push in the form of GitHub and Gitea.

    Raises:
        BadDelivery: a required value is missing.
    """
    ref, after = required(body, "ref"), required(body, "after")
    before = text(body, "before")
    commits = items(body, "commits")
    is_new = not is_commit(before)
    # An annotated tag's "after" is the tag object; the head commit is what it points to.
    head = text(body, "head_commit", "id")
    is_tag = ref.startswith("refs/tags/")
    if is_tag and head and is_commit(after):
        after = head
    # Gogs, and old versions of Gitea, have no head_commit.
    listed = next((one for one in commits if text(one, "id") == after), None)
    forced = part(body, "forced") is True
    total = number(body, "total_commits") or len(commits)
    is_complete = (
        bool(commits) and not is_new and not forced and total == len(commits) < _MOST_COMMITS
    )
    is_complete = is_complete and all(len(files_of([commit])) < _MOST_FILES for commit in commits)
    return PushEvent(
        repository=repository(part(body, "repository"), forge),
        ref=ref,
        before="" if is_new else before,
        after=after if is_commit(after) else "",
        may_be_unpeeled=is_tag and not head,
        message=text(body, "head_commit", "message") or text(listed, "message"),
        files=files_of(commits) if is_complete else None,
        forced=forced,
        doubtful_files=is_complete and "forced" not in body,  # Gitea does not report forced pushes
        author=text(body, "pusher", "name") or text(body, "pusher", "login"),
        body=body,
    )


def repository(value: object, forge: str) -> Repository:
    """Read a repository in the form of GitHub and Gitea."""
    others = (text(value, name) for name in ("html_url", "ssh_url", "git_url"))
    return Repository(
        full_name=required(value, "full_name", of="repository"),
        clone_url=text(value, "clone_url"),
        urls=tuple(url for url in others if url),
        forge=forge,
    )


def pull_request_event(body: dict[str, Any], action: str, forge: str) -> PullRequestEvent:
    """Read a pull request in the form of GitHub and Gitea.

    Raises:
        BadDelivery: a required value is missing.
    """
    pull = part(body, "pull_request")
    base = repository(part(body, "repository"), forge)
    head = text(pull, "head", "repo", "full_name")
    base_branch = required(pull, "base", "ref", of="pull_request")
    head_branch = required(pull, "head", "ref", of="pull_request")
    # A user with read access can push to refs/for/ of Gitea, without a fork or a branch.
    is_strangers = head_branch.startswith("refs/")
    return PullRequestEvent(
        repository=base,
        number=number(pull, "number") or number(body, "number"),
        action=action,
        base_branch=base_branch,
        head_branch=head_branch,
        head_commit=required(pull, "head", "sha", of="pull_request"),
        base_commit=text(pull, "base", "sha"),
        head_full_name=head,
        # A deleted fork is null.
        is_fork=is_strangers or head.casefold() != base.full_name.casefold(),
        title=text(pull, "title"),
        description=text(pull, "body"),
        author=text(pull, "user", "login"),
        actor=text(body, "sender", "login"),
        author_id=text(pull, "user", "login"),
        author_may_write=_may_write(text(pull, "author_association")),
        body=body,
    )


def _comment(body: dict[str, Any], kind: str) -> ParsedDelivery:
    if part(body, "issue", "pull_request") is None:
        return ParsedDelivery(kind=kind, ignored="a comment on an issue, not on a pull request")
    if text(body, "action") != "created":
        return ParsedDelivery(kind=kind, ignored="only a new comment counts")
    event = PullRequestEvent(
        repository=repository(part(body, "repository"), "github"),
        number=number(body, "issue", "number"),
        action="commented",
        base_branch="",
        head_branch="",
        title=text(body, "issue", "title"),
        description=text(body, "issue", "body"),
        author=text(body, "issue", "user", "login"),
        author_id=text(body, "issue", "user", "login"),
        author_may_write=_may_write(text(body, "issue", "author_association")),
        comment=text(body, "comment", "body"),
        commenter=text(body, "comment", "user", "login"),
        actor=text(body, "comment", "user", "login"),
        commenter_id=text(body, "comment", "user", "login"),
        commenter_may_write=_may_write(text(body, "comment", "author_association")),
        body=body,
    )
    return ParsedDelivery(kind=kind, events=(event,))


def _may_write(association: str) -> bool | None:
    return _MAY_WRITE.get(association, False)
