"""Log retention: deletes logs beyond a maximum age or a maximum total size.

A deleted log leaves a note with the reason in its folder, which requests for the log then report.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from buildrunner.errors import NotFound, StoreError
from buildrunner.logs.files.events import EVENTS_NAME
from buildrunner.logs.files.log_file import INDEX_NAME, LOG_NAME, log_folder

NOTE_NAME = "removed.json"

# The index is deleted last, so that a crash in between leaves a log that can be deleted again.
_FILES = (LOG_NAME, EVENTS_NAME, INDEX_NAME)


class RemovedNote(msgspec.Struct, frozen=True):
    """The note in place of a deleted log.

    Attributes:
        at: time of the deletion.
        reason: the reason, as text for users: ``it is older than 30 days``.
    """

    at: datetime
    reason: str


class LogRetention(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of age and size beyond which logs are deleted.

    Attributes:
        max_age: time since the last change of a log, about the end of its build; None keeps logs
            forever.
        max_bytes: total size of all logs; None for no limit. The oldest are deleted first.
    """

    max_age: timedelta | None = None
    max_bytes: int | None = None


def remove_old_logs(
    data_folder: str, ended: Sequence[str], rules: LogRetention, *, now: datetime
) -> list[str]:
    """Delete the logs that exceed the limits.

    Args:
        data_folder: folder of all builds.
        ended: ids of builds that have ended, oldest first. Other logs stay.
        rules: the limits.
        now: the time.

    Returns:
        Ids of the builds whose log was deleted.

    Raises:
        StoreError: a log can't be deleted.
    """
    kept = [
        (build_id, *_age_and_size(log_folder(data_folder, build_id)))
        for build_id in ended
        if os.path.exists(os.path.join(log_folder(data_folder, build_id), INDEX_NAME))
    ]
    total = sum(size for _, _, size in kept) if rules.max_bytes is None else _all_bytes(data_folder)
    removed = []
    for build_id, changed, size in kept:
        reason = ""
        if rules.max_age is not None and now - changed > rules.max_age:
            reason = f"it is older than {_span(rules.max_age)}"
        elif rules.max_bytes is not None and total > rules.max_bytes:
            reason = f"all logs together were larger than {rules.max_bytes:,} bytes"
        if reason:
            remove_log(log_folder(data_folder, build_id), reason, now=now)
            total -= size
            removed.append(build_id)
    return removed


def remove_log(folder: str, reason: str, *, now: datetime) -> None:
    """Delete one log and leave a note. Idempotent.

    Raises:
        StoreError: the log can't be deleted.
    """
    note = os.path.join(folder, NOTE_NAME)
    try:
        with open(f"{note}.new", "wb") as file:
            file.write(msgspec.json.encode(RemovedNote(now, reason)))
        os.replace(f"{note}.new", note)
        for name in _FILES:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))
    except OSError as error:
        raise StoreError(f"the log in {folder} can't be removed: {error.strerror}") from error


def check_not_removed(folder: str, build_id: str) -> None:
    """Raise NotFound if the log was deleted.

    Raises:
        NotFound: the log was deleted. The message says when and why.
    """
    try:
        with open(os.path.join(folder, NOTE_NAME), "rb") as file:
            note = msgspec.json.decode(file.read(), type=RemovedNote)
    except (OSError, msgspec.DecodeError):
        return
    raise NotFound(f"the log of build {build_id} was removed on {note.at:%Y-%m-%d}: {note.reason}")


def _age_and_size(folder: str) -> tuple[datetime, int]:
    changed = 0.0
    size = 0
    for name in _FILES:
        with suppress(OSError):
            status = os.stat(os.path.join(folder, name))
            changed = max(changed, status.st_mtime)
            size += status.st_size
    return datetime.fromtimestamp(changed, UTC), size


def _all_bytes(data_folder: str) -> int:
    return sum(_age_and_size(folder)[1] for folder in _log_folders(data_folder))


def _log_folders(data_folder: str) -> Iterator[str]:
    with suppress(FileNotFoundError), os.scandir(os.path.join(data_folder, "logs")) as entries:
        for entry in entries:
            yield entry.path


def _span(span: timedelta) -> str:
    if span >= timedelta(days=1):
        return f"{span.days} days" if span.days != 1 else "one day"
    return f"{int(span.total_seconds())} s"


# Viewers read the last lines of a build shortly after its end.
GRACE = timedelta(seconds=10)
_REASON = "its options say logging: NONE"


class UnkeptLogs:
    """The logs that will be deleted soon after their build. Thread-safe.

    Args:
        data_folder: folder of all builds.
    """

    def __init__(self, data_folder: str) -> None:
        self._data_folder = data_folder
        self._ended: dict[str, datetime] = {}
        self._lock = threading.Lock()

    def ended(self, document: dict[str, Any], at: datetime) -> None:
        """Record the end of a build whose options say ``logging: NONE``; ignore other builds."""
        if document.get("options", {}).get("logging") == "NONE":
            with self._lock:
                self._ended[document["id"]] = at

    def remove_due(self, now: datetime) -> list[str]:
        """Delete the logs of builds that ended `GRACE` or longer before ``now``. Returns their ids.

        Raises:
            StoreError: a log can't be deleted. The next call retries it.
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
