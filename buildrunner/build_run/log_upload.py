"""The upload of a build's finished log to its ``logsBucket``."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from msgspec.structs import replace

from buildrunner.errors import StorageError
from buildrunner.spec.model.build import Build, LoggingMode
from buildrunner.spec.model.results import Priority, Warning_
from buildrunner.storage.object_store import SCHEME, ObjectStore, Retried, parse_object_url
from buildrunner.storage.stores import Stores

_LOOK_S = 0.2
_WAIT_LIMIT_S = 120.0
_HURRY_S = 3.0


class LogUpload:
    """Stores the log of one build when it has ended.

    The bucket is looked up while the build runs. If its server can't be reached, the end of the
    build does not wait for the server.

    Args:
        stores: which store has the bucket.
    """

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._begun = False
        # Set when the first request has ended, with or without an answer.
        self._heard = threading.Event()
        self._failure: StorageError | None = None

    def begin(self, build: Build) -> None:
        """Look up the bucket, in a thread of its own. Only the first call has an effect.

        Args:
            build: the build, with its substitutions made.
        """
        if self._begun or not wants_stored_log(build):
            return
        self._begun = True
        threading.Thread(target=self._check, args=(build,), name="log-bucket", daemon=True).start()

    def _check(self, build: Build) -> None:
        try:
            check_log_bucket(self._stores, build, retried=self._note)
        except StorageError as error:
            self._failure = error
        else:
            self._failure = None
        self._heard.set()

    def _note(self, error: StorageError) -> None:
        self._failure = error if error.unreachable else None
        self._heard.set()

    def stored(self, build: Build, path: str, hurry: Callable[[], bool]) -> Build:
        """Store the log; return the build, with a warning when that was impossible.

        The results of the build exist: its status stays, and so does ``failureInfo``, which is for
        builds that fail.

        Args:
            build: finished.
            path: the log's file.
            hurry: returns whether the user has asked to end at once.
        """
        if not wants_stored_log(build):
            return build
        self.begin(build)
        failure = _waited_for(self._heard, hurry) or self._failure
        if failure is None:
            failure = self._store(build, path, hurry)
        if failure is None:
            return build
        text = f"the log is not stored in its bucket: {failure}"
        if failure.hint:
            text += f"; {failure.hint}"
        warning = Warning_(text=text, priority=Priority.WARNING)
        return replace(build, warnings=(*build.warnings, warning))

    def _store(self, build: Build, path: str, hurry: Callable[[], bool]) -> StorageError | None:
        """Store the log. Returns the reason if that fails, else None."""
        done = threading.Event()
        failures: list[StorageError] = []

        def work() -> None:
            try:
                store_log(self._stores, build, path)
            except StorageError as error:
                failures.append(error)
            done.set()

        threading.Thread(target=work, name="log-upload", daemon=True).start()
        late = _waited_for(done, hurry)
        return late or next(iter(failures), None)


def _waited_for(event: threading.Event, hurry: Callable[[], bool]) -> StorageError | None:
    """Wait for an event. Returns an error after a time limit, since a server may be silent."""
    waited = 0.0
    while not event.wait(_LOOK_S):
        waited += _LOOK_S
        if waited >= (_HURRY_S if hurry() else _WAIT_LIMIT_S):
            return StorageError("it takes too long to store it")
    return None


_IN_BUCKETS = (LoggingMode.LOGGING_UNSPECIFIED, LoggingMode.LEGACY, LoggingMode.GCS_ONLY)


def wants_stored_log(build: Build) -> bool:
    """Return whether the log goes to a bucket.

    Source: ``options.logging``; a log in Cloud Logging only, or none, is in no bucket.
    """
    mode = build.options.logging if build.options else LoggingMode.LOGGING_UNSPECIFIED
    return bool(build.logs_bucket) and mode in _IN_BUCKETS


def check_log_bucket(stores: Stores, build: Build, *, retried: Retried | None = None) -> None:
    """Raise StorageError if the log's bucket does not exist or can't be reached.

    Args:
        stores: which store has the bucket.
        build: with its ``logs_bucket``.
        retried: called with each error that will be retried.
    """
    store, bucket, _ = _place(stores, build)
    store.check_bucket(bucket, retried=retried)


def store_log(stores: Stores, build: Build, path: str) -> str:
    """Store the log as ``log-{id}.txt`` in the bucket, or in the named folder of the bucket.

    Args:
        stores: which store has the bucket.
        build: with its ``logs_bucket``, with or without ``gs://``.
        path: the log's file.

    Returns:
        The URL of the stored log.

    Raises:
        StorageError: the log can't be stored.

    Source: ``Build.logsBucket``.
    """
    store, bucket, name = _place(stores, build)
    try:
        with open(path, "rb") as content:
            size = os.fstat(content.fileno()).st_size
            stored = store.write(
                bucket,
                name,
                content,
                size,
                content_type="text/plain; charset=utf-8",
            )
    except OSError as error:
        raise StorageError(f"the log {path} can't be read: {error.strerror or error}") from error
    return stored.url


def _place(stores: Stores, build: Build) -> tuple[ObjectStore, str, str]:
    """Return store, bucket and name of the log's object."""
    place = parse_object_url(SCHEME + build.logs_bucket.removeprefix(SCHEME).strip("/"))
    folder = f"{place.name}/" if place.name else ""
    name = f"{folder}log-{build.id}.txt"
    return stores.store_of(place.bucket, name), place.bucket, name
