"""How long to wait between tries of a pull or a push."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PULL_TRIES = 11
PUSH_TRIES = 10
LONGEST_WAIT_S = 60.0
"""How long a registry may make us wait between two tries."""

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
