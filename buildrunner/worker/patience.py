"""Waiting for a database that does not answer just now."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, TypeVar

from buildrunner.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PATIENCE_S = 60.0
_PAUSE_S = 0.5

_log = logging.getLogger(__name__)


def patiently(ask: Callable[[], T], *, patience_s: float = PATIENCE_S) -> T:
    """What ``ask`` returns, asked again while the database does not answer.

    A build's process that gave up at once would use up the build's tries on a restart.

    Raises:
        StoreUnavailable: it did not answer for ``patience_s`` seconds.
    """
    end = time.monotonic() + patience_s
    while True:
        try:
            return ask()
        except StoreUnavailable as error:
            if time.monotonic() >= end:
                raise
            _log.warning("the database does not answer yet: %s", error)
        time.sleep(_PAUSE_S)
