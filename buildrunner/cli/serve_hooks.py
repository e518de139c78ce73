"""The part of ``buildrunner serve`` that makes builds of what forges tell."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from buildrunner import wiring

if TYPE_CHECKING:
    from buildrunner.server.context import ServerContext
    from buildrunner.server.delivery_loop import DeliveryLoop
    from buildrunner.settings import Settings


def delivery_loop(context: ServerContext, settings: Settings) -> DeliveryLoop:
    """The loop that handles deliveries; not started."""
    from buildrunner.server.delivery_handling import DeliveryHandler, EventFacts
    from buildrunner.server.delivery_loop import DeliveryLoop

    remotes = wiring.GitRemotes(settings, context.settings.sources)
    cancel = threading.Event()

    def files(url: str, old: str, new: str, from_merge_base: bool) -> tuple[str, ...]:
        return remotes.changed_files(url, old, new, from_merge_base, cancel)

    return DeliveryLoop(context, DeliveryHandler(context, EventFacts(files=files)))
