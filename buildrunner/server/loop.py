"""Threads of the server that repeat a task, and signals that wake them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from buildrunner.errors import BuildrunnerError

_log = logging.getLogger("buildrunner.server")


class Loop:
    """A thread that repeats a task until it is stopped, even after errors.

    Thread-safe. Call `start` once.

    Args:
        name: name of the thread, and of the task in log messages.
        turn: does the task once; returns the seconds until the next turn if it knows them.
        pause_s: the longest pause between two turns.
    """

    def __init__(self, name: str, turn: Callable[[], float | None], pause_s: float) -> None:
        self._name = name
        self._turn = turn
        self._pause_s = pause_s
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start with a turn at once."""
        self._thread.start()

    def wake(self) -> None:
        """Begin the next turn at once. Cheap."""
        self._woken.set()

    def was_woken(self) -> bool:
        """Return whether `wake` was called since the turn began, or since this was last called."""
        woken = self._woken.is_set()
        self._woken.clear()
        return woken

    def pause(self, seconds: float) -> None:
        """Pause within a turn. `end` ends the pause."""
        self._stopped.wait(seconds)

    def end(self) -> None:
        """Begin no further turn. Idempotent."""
        self._stopped.set()
        self._woken.set()

    def stop(self, timeout_s: float | None = None) -> None:
        """Begin no further turn, and wait for the current one to end. Idempotent."""
        self.end()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._woken.clear()
            if self._stopped.is_set():  # `end` was called before the wake was cleared
                return
            pause_s = self._pause_s
            try:
                wanted_s = self._turn()
                if wanted_s is not None:
                    pause_s = min(max(wanted_s, 0.0), pause_s)
            except BuildrunnerError as error:
                _log.warning("%s: %s; it is tried again", self._name, error)
            except Exception:  # noqa: BLE001  (a bug in one turn must not end the loop)
                _log.exception("%s: a turn failed; it is tried again", self._name)
            self._woken.wait(pause_s)


class Signal:
    """A call that wakes receivers, which may be connected after its senders are made.

    Connect all receivers before the first call. Calls are thread-safe.
    """

    def __init__(self) -> None:
        self._receivers: list[Callable[[], None]] = []

    def connect(self, receiver: Callable[[], None]) -> None:
        """Call ``receiver``, which must be cheap, at every call of the signal."""
        self._receivers.append(receiver)

    def __call__(self) -> None:
        """Wake all receivers."""
        for receiver in self._receivers:
            receiver()
