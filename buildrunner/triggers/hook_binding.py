"""The binding of a hook: a forge's host and owners, a bare repository, or a topic. Pure.

Every sender with a hook's secret can sign any payload. The server's admin sets the binding, which
no payload can change. Events of other repositories are refused, and every address is computed from
the bound host.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError, UsageError
from buildrunner.problem import Problem
from buildrunner.spec.model.git_address import has_password
from buildrunner.triggers.events import Event, MessageEvent, PullRequestEvent, PushEvent, Repository
from buildrunner.triggers.forge_host import (
    PUBLIC,
    ForgeHost,
    is_full_name,
    named_forge,
    repository_key,
)
from buildrunner.triggers.forges.forge import BadDelivery, ParsedDelivery

ANY: Final = "*"
"""The owner that matches all owners of the host."""

_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHORT_COMMIT: Final = re.compile(r"[0-9a-f]{7,64}")
_MOST_SHOWN: Final = 100

BARE: Final = "git"
PUBSUB: Final = "pubsub"


class HookBinding(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename="camel",
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """The repositories and projects of a hook.

    Attributes:
        host: host or URL of the forge; empty for the public one of the hook's kind.
        owners: owners, groups or single repositories (``acme``, ``group/sub``, ``acme/app``) whose
            events count; ``*`` for all of the host.
        projects: projects whose triggers the hook may fire; empty for all.
        repository: of ``git/NAME``: URL from which Git fetches the repository.
        topic: of ``pubsub/NAME``: full name of the topic, ``projects/P/topics/T``.
    """

    host: str = ""
    owners: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()
    repository: str = ""
    topic: str = ""

    def allows_project(self, project: str) -> bool:
        """Return whether the hook may fire triggers of a project."""
        return not self.projects or project in self.projects


def read_binding(hook: str, document: Any) -> HookBinding:
    """Read a binding from a document, and complete its host.

    Args:
        hook: ``gitea``, ``github/acme``, ``git/app``, ``pubsub/deploy``.
        document: camelCase fields of `HookBinding`.

    Raises:
        ConfigError: the binding is invalid.
    """
    try:
        binding = msgspec.convert(document, HookBinding)
    except msgspec.ValidationError as error:
        raise _refused("", str(error)) from error
    kind, _, name = hook.partition("/")
    if kind == BARE:
        return _of_bare_repository(hook, name, binding)
    if kind == PUBSUB:
        return _of_topic(binding)
    try:
        host = named_forge(kind, binding.host)
    except UsageError as error:
        raise _refused("host", str(error), error.hint) from error
    _only(binding, "host", "owners", "projects")
    if not (binding.owners or binding.projects):
        raise _refused(
            "owners",
            "a hook needs owners on the forge, or projects of this server",
            f"every sender with its secret can fire their triggers; {ANY} matches all owners",
        )
    for owner in binding.owners:
        if owner != ANY and not is_full_name(f"{owner}/x"):
            raise _refused("owners", f"{owner!r} is no owner, group or repository")
    return replace(binding, host=host.url)


def bound(parsed: ParsedDelivery, hook: str, binding: HookBinding) -> ParsedDelivery:
    """Return a delivery whose repositories are bound to its hook, with computed addresses.

    Raises:
        BadDelivery: the hook is not bound to a repository of the delivery.
    """
    kind, _, name = hook.partition("/")
    if kind == PUBSUB:
        return parsed
    if kind == BARE:
        return _map(parsed, lambda event: _bound_bare(event, name, binding))
    try:
        host = named_forge(kind, binding.host)
    except UsageError as error:  # an earlier version accepted it
        raise BadDelivery(f"the hook {hook} is bound to {binding.host}: {error}") from error
    return _map(parsed, lambda event: _bound_to(event, hook, host, binding))


def _check_commits(event: PushEvent | PullRequestEvent) -> None:
    """Refuse other names: Git would take the name of a branch or tag in place of a commit."""
    if isinstance(event, PushEvent):
        form, named = _COMMIT, (event.before, event.after)
    else:
        form, named = _SHORT_COMMIT, (event.head_commit, event.base_commit)
    for commit in named:
        if commit.strip("0") and not form.fullmatch(commit):
            raise BadDelivery(f"{commit[:_MOST_SHOWN]!r} is not the name of a commit")


def _bound_bare(event: Event, name: str, binding: HookBinding) -> Event:
    assert isinstance(event, PushEvent)  # noqa: S101  (such a hook reports only pushes)
    reported = event.repository
    if reported.full_name != name:
        raise BadDelivery(f"the hook of {name} may not report {reported.full_name}")
    _check_commits(event)
    if repository_key(reported.clone_url) != repository_key(binding.repository):
        raise BadDelivery(
            f"the hook {BARE}/{name} is bound to the repository at {binding.repository}, and the"
            " delivery is about another one; if it moved, bind the hook again:"
            f" `buildrunner hooks set {BARE}/{name} --repository URL`"
        )
    return replace(event, repository=replace(reported, clone_url=binding.repository))


def _bound_to(event: Event, hook: str, host: ForgeHost, binding: HookBinding) -> Event:
    assert not isinstance(event, MessageEvent)  # noqa: S101  (forges send none)
    reported = event.repository
    name = reported.full_name
    if not is_full_name(name):
        raise BadDelivery(f"{name!r} is not the full name of a repository")
    _check_commits(event)
    elsewhere = next(
        (url for url in (reported.clone_url, *reported.urls) if _is_web(url, host)), ""
    )
    if elsewhere:
        raise BadDelivery(
            f"the hook {hook} is bound to {host.url}, and the payload is about"
            f" {repository_key(elsewhere)}; if that is its forge:"
            f" `buildrunner hooks set {hook} --host URL`"
        )
    if binding.owners and not any(_owns(owner, name) for owner in binding.owners):
        raise BadDelivery(
            f"the hook {hook} is bound to {', '.join(binding.owners)}, and {name} is none of them;"
            f" to allow it: `buildrunner hooks set {hook} --owner OWNER`"
        )
    repository = on_host(reported, host)
    if isinstance(event, PushEvent):
        return replace(event, repository=repository)
    return replace(event, repository=repository, head_clone_url=_head(event, host))


def may_speak_for(
    hooks: Mapping[str, HookBinding], host: ForgeHost, full_name: str, project: str
) -> bool:
    """Return whether a project may report commit statuses to a repository.

    The bindings of hooks assign owners to projects. If no binding names the repository's owner, or
    one names it for all projects, every project may report to it.

    Args:
        hooks: the bindings of hooks, by name.
        host: the forge.
        full_name: full name of the repository.
        project: the project.
    """
    if not is_full_name(full_name):  # `x/../owner/name` would lead to another repository
        return False
    mine = [
        binding
        for hook, binding in hooks.items()
        if hook.partition("/")[0] not in (BARE, PUBSUB)
        and repository_key(binding.host) == host.key
        and any(_owns(owner, full_name) for owner in binding.owners)
    ]
    return not mine or any(binding.allows_project(project) for binding in mine)


def on_host(reported: Repository, host: ForgeHost) -> Repository:
    """Return a repository on a forge, with the addresses computed from its name."""
    url = host.clone_url(reported.full_name)
    return replace(reported, forge=host.kind, host=host, clone_url=url, urls=())


def _head(event: PullRequestEvent, host: ForgeHost) -> str:
    name = event.head_full_name
    if name and not is_full_name(name):
        raise BadDelivery(f"{name!r} is not the full name of a repository")
    return host.clone_url(name) if name else ""


def _is_web(url: str, host: ForgeHost) -> bool:
    """Return whether an address is an http(s) URL of another host."""
    return url.lower().startswith(("https://", "http://")) and not host.has(url)


def _owns(owner: str, full_name: str) -> bool:
    if owner == ANY:
        return True
    mine, name = repository_key(owner), repository_key(full_name)
    return name == mine or name.startswith(f"{mine}/")


def _map(parsed: ParsedDelivery, change: Any) -> ParsedDelivery:
    return replace(
        parsed, events=tuple(map(change, parsed.events)), known=tuple(map(change, parsed.known))
    )


def _of_bare_repository(hook: str, name: str, binding: HookBinding) -> HookBinding:
    if not name:
        raise _refused("", "the hook of a bare repository has a name: git/NAME")
    _only(binding, "repository", "projects")
    if not binding.repository:
        raise _refused("repository", f"{hook} needs the URL that Git fetches the repository from")
    if has_password(binding.repository):
        raise _refused(
            "repository",
            "the URL holds a password",
            "credentials belong into [git.tokens] of the server's settings",
        )
    return binding


def _of_topic(binding: HookBinding) -> HookBinding:
    _only(binding, "topic", "projects")
    parts = binding.topic.split("/")
    if len(parts) != 4 or (parts[0], parts[2]) != ("projects", "topics") or "" in parts:
        raise _refused("topic", "the full name of the topic: projects/PROJECT/topics/NAME")
    return binding


def _only(binding: HookBinding, *fields: str) -> None:
    for name in binding.__struct_fields__:
        if name not in fields and getattr(binding, name):
            raise _refused(name, "a hook of this kind has none")


def _refused(path: str, message: str, hint: str = "") -> ConfigError:
    return ConfigError([Problem(message, path=path, hint=hint, rule="hook-binding")])


def unbound(hook: str) -> str:
    """Return why deliveries of a hook without a binding fire nothing, and the remedy."""
    kind, _, name = hook.partition("/")
    flags = "--host https://HOST --owner OWNER" if kind not in PUBLIC else "--owner OWNER"
    if kind == BARE:
        flags = "--repository URL"
    if kind == PUBSUB:
        flags = f"--topic projects/PROJECT/topics/{name or 'NAME'}"
    return (
        f"the hook {hook} is bound to nothing, so that it fires nothing:"
        f" `buildrunner hooks set {hook} {flags}`"
    )
