"""The loops of ``buildrunner serve`` beside the one that runs builds: the clock, the outbox."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.server.scheduler import Scheduler

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext


class ServerLoops:
    """Starts and stops them together. `start` and `stop` once.

    Args:
        context: the server's.
    """

    def __init__(self, context: ServerContext) -> None:
        self._scheduler = Scheduler(context)

    def start(self) -> None:
        """Begin all of them."""
        self._scheduler.start()

    def stop(self) -> None:
        """End all of them; what they were about is in the database."""
        self._scheduler.stop()

    def schedule_changed(self) -> None:
        """A trigger or its settings changed. Cheap."""
        self._scheduler.wake()
