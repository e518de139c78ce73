"""The part of ``buildrunner serve`` that makes builds of what forges tell."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from buildrunner import wiring

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext
    from buildrunner.server.delivery_loop import DeliveryLoop
    from buildrunner.server.reconcile import ReconcileLoop
    from buildrunner.settings import Settings


class ServerHooks:
    """What handles deliveries, and what looks for pushes that nobody told of.

    Args:
        context: the server's; its ``hook_arrived`` does not count.
        settings: credentials for Git servers.
        reconcile_s: pause between two looks at the repositories; 0: never.
    """

    def __init__(self, context: ServerContext, settings: Settings, reconcile_s: float) -> None:
        from msgspec.structs import replace

        self._loop = delivery_loop(context, settings)
        self.wake = self._loop.wake
        woken = replace(context, hook_arrived=self.wake)
        self._reconcile = _reconcile_loop(woken, settings, reconcile_s) if reconcile_s else None

    def start(self) -> None:
        """Begin with what an earlier server left."""
        self._loop.start()
        if self._reconcile is not None:
            self._reconcile.start()

    def stop(self) -> None:
        """Finish what is at hand, and end. Idempotent."""
        if self._reconcile is not None:
            self._reconcile.stop()
        self._loop.stop()


def _reconcile_loop(context: ServerContext, settings: Settings, every_s: float) -> ReconcileLoop:
    from buildrunner.server.reconcile import ReconcileLoop, Reconciler, RemoteRefs

    remotes = wiring.GitRemotes(settings, context.settings.sources)
    cancel = threading.Event()
    remote = RemoteRefs(
        list_refs=lambda url: remotes.list_refs(url, cancel),
        message=lambda url, commit: remotes.message(url, commit, cancel),
    )
    return ReconcileLoop(Reconciler(context, remote), every_s)


def delivery_loop(context: ServerContext, settings: Settings) -> DeliveryLoop:
    """The loop that handles deliveries; not started."""
    from buildrunner.server.delivery_handling import DeliveryHandler
    from buildrunner.server.delivery_loop import DeliveryLoop
    from buildrunner.server.event_facts import EventFacts
    from buildrunner.server.forge_api import ForgeApi

    remotes = wiring.GitRemotes(settings, context.settings.sources)
    cancel = threading.Event()

    def files(url: str, old: str, new: str, from_merge_base: bool) -> tuple[str, ...]:
        return remotes.changed_files(url, old, new, from_merge_base, cancel)

    api = ForgeApi(context.secret, context.settings.sources)
    facts = EventFacts(
        files=files,
        message=lambda url, commit: remotes.message(url, commit, cancel),
        refs=lambda url: remotes.list_refs(url, cancel),
        complete=api.complete,
        may_write=api.may_write,
    )
    return DeliveryLoop(context, DeliveryHandler(context, facts))
