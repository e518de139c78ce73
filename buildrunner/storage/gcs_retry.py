"""How often, and for how long, calls of Google's client are tried again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from buildrunner.retry_after import LONGEST_WAIT_S
from buildrunner.storage.gcs_errors import is_untrusted, status_of, wait_asked_for

if TYPE_CHECKING:
    from collections.abc import Callable

_RETRY_S = 45.0
_UNREACHABLE_S = 12.0  # for a server that has never answered: it may not be there at all


class Patience:
    """What is known of one server: whether it ever answered. Used from any thread."""

    def __init__(self) -> None:
        self._patience_s = _UNREACHABLE_S

    @property
    def is_lost(self) -> bool:
        """Whether the server was given up before it has ever answered."""
        return not self._patience_s

    def answered(self) -> None:
        """The server has answered something."""
        self._patience_s = _RETRY_S

    def retry(self, tell: Callable[[Exception], None]) -> Any:
        """How often a call is tried: for long, but not with a server that was never there.

        What a busy server asks us to wait does not count, up to a minute.

        Args:
            tell: told of each error that another try follows.
        """
        from google.cloud.storage.retry import DEFAULT_RETRY

        begun, waited_s = time.monotonic(), 0.0
        until = begun + self._patience_s

        def between_tries(error: Exception) -> None:
            nonlocal waited_s
            if is_untrusted(error):
                raise error
            if status_of(error):
                self.answered()
            elif self._patience_s < _RETRY_S and time.monotonic() >= until:
                self._patience_s = 0.0  # whatever comes next is tried once
                raise error
            asked_s = wait_asked_for(error)
            waited_s += asked_s
            if waited_s > LONGEST_WAIT_S or time.monotonic() - begun > _RETRY_S + waited_s:
                raise error
            tell(error)
            time.sleep(asked_s)

        tries = DEFAULT_RETRY.with_delay(initial=0.5, maximum=8.0, multiplier=2.0)
        tries = tries.with_timeout(_RETRY_S + LONGEST_WAIT_S)
        return lambda call: tries(call, on_error=between_tries)
