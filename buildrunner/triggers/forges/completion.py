"""What a forge's API adds to a comment on a pull request: the payload names neither its branches
nor its commits. GitHub and Gitea speak the same here. Pure.

Source: GitHub's "Get a pull request", Gitea's ``repoGetPullRequest`` and
``repoGetRepoPermissions``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from buildrunner.triggers.forges.forge import part, text
from buildrunner.triggers.forges.github import pull_request_event

if TYPE_CHECKING:
    from buildrunner.triggers.events import PullRequestEvent

_WRITING = frozenset({"write", "maintain", "admin", "owner"})


def completed(event: PullRequestEvent, pull: dict[str, Any]) -> PullRequestEvent:
    """The event with what the API says about its pull request.

    Args:
        event: of a comment.
        pull: answer of the API.

    Raises:
        BadDelivery: it is no pull request.
    """
    body = {"repository": part(pull, "base", "repo"), "pull_request": pull}
    told = pull_request_event(body, event.action, event.repository.forge)
    return replace(
        event,
        base_branch=told.base_branch,
        head_branch=told.head_branch,
        head_commit=told.head_commit,
        base_commit=told.base_commit,
        head_clone_url=told.head_clone_url,
        is_fork=told.is_fork,
    )


def permission_url(event: PullRequestEvent) -> str:
    """Where the API tells whether the commenter may write; empty where the payload did."""
    if event.commenter_may_write is not None or not event.commenter:
        return ""
    repository = event.api_url.rpartition("/pulls/")[0]
    return f"{repository}/collaborators/{event.commenter}/permission" if repository else ""


def with_permission(event: PullRequestEvent, answer: dict[str, Any]) -> PullRequestEvent:
    """The event with what the API says about its commenter."""
    return replace(event, commenter_may_write=text(answer, "permission") in _WRITING)
