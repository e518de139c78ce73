"""The loops of ``serve``: deliveries, missed pushes, schedules, approvals, outbox, Jobs."""

from __future__ import annotations

import random

from buildrunner import wiring
from buildrunner.server.context import ServerContext
from buildrunner.server.events.facts import EventFacts, ForgeApi
from buildrunner.server.events.handling import DeliveryHandler
from buildrunner.server.events.loop import DeliveryLoop
from buildrunner.server.events.reconcile import ReconcileLoop, Reconciler, RemoteRefs
from buildrunner.server.events.scheduler import Scheduler
from buildrunner.server.http.pinned import gates
from buildrunner.server.notifications.dispatch import NotificationService, NotifierEvaluation
from buildrunner.server.outbox.sender import Delivery, OutboxSender
from buildrunner.server.outbox.status_reporter import StatusReporter
from buildrunner.server.services.builds import ApprovalExpiry
from buildrunner.server.services.provisioner import Provisioner
from buildrunner.server.services.triggers import hook_bindings
from buildrunner.settings import Settings


def delivery_loop(context: ServerContext, settings: Settings) -> DeliveryLoop:
    """Return the loop that handles deliveries; not started."""
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
    """All loops of a server. The signals of the context wake them. `start` and `stop` once.

    Args:
        context: the server's.
        settings: credentials for Git servers.
        reconcile_s: seconds between two checks of the repositories; 0 disables them.
        provisioner: makes the Jobs of builds; None without pools on Kubernetes.
    """

    def __init__(
        self,
        context: ServerContext,
        settings: Settings,
        reconcile_s: float,
        provisioner: Provisioner | None = None,
    ) -> None:
        self._provisioner = provisioner
        self._scheduler = Scheduler(context)
        self._approvals = ApprovalExpiry(context)
        outbox, service = context.store.outbox, NotificationService(context)
        self._outbox = OutboxSender(
            context.store,
            Delivery(context.secrets, gates(context.settings), context.clock),
            [
                StatusReporter(
                    context.secrets, lambda: hook_bindings(context.store), outbox.changed_build
                ),
                service,
            ],
            prepared=NotifierEvaluation(context.calls, service.argument_of).prepared,
            now=context.clock,
            random=random.random,
        )
        self._deliveries = delivery_loop(context, settings)
        self._remotes = wiring.GitRemotes(settings, context.settings.sources)
        self._reconcile: ReconcileLoop | None = None
        if reconcile_s:
            remote = RemoteRefs(
                list_refs=self._remotes.list_refs,
                message=self._remotes.message,
                stop=self._remotes.stop,
            )
            self._reconcile = ReconcileLoop(Reconciler(context, remote), reconcile_s)
        self._changes = context.store.listener(self._builds_changed)
        self._wake_worker = context.wake
        if provisioner is not None:
            context.wake.connect(provisioner.wake)
        context.schedule_changed.connect(self._scheduler.wake)
        context.hook_arrived.connect(self._deliveries.wake)

    def start(self) -> None:
        """Start all loops; they begin with the work of an earlier server."""
        self._changes.start()
        self._scheduler.start()
        self._approvals.start()
        self._outbox.start()
        self._deliveries.start()
        if self._reconcile is not None:
            self._reconcile.start()
        if self._provisioner is not None:
            self._provisioner.start()

    def stop(self) -> None:
        """Finish the current work and stop. The rest is in the database. Idempotent."""
        self._changes.stop()
        if self._provisioner is not None:
            self._provisioner.stop()
        if self._reconcile is not None:
            self._reconcile.stop()
        self._remotes.stop()
        self._deliveries.stop()
        self._scheduler.stop()
        self._approvals.stop()
        self._outbox.stop()

    def _builds_changed(self) -> None:
        """Check at once, since another server or a build's process has changed a build."""
        self._wake_worker()
        self._outbox.wake()
