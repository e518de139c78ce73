"""The people behind a build: those who started an attempt, pushed, opened or commented.

They are a label of the build, which only the server sets. A retry adds its caller and removes
nobody. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from buildrunner.spec.model.build import Build
from buildrunner.spec.model.source import Source, is_commit
from buildrunner.triggers.events import Event, MessageEvent, PushEvent
from buildrunner.triggers.forges.forge import text

SUBMITTER: Final = "submitter"
"""The label that names the caller, hook or schedule that started a build."""

AUTHOR: Final = "author"
"""The label with the author of a pull request, if known: ``FORGE:LOGIN``."""

COMMENTER: Final = "commenter"
"""The label with the login of the author of the comment that requested a build."""

_PEOPLE: Final = "people"
_ARE_ALL: Final = "people_are_all"  # absent: fail closed


# Source: apps and the web-flow of GitHub; GitLab's "Project access tokens", "Group access tokens",
# and "Service accounts"; the Actions of Gitea and Forgejo.
_BOT = re.compile(
    r"\[bot\]$|^web-flow$|^(?:project|group)_\d+_bot|^service_account_|^(?:gitea|forgejo)-actions$",
    re.IGNORECASE,
)
# Types of users in events: ``sender.type`` of GitHub, ``actor.type`` of Bitbucket.
_PERSON: Final = frozenset({"", "user", "normal"})


class People(msgspec.Struct, frozen=True):
    """The known people behind a build.

    Attributes:
        names: names of tokens, and ``FORGE:LOGIN`` of users of a forge.
        are_all: nobody else is behind the build. Commits that somebody else pushes are the
            pusher's, and a manual run of a commit is its caller's.
    """

    names: tuple[str, ...] = ()
    are_all: bool = False

    def joined_by(self, name: str) -> People:
        """Return these people and one more."""
        return People(tuple(dict.fromkeys((*self.names, name))), self.are_all)

    def include(self, token: str) -> bool:
        """Return whether a token is of one of them. A forge user has the token of that name."""
        logins = {name.rpartition(":")[2].casefold() for name in self.names}
        return token.casefold() in logins

    def labels(self) -> dict[str, str]:
        """Return the labels to store with the build. They replace earlier ones."""
        names = msgspec.json.encode(self.names).decode()
        return {_PEOPLE: names, _ARE_ALL: "yes" if self.are_all else ""}


def caller_alone(name: str) -> People:
    """Return the people behind a build that a caller requests."""
    return People((name,), are_all=True)


def people_of(labels: Mapping[str, str]) -> People:
    """Return the known people behind a stored build. An earlier version stored only some."""
    if labels.get(_PEOPLE):
        names = msgspec.json.decode(labels[_PEOPLE], type=tuple[str, ...])
        return People(names, bool(labels.get(_ARE_ALL)))
    found = (labels.get(name, "") for name in (AUTHOR, COMMENTER, SUBMITTER))
    return People(tuple(dict.fromkeys(filter(None, found))))


def unresolved_ref(build: Build) -> str:
    """Return the branch or tag whose commit is found only when a build begins; empty for none.

    Everybody who pushes to it until then is behind the build.
    """
    source = build.source or Source()
    repo, git, connected = source.repo_source, source.git_source, source.connected_repository
    if repo is not None:
        return "" if repo.commit_sha else repo.branch_name or repo.tag_name or ""
    fetched = git or connected
    if fetched is None or is_commit(fetched.revision):
        return ""
    return fetched.revision or "HEAD"


def people_behind(event: Event) -> People:
    """Return the known people behind an event.

    Those behind a push are known if the forge names its pusher. A missed push has no pusher, and
    a bare repository's hook names an account of its machine, which people may share. Those behind
    a pull request are known when its author opens it: later events don't name earlier pushers. A
    bot, or a pusher who is not the sender of the event, acts for people whom the event lacks.
    """
    if isinstance(event, MessageEvent):
        return People()
    sender = text(event.body, "sender", "login")
    logins: tuple[str, ...]
    if isinstance(event, PushEvent):
        logins, are_all = (event.author, sender), bool(event.author) and not event.repository.bare
        are_all = are_all and sender.casefold() in ("", event.author.casefold())
    else:
        logins = (event.author, event.actor, event.commenter)
        are_all = event.action == "opened" and bool(event.author) and event.author == event.actor
    forge = event.repository.forge
    if forge == "bitbucket":  # users choose and change their nicknames there
        are_all = False
    types = {text(event.body, user, "type").casefold() for user in ("sender", "actor")}
    if not types <= _PERSON or any(map(_BOT.search, logins)):
        are_all = False
    return People(tuple(dict.fromkeys(f"{forge}:{one}" for one in logins if one)), are_all)
