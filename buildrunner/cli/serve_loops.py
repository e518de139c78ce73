"""The loops of ``buildrunner serve`` beside the one that runs builds: clock, outbox, approvals."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from buildrunner.server.approvals import ApprovalExpiry
from buildrunner.server.known_triggers import hook_bindings
from buildrunner.server.notifications.desk import NotificationDesk
from buildrunner.server.notifications.words import NotifierWords
from buildrunner.server.outbox_delivery import Delivery
from buildrunner.server.outbox_sender import OutboxSender
from buildrunner.server.outbox_targets import gates
from buildrunner.server.scheduler import Scheduler
from buildrunner.server.status_reporter import StatusReporter

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext


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
