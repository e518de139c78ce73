"""The part of ``buildrunner serve`` that makes builds of what forges tell."""

from __future__ import annotations

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
        self._remotes = wiring.GitRemotes(settings, context.settings.sources)
        self._reconcile = (
            _reconcile_loop(woken, self._remotes, reconcile_s) if reconcile_s else None
        )

    def start(self) -> None:
        """Begin with what an earlier server left."""
        self._loop.start()
        if self._reconcile is not None:
            self._reconcile.start()

    def stop(self) -> None:
        """Finish what is at hand, and end. Idempotent."""
        if self._reconcile is not None:
            self._reconcile.stop()
        self._remotes.stop()
        self._loop.stop()


def _reconcile_loop(
    context: ServerContext, remotes: wiring.GitRemotes, every_s: float
) -> ReconcileLoop:
    from buildrunner.server.reconcile import ReconcileLoop, Reconciler, RemoteRefs

    remote = RemoteRefs(list_refs=remotes.list_refs, message=remotes.message)
    return ReconcileLoop(Reconciler(context, remote), every_s)


def delivery_loop(context: ServerContext, settings: Settings) -> DeliveryLoop:
    """The loop that handles deliveries; not started."""
    from buildrunner.server.delivery_handling import DeliveryHandler
    from buildrunner.server.delivery_loop import DeliveryLoop
    from buildrunner.server.event_facts import EventFacts
    from buildrunner.server.forge_api import ForgeApi
    from buildrunner.server.outbox_targets import gates

    remotes = wiring.GitRemotes(settings, context.settings.sources)
    api = ForgeApi(context.secrets, gates(context.settings).forges)
    facts = EventFacts(
        files=remotes.changed_files,
        message=remotes.message,
        refs=remotes.list_refs,
        complete=api.complete,
        may_write=api.may_write,
        stop=remotes.stop,
    )
    return DeliveryLoop(context, DeliveryHandler(context, facts))
