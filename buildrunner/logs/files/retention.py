"""Log retention: not older than so many days, not more than so many bytes altogether.

A log that is removed leaves a note of why in its folder, so that whoever asks for it is told.
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

# The index goes last: without it the rest is no log any more, whenever a crash comes.
_FILES = (LOG_NAME, EVENTS_NAME, INDEX_NAME)


class RemovedNote(msgspec.Struct, frozen=True):
    """The note in place of a removed log.

    Attributes:
        at: when it was removed.
        reason: why, for people: ``older than 30 days``.
    """

    at: datetime
    reason: str


class LogRetention(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of age and size beyond which logs are deleted.

    Attributes:
        max_age: since the end of the build; None keeps them for ever.
        max_bytes: of all logs together; None for no limit. The oldest go first.
    """

    max_age: timedelta | None = None
    max_bytes: int | None = None


def remove_old_logs(
    data_folder: str, ended: Sequence[str], rules: LogRetention, *, now: datetime
) -> list[str]:
    """Remove logs that may not stay any longer.

    Args:
        data_folder: where all builds are.
        ended: ids of builds that have ended, oldest first; no other log is touched.
        rules: how long they are kept.
        now: the time.

    Returns:
        Ids of the builds whose log was removed.

    Raises:
        StoreError: a log can't be removed.
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
    """Remove one log and leave a note. Idempotent.

    Raises:
        StoreError: it can't be removed.
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
    """Do nothing, unless the log was removed.

    Raises:
        NotFound: it was; says when and why.
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


# Viewers of a build read its last lines a moment after its end.
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
