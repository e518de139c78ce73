"""Triggers, decoded, with their settings and the repositories that they listen to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from buildrunner.errors import ConfigError, NotFound
from buildrunner.spec.decode import decode_message
from buildrunner.spec.trigger import BuildTrigger
from buildrunner.triggers.hook_binding import BARE, HookBinding
from buildrunner.triggers.trigger_repository import TriggerRepository, trigger_repository
from buildrunner.triggers.trigger_settings import TriggerSettings, read_settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.server.context import ServerContext
    from buildrunner.store.build_store import Document
    from buildrunner.store.delivery_store import DeliveryStore


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

    def __init__(self, store: DeliveryStore, repositories: Mapping[str, str]) -> None:
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
        for project, document, settings in self._store.every_trigger():
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
    settings = context.store.trigger_settings(project, document["id"])
    bare = bare_repositories(context.store)
    return _known(project, document, settings, context.repositories, bare)


def hook_bindings(store: DeliveryStore) -> dict[str, HookBinding]:
    """What hooks are bound to, by their names."""
    stored = store.list_hooks()
    return {name: msgspec.convert(document, HookBinding) for name, document in stored.items()}


def hook_binding(store: DeliveryStore, hook: str) -> HookBinding | None:
    """What a hook is bound to; None if it is bound to nothing."""
    try:
        return msgspec.convert(store.get_hook(hook), HookBinding)
    except NotFound:
        return None


def bare_repositories(store: DeliveryStore) -> dict[str, str]:
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
