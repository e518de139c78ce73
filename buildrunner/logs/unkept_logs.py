"""Logs of builds that want none kept (``logging: NONE``): shown while they run, then removed."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from buildrunner.errors import StoreError
from buildrunner.logs.log_file import log_folder
from buildrunner.logs.retention import remove_log

if TYPE_CHECKING:
    from datetime import datetime

# Whoever watches a build to its end reads the last lines a moment after it.
GRACE = timedelta(seconds=10)
_REASON = "its options say logging: NONE"


class UnkeptLogs:
    """Knows which logs are to go soon. Thread-safe.

    Args:
        data_folder: where all builds are.
    """

    def __init__(self, data_folder: str) -> None:
        self._data_folder = data_folder
        self._ended: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def ended(self, document: dict[str, Any], at: datetime) -> None:
        """A build has ended at a time; most keep their log."""
        if document.get("options", {}).get("logging") == "NONE":
            with self._lock:
                self._ended[document["id"]] = at

    def remove_due(self, now: datetime) -> list[str]:
        """Remove the logs of builds that ended `GRACE` before ``now``; their ids.

        Raises:
            StoreError: one can't be removed; it is tried again next time.
        """
        with self._lock:
            due = [build_id for build_id, at in self._ended.items() if now - at >= GRACE]
        failure: StoreError | None = None
        removed = []
        for build_id in due:
            try:
                remove_log(log_folder(self._data_folder, build_id), _REASON, now=now)
            except StoreError as error:
                failure = error
                continue
            removed.append(build_id)
            with self._lock:
                del self._ended[build_id]
        if failure is not None:
            raise failure
        return removed
