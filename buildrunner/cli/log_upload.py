"""The finished log on its way to ``logsBucket``."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner.artifacts.stored_log import store_log
from buildrunner.errors import StorageError
from buildrunner.spec.model_results import Priority, Warning_

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.spec.model import Build
    from buildrunner.storage.stores import Stores

_LOOK_S = 0.2
_PATIENCE_S = 120.0
_HURRY_S = 3.0


def with_stored_log(build: Build, stores: Stores, path: str, hurry: Callable[[], bool]) -> Build:
    """Store the log; the build, with a warning when that was impossible.

    What the build made is made: its status stays, and so does ``failureInfo``, which is for builds
    that fail.

    Args:
        build: finished.
        stores: which store has the bucket.
        path: the log's file.
        hurry: tells when nobody wants to wait for it.
    """
    failure = _failure(build, stores, path, hurry)
    if failure is None:
        return build
    text = f"the log is not in {build.logs_bucket}: {failure}"
    warning = Warning_(text=text, priority=Priority.WARNING)
    return replace(build, warnings=(*build.warnings, warning))


def _failure(
    build: Build, stores: Stores, path: str, hurry: Callable[[], bool]
) -> StorageError | None:
    """Why it is not stored; None when it is. A server that never answers holds up nobody."""
    results: list[StorageError | None] = []

    def work() -> None:
        try:
            store_log(stores, build, path, retried=_say_again)
            results.append(None)
        except StorageError as error:
            results.append(error)

    thread = threading.Thread(target=work, name="log-upload", daemon=True)
    thread.start()
    waited = 0.0
    while thread.is_alive() and waited < (_HURRY_S if hurry() else _PATIENCE_S):
        thread.join(_LOOK_S)
        waited += _LOOK_S
    return results[0] if results else StorageError("it takes too long to store it")


def _say_again(error: StorageError) -> None:
    with suppress(OSError):  # the terminal may be gone
        sys.stderr.write(f"Trying again: {error}\n")
