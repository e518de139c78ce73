"""Keeps a running build in the store without holding it up."""

from __future__ import annotations

import threading
from collections.abc import Callable

from buildrunner.errors import StoreError
from buildrunner.spec.model.build import Build
from buildrunner.store.build_store import BuildStore, Document

# Opening a database costs processor time that the first container's start has better use for.
_HEAD_START_S = 2.0
_PAUSE_S = 0.05


class BuildWriter:
    """Writes snapshots of one build from a thread of its own; of several that wait, the newest.

    Args:
        open_store: opens the store; called in the thread.
        encode: the document of a build; called in the thread.
        owner: the process that runs the build, as `process_owner.this_process` names it.
    """

    def __init__(
        self,
        open_store: Callable[[], BuildStore],
        encode: Callable[[Build], Document],
        *,
        owner: str,
    ) -> None:
        self._open_store = open_store
        self._encode = encode
        self._owner = owner
        self._waiting: Build | None = None
        self._begun = False
        self._closing = False
        self._changed = threading.Condition()
        self._error: StoreError | None = None
        self._thread = threading.Thread(target=self._run, name="build-writer", daemon=True)
        self._thread.start()

    def begin(self) -> None:
        """The first step is on its way: from now on the engine is busy, and we are not.

        Without this call writing begins two seconds after the start.
        """
        if not self._begun:
            with self._changed:
                self._begun = True
                self._changed.notify()

    def save(self, build: Build) -> None:
        """Write this snapshot soon. Never blocks."""
        with self._changed:
            self._waiting = build
            self._changed.notify()

    def close(self) -> None:
        """Return once the last snapshot is written. Idempotent.

        Raises:
            StoreError: something could not be written.
        """
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._begun or self._closing, _HEAD_START_S)
            self._changed.wait_for(lambda: self._closing, _PAUSE_S)
        try:
            store = self._open_store()
        except StoreError as error:
            self._error = error
            return
        created = False
        while (build := self._next()) is not None:
            try:
                document = self._encode(build)
                if created:
                    store.update(document)
                else:
                    store.create(document, owner=self._owner)
                    created = True
            except StoreError as error:
                self._error = error
        store.close()

    def _next(self) -> Build | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._closing)
            build, self._waiting = self._waiting, None
            return build
