"""One event of a delivery while it is handled. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from buildrunner.server.delivery_retry import is_retry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from buildrunner.store.delivery_store import StoredDelivery
    from buildrunner.triggers.events import Event


class ToldEvent:
    """An event, as far as it was handled.

    Attributes:
        delivery: which tells of it.
        number: its place among the delivery's events.
        event: as the delivery tells it.
        may_wait: whether there is another try after this one.
        decided: what was decided at earlier tries, by trigger.
        waits_for: who does not answer; empty when all is decided.
    """

    def __init__(self, delivery: StoredDelivery, number: int, event: Event, may_wait: bool) -> None:
        self.delivery = delivery
        self.number = number
        self.event = event
        self.may_wait = may_wait
        self.waits_for = ""
        earlier = delivery.outcome.get("events", ()) if is_retry(delivery) else ()
        verdicts = earlier[number]["verdicts"] if number < len(earlier) else ()
        self.decided = {one["triggerId"]: one for one in verdicts if not waits([one])}

    @property
    def key(self) -> str:
        """The same for each try of it, and for nothing else."""
        return f"{self.delivery.number}-{self.delivery.replays}-{self.number}"


def waits(verdicts: Iterable[dict[str, Any]]) -> bool:
    """Whether one of them hangs on an answer that may come."""
    return any(one.get("waitsForAnswer") for one in verdicts)
