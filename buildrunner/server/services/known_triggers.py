"""The triggers of a server with their settings and repositories, and what hooks are bound to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from buildrunner.errors import ConfigError, NotFound
from buildrunner.server.context import ServerContext
from buildrunner.spec.model import git_address
from buildrunner.spec.model.trigger import BuildTrigger
from buildrunner.spec.reading.decode import decode_message
from buildrunner.store.build_store import Document
from buildrunner.store.sql.store import ServerStore
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.hook_binding import BARE, PUBSUB, HookBinding, unbound
from buildrunner.triggers.repository import TriggerRepository, trigger_repository
from buildrunner.triggers.settings import TriggerSettings, read_settings

_UNREADABLE: Final = "set the trigger's settings again, or update this server"


class KnownTrigger(msgspec.Struct, frozen=True, kw_only=True):
    """A trigger and all that decides what fires it.

    Attributes:
        project: the trigger's project.
        document: the BuildTrigger as it is stored.
        trigger: the same, decoded.
        set_beside: its settings as they are stored.
        settings: the same, decoded.
        repository: the repository that it listens to; None for a trigger that listens to none.
    """

    project: str
    document: dict[str, Any]
    trigger: BuildTrigger
    set_beside: dict[str, Any]
    settings: TriggerSettings
    repository: TriggerRepository | None


class KnownTriggers:
    """Reads all triggers anew each time, and decodes those that have changed. Thread-safe.

    Each delivery asks all of them, and few of them change in between.

    Args:
        store: has them.
        repositories: where connected repositories are: name -> URL.
    """

    def __init__(self, store: ServerStore, repositories: Mapping[str, str]) -> None:
        self._store = store
        self._repositories = repositories
        self._decoded: dict[tuple[str, str], KnownTrigger] = {}
        self._bare: dict[str, str] = {}

    def all(self) -> list[KnownTrigger]:
        """The triggers of all projects, as they are now.

        Raises:
            StoreError: the database fails.
        """
        bare = bare_repositories(self._store)
        before, found = self._decoded if bare == self._bare else {}, {}
        for project, document, settings in self._store.triggers.every():
            key = (project, str(document["id"]))
            known = before.get(key)
            if known is None or known.document != document or known.set_beside != settings:
                known = _known(project, document, settings, self._repositories, bare)
            found[key] = known
        self._decoded, self._bare = found, bare
        return list(found.values())


def known_trigger(context: ServerContext, project: str, document: Document) -> KnownTrigger:
    """One trigger as `KnownTriggers` has it.

    Raises:
        StoreError: the database fails.
    """
    settings = context.store.triggers.settings(project, document["id"])
    bare = bare_repositories(context.store)
    return _known(project, document, settings, context.repositories, bare)


def hook_bindings(store: ServerStore) -> dict[str, HookBinding]:
    """Return the bindings of all hooks, by their names."""
    stored = store.hooks.all()
    return {name: msgspec.convert(document, HookBinding) for name, document in stored.items()}


def hook_binding(store: ServerStore, hook: str) -> HookBinding | None:
    """Return the binding of a hook; None if it is bound to nothing."""
    try:
        return msgspec.convert(store.hooks.get(hook), HookBinding)
    except NotFound:
        return None


def bare_repositories(store: ServerStore) -> dict[str, str]:
    """Where bare repositories with a hook are: name -> URL."""
    return {
        name.partition("/")[2]: one.repository
        for name, one in hook_bindings(store).items()
        if name.partition("/")[0] == BARE
    }


def _known(
    project: str,
    document: Document,
    set_beside: Document,
    repositories: Mapping[str, str],
    bare: Mapping[str, str],
) -> KnownTrigger:
    trigger = decode_message(BuildTrigger, document).value
    try:
        settings = read_settings(set_beside)
        wrong = ""
    except ConfigError as error:  # stored by another version
        settings, wrong = TriggerSettings(), f"its settings can't be read: {error}"
    repository = trigger_repository(trigger, settings.forge, repositories=repositories, bare=bare)
    if repository is not None and wrong:  # they name its forge: no other one may stand in for that
        repository = TriggerRepository(name=repository.name, problem=wrong, hint=_UNREADABLE)
    return KnownTrigger(
        project=project,
        document=document,
        trigger=trigger,
        set_beside=set_beside,
        settings=settings,
        repository=repository,
    )


def trigger_problems(store: ServerStore, repositories: Mapping[str, str]) -> list[str]:
    """Triggers that nothing can fire, and hooks that fire nothing; one sentence with its cure each.

    Args:
        store: of the server.
        repositories: where connected repositories are: name -> URL.

    Raises:
        StoreError: the database fails.
    """
    found = []
    for one in KnownTriggers(store, repositories).all():
        if one.trigger.disabled:
            continue
        where = f"trigger {one.trigger.name} of project {one.project} can't fire"
        if one.repository is not None and one.repository.problem:
            found.append(f"{where}: {one.repository.problem}; {one.repository.hint}")
        else:
            passwords = git_address.trigger_problems(one.document)
            found += [f"{where}: {problem.text()}" for problem in passwords]
    bound = store.hooks.all()
    heard = forge_hooks(store.hooks.heard())
    return found + [unbound(hook) for hook in sorted(heard) if hook not in bound]


def forge_hooks(names: Iterable[str]) -> list[str]:
    """Return the hooks that must be bound: of forges and topics, not of webhook triggers."""
    return [
        name
        for name in names
        if (kind := name.partition("/")[0]) == PUBSUB or (kind in FORGES and kind != BARE)
    ]
