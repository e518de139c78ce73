"""When a delivery that waits for somebody's answer is tried again. Pure.

Source: ours. A forge that is down for hours must not lose a comment that asks for a build.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final

from buildrunner.spec.writing import encode_instant
from buildrunner.store.model.deliveries import WAITING, StoredDelivery

FIRST_PAUSE: Final = timedelta(seconds=30)
LONGEST_PAUSE: Final = timedelta(minutes=10)
GIVE_UP_AFTER: Final = timedelta(days=1)


def is_retry(delivery: StoredDelivery) -> bool:
    """Whether it was handled in part, and waited."""
    return delivery.status == WAITING


def next_try(delivery: StoredDelivery, now: datetime) -> dict[str, Any]:
    """What is kept of a try that was in vain: ``tries``, ``since``, ``at``; empty after a day."""
    before = delivery.outcome.get("retry", {}) if is_retry(delivery) else {}
    since = datetime.fromisoformat(before["since"]) if before else now
    if now - since >= GIVE_UP_AFTER:
        return {}
    tries = before.get("tries", 0) + 1
    pause = min(FIRST_PAUSE * 2 ** min(tries - 1, 10), LONGEST_PAUSE)
    at = min(now + pause, since + GIVE_UP_AFTER)
    return {"tries": tries, "since": encode_instant(since), "at": encode_instant(at)}


def tried_again_at(outcome: dict[str, Any]) -> datetime | None:
    """When what a delivery came to so far is to be completed; None: that is all of it."""
    retry = outcome.get("retry")
    return datetime.fromisoformat(retry["at"]) if retry else None
