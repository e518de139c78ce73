"""What a forge's API adds to an event: a comment's payload on GitHub and Gitea names neither the
branches nor the commits of its pull request, and few payloads say who may write. Pure.

Source: GitHub's "Get a pull request" and "Get repository permissions for a user", Gitea's
``repoGetPullRequest`` and ``repoGetRepoPermissions``; see the forges' modules for the others.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from buildrunner.triggers.events import PullRequestEvent
from buildrunner.triggers.forge_host import is_full_name, repository_key
from buildrunner.triggers.forges.forge import BadDelivery, items, number, part, text
from buildrunner.triggers.forges.github import pull_request_event

_WRITING = frozenset({"write", "maintain", "admin", "owner"})
_GITLAB_DEVELOPER = 30


def completed(event: PullRequestEvent, pull: dict[str, Any]) -> PullRequestEvent:
    """The event with what the API says about its pull request.

    Args:
        event: of a comment.
        pull: answer of the API.

    Raises:
        BadDelivery: it is no pull request, or one of another repository.
    """
    body = {"repository": part(pull, "base", "repo"), "pull_request": pull}
    told = pull_request_event(body, event.action, event.repository.forge)
    base, head = event.repository, told.head_full_name
    if repository_key(told.repository.full_name) != repository_key(base.full_name):
        raise BadDelivery(f"it is one of {told.repository.full_name}, not of {base.full_name}")
    if head and not is_full_name(head):
        raise BadDelivery(f"{head!r} is not the full name of a repository")
    return replace(
        event,
        base_branch=told.base_branch,
        head_branch=told.head_branch,
        head_commit=told.head_commit,
        base_commit=told.base_commit,
        head_full_name=head,
        head_clone_url=base.host.clone_url(head) if base.host and head else "",
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
