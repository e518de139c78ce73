"""What a forge's API adds to an event: a comment's payload on GitHub and Gitea names neither the
branches nor the commits of its pull request, and few payloads say who may write. Pure.

Source: GitHub's "Get a pull request" and "Get repository permissions for a user", Gitea's
``repoGetPullRequest`` and ``repoGetRepoPermissions``; see the forges' modules for the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from buildrunner.triggers.forges.forge import items, number, part, text
from buildrunner.triggers.forges.github import pull_request_event

if TYPE_CHECKING:
    from buildrunner.triggers.events import PullRequestEvent

_WRITING = frozenset({"write", "maintain", "admin", "owner"})
_GITLAB_DEVELOPER = 30


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


def may_write(forge: str, person: str, answer: dict[str, Any]) -> bool:
    """Whether a person may write to the repository, by what the API says at the address of rights.

    Args:
        forge: see `Repository`.
        person: the login.
        answer: of the API.
    """
    match forge:
        case "gitlab":
            return number(answer, "access_level") >= _GITLAB_DEVELOPER
        case "bitbucket":
            return any(text(one, "permission") in _WRITING for one in items(answer, "values"))
        case "bitbucket-server":
            return any(text(one, "name") == person for one in items(answer, "values"))
        case _:
            return text(answer, "permission") in _WRITING
