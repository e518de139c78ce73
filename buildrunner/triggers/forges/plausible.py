"""Whether what a forge tells of could be: names that Git allows, commits that are commits.

Who signs a delivery is the forge, but what is in it somebody wrote. Later it is handed to Git, and
shown to people.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from buildrunner.triggers.events import PullRequestEvent, PushEvent
from buildrunner.triggers.forges.forge import BadDelivery, ParsedDelivery, WebhookRequest

if TYPE_CHECKING:
    from buildrunner.triggers.events import Event, Repository
    from buildrunner.triggers.forges.forge import Forge

# Git takes four and more; Bitbucket tells the first twelve of a pull request's commits.
_COMMIT = re.compile(r"[0-9A-Fa-f]{4,64}")
# Source: `git check-ref-format`.
_NEVER_IN_A_REF = re.compile(
    r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|(^|/)\.|\.lock(/|$)|[./]$|^/|^@$"
)
_NEVER_IN_AN_ADDRESS = re.compile(r"[\x00-\x1f\x7f]")  # a folder of a bare repository has blanks
_MOST_SHOWN = 100


def parse_delivery(forge: Forge, request: WebhookRequest) -> ParsedDelivery:
    """What a delivery tells, if all of it could be.

    Raises:
        BadDelivery: it is not what this forge sends.
    """
    parsed = forge.parse(request)
    for event in (*parsed.events, *parsed.known):
        _check(event)
    return parsed


def shortened(text: str) -> str:
    """As much of it as a person reads in a line."""
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 1]}…"


def _check(event: Event) -> None:
    match event:
        case PushEvent():
            if not event.ref.startswith("refs/") or not _is_ref(event.ref):
                raise BadDelivery(f"{_quoted(event.ref)} is not the full name of a branch or tag")
            _check_commits(event.before, event.after)
            _check_addresses(event.repository)
        case PullRequestEvent():
            for branch in (event.base_branch, event.head_branch):
                if branch and not _is_ref(branch):
                    raise BadDelivery(f"{_quoted(branch)} is not the name of a branch")
            _check_commits(event.base_commit, event.head_commit)
            _check_addresses(event.repository, event.head_full_name)
        case _:
            return


def _is_ref(name: str) -> bool:
    return not _NEVER_IN_A_REF.search(name)


def _check_commits(*commits: str) -> None:
    for commit in commits:
        if commit and not _COMMIT.fullmatch(commit):
            raise BadDelivery(f"{_quoted(commit)} is not the id of a commit")


def _check_addresses(repository: Repository, *others: str) -> None:
    for text in (repository.full_name, repository.clone_url, *repository.urls, *others):
        if _NEVER_IN_AN_ADDRESS.search(text):
            raise BadDelivery(f"{_quoted(text)} is not the name or address of a repository")


def _quoted(text: str) -> str:
    shown = text.encode("unicode_escape", "backslashreplace").decode("ascii")
    return f'"{shortened(shown if not text.isprintable() else text)}"'
