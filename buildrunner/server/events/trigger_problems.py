"""What an administrator must do before triggers and hooks work: told at the server's start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from buildrunner.server.events.record import KnownTriggers
from buildrunner.spec.model import git_address
from buildrunner.store.sql.store import ServerStore
from buildrunner.triggers.forges.catalog import FORGES
from buildrunner.triggers.hook_binding import BARE, PUBSUB, unbound


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
    """Those of the hooks that must be bound: of forges and topics, not of webhook triggers."""
    return [
        name
        for name in names
        if (kind := name.partition("/")[0]) == PUBSUB or (kind in FORGES and kind != BARE)
    ]
