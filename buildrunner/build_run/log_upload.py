"""The finished log on its way to ``logsBucket``."""

from __future__ import annotations

import threading
from collections.abc import Callable

from msgspec.structs import replace

from buildrunner.artifacts.stored_log import check_log_bucket, store_log, wants_stored_log
from buildrunner.errors import StorageError
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.results import Priority, Warning_
from buildrunner.storage.stores import Stores

_LOOK_S = 0.2
_PATIENCE_S = 120.0
_HURRY_S = 3.0


class LogUpload:
    """Stores the log of one build when it has ended.

    The bucket is looked for while the build runs. Where no server answers, the end of the build
    waits for none.

    Args:
        stores: which store has the bucket.
    """

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._begun = False
        # Set once the first request was answered, or was not.
        self._heard = threading.Event()
        self._failure: StorageError | None = None

    def begin(self, build: Build) -> None:
        """Look for the bucket, in a thread of its own. Only the first call does anything.

        Args:
            build: its substitutions are made.
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
        """Store the log; the build, with a warning when that was impossible.

        What the build made is made: its status stays, and so does ``failureInfo``, which is for
        builds that fail.

        Args:
            build: finished.
            path: the log's file.
            hurry: tells when nobody wants to wait for it.
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
        """Why the log is not stored; None when it is."""
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
    """Wait for an event; the error when it does not come. A silent server holds up nobody."""
    waited = 0.0
    while not event.wait(_LOOK_S):
        waited += _LOOK_S
        if waited >= (_HURRY_S if hurry() else _PATIENCE_S):
            return StorageError("it takes too long to store it")
    return None
