"""The secrets that forges sign their deliveries with, by hook."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_KEPT_S = 2.0


def secret_name(hook: str) -> str:
    """The secret of a hook: ``hooks-github`` of ``/hooks/github``, ``hooks-git-app`` of git/app."""
    return f"hooks-{hook.replace('/', '-')}"


class HookSecrets:
    """Reads secrets at most every two seconds: a burst of deliveries asks for the same one.

    Thread-safe.

    Args:
        resolve: value of a secret by name. Raises `SecretError`.
        now: a clock that never goes back, in seconds.
    """

    def __init__(
        self, resolve: Callable[[str], str], now: Callable[[], float] = time.monotonic
    ) -> None:
        self._resolve = resolve
        self._now = now
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, str]] = {}

    def is_fresh(self, hook: str) -> bool:
        """Whether `of` answers at once."""
        read_at, value = self._known.get(hook, (0.0, ""))
        return bool(value) and self._now() - read_at < _KEPT_S

    def of(self, hook: str) -> str:
        """The secret of a hook, without white space around it.

        Raises:
            SecretError: there is none.
        """
        with self._lock:
            if self.is_fresh(hook):
                return self._known[hook][1]
            value = self._resolve(secret_name(hook)).strip()
            self._known[hook] = (self._now(), value)
            return value
