"""Receivers that do not answer are left alone for a while: others must not wait behind them.

A receiver that hangs holds a sender until its time is up. After that none of its messages is tried
for a moment, which grows up to a minute.
"""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

if TYPE_CHECKING:
    from buildrunner.store.outbox_store import Message

FIRST_REST: Final = timedelta(seconds=5)
LONGEST_REST: Final = timedelta(minutes=1)
_MOST_DOUBLINGS: Final = 8


class Rest(msgspec.Struct, frozen=True):
    """A receiver's rest: how long, after how many failures, and why."""

    until: datetime
    failures: int
    why: str


class Rests:
    """All of them. Thread-safe; kept by one process, for itself."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rests: dict[str, Rest] = {}

    def of(self, receiver: str, now: datetime) -> Rest | None:
        """The rest that a receiver has now; None for none."""
        rest = self._rests.get(receiver)
        return rest if rest is not None and rest.until > now else None

    def begin(self, receiver: str, now: datetime, why: str) -> None:
        """It does not answer. What was on its way at the same time counts once."""
        with self._lock:
            before = self._rests.get(receiver)
            if before is not None and before.until > now:
                return
            failures = before.failures + 1 if before is not None else 1
            length = FIRST_REST * (1 << min(failures - 1, _MOST_DOUBLINGS))
            self._rests[receiver] = Rest(now + min(length, LONGEST_REST), failures, why)

    def end(self, receiver: str) -> None:
        """It answers, whatever it says."""
        with self._lock:
            self._rests.pop(receiver, None)


def receiver_of(message: Message) -> str:
    """Who must answer: a host with its port, or the secret that has its address."""
    call = message.message
    address = str(call.get("url_secret", "") or urlsplit(str(call.get("url", ""))).netloc)
    return address or f"{call.get('server', '')}:{call.get('port', '')}"
