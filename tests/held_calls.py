"""Calls that a test holds: work that takes long, and a thread for each call."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Self

import pytest


class HeldCalls:
    """Holds calls of functions. They go on at the end of the ``with`` block.

    A held call fails after a minute. The functions stay replaced until the end of the test.
    """

    def __init__(self) -> None:
        self._begun = threading.Semaphore(0)
        self._go_on = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._go_on.set()

    def hold(
        self,
        monkeypatch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        only: Callable[..., bool] = lambda *_, **__: True,
    ) -> None:
        """Replace a function of a class or module by one that waits.

        Args:
            monkeypatch: puts the function back.
            owner: the class or module.
            name: the function's name.
            only: returns whether a call with these arguments is held.
        """
        real = getattr(owner, name)

        def held(*args: Any, **more: Any) -> Any:
            if only(*args, **more):
                self._begun.release()
                assert self._go_on.wait(60)
            return real(*args, **more)

        monkeypatch.setattr(owner, name, held)

    def until(self, number: int) -> None:
        """Wait until that many calls more are held."""
        for _ in range(number):
            assert self._begun.acquire(timeout=30)

    def has_more(self) -> bool:
        """Return whether a call is held that `until` has not counted."""
        return self._begun.acquire(blocking=False)
