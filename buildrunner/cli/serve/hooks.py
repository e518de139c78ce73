"""The part of ``buildrunner serve`` that makes builds of what forges tell."""

from __future__ import annotations

import random

from buildrunner import wiring
from buildrunner.server.context import ServerContext
from buildrunner.server.events.loop import DeliveryLoop
from buildrunner.server.events.reconcile import ReconcileLoop
from buildrunner.server.events.scheduler import Scheduler
from buildrunner.server.http.pinned import gates
from buildrunner.server.notifications.dispatch import NotificationDesk
from buildrunner.server.notifications.words import NotifierWords
from buildrunner.server.outbox.sender import Delivery, OutboxSender
from buildrunner.server.outbox.status_reporter import StatusReporter
from buildrunner.server.services.builds import ApprovalExpiry
from buildrunner.server.services.known_triggers import hook_bindings
from buildrunner.settings import Settings


class ServerHooks:
    """The handler of deliveries, and the search for pushes whose webhook was missed.

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
    from buildrunner.server.events.reconcile import ReconcileLoop, Reconciler, RemoteRefs

    remote = RemoteRefs(list_refs=remotes.list_refs, message=remotes.message, stop=remotes.stop)
    return ReconcileLoop(Reconciler(context, remote), every_s)


def delivery_loop(context: ServerContext, settings: Settings) -> DeliveryLoop:
    """The loop that handles deliveries; not started."""
    from buildrunner.server.events.facts import EventFacts
    from buildrunner.server.events.forge_api import ForgeApi
    from buildrunner.server.events.handling import DeliveryHandler
    from buildrunner.server.events.loop import DeliveryLoop
    from buildrunner.server.http.pinned import gates

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


class ServerLoops:
    """Starts and stops them together. `start` and `stop` once.

    Args:
        context: the server's.
    """

    def __init__(self, context: ServerContext) -> None:
        self._scheduler = Scheduler(context)
        self._approvals = ApprovalExpiry(context)
        self._outbox = OutboxSender(
            context.store,
            Delivery(context.secrets, gates(context.settings), context.clock),
            [
                StatusReporter(context.secrets, lambda: hook_bindings(context.store)),
                NotificationDesk(context),
            ],
            prepared=NotifierWords(context.calls).prepared,
            now=context.clock,
            random=random.random,
        )

    def start(self) -> None:
        """Begin all of them."""
        self._scheduler.start()
        self._approvals.start()
        self._outbox.start()

    def stop(self) -> None:
        """End all of them; what they were about is in the database."""
        self._scheduler.stop()
        self._approvals.stop()
        self._outbox.stop()

    def schedule_changed(self) -> None:
        """A trigger or its settings changed. Cheap."""
        self._scheduler.wake()
