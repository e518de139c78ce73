"""How long to wait between tries of a pull or a push."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PULL_TRIES = 11
PUSH_TRIES = 10
LONGEST_WAIT_S = 60.0
"""How long a registry may make us wait between two tries."""

_FEW_TRIES = 4
_PATIENCE_S = 120.0
_FIRST_S = 0.5
_FACTOR = 1.3
_CAP_S = 10.0
_JITTER = 0.4


def backoff_delays(tries: int, chance: Callable[[], float]) -> Iterator[float]:
    """Seconds to wait before the second, third, ... of ``tries`` tries.

    Source: the local builder (0.5 s times 1.3 per retry, at most 10 s, minus up to 40 %).

    Args:
        tries: how many tries there are in all.
        chance: gives a random number from 0 to 1.
    """
    delay = _FIRST_S
    for _ in range(tries - 1):
        delay = min(delay * _FACTOR, _CAP_S)
        yield delay * (1 - _JITTER * chance())


class Patience:
    """How long a registry that keeps failing is tried, whatever the number of tries.

    A try of a push takes the engine most of a minute when the registry fails at every layer: ten of
    them are more than anybody wants to wait for. A few are made in any case, for one that has much
    to send may take long. What the registry asked to wait does not count.
    """

    def __init__(self) -> None:
        self._first_failure_s: float | None = None
        self._asked_s = 0.0

    def ended(self, tries: int, now_s: float) -> bool:
        """Whether the failure of the try number ``tries`` was the last that is borne."""
        if self._first_failure_s is None:
            self._first_failure_s = now_s
        waited_s = now_s - self._first_failure_s - self._asked_s
        return tries >= _FEW_TRIES and waited_s > _PATIENCE_S

    def asked_to_wait(self, seconds: float) -> None:
        """Know that so much is waited because the registry wants it."""
        self._asked_s += seconds
