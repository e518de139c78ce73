"""Sends the log and the events of a build to the server while they grow.

The build's own files on this disk have all data that is not sent yet. The log in them is masked,
survives the process, and is read again after a failure. The server's copy is always a prefix of
them.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from buildrunner.engine.log.pipeline import LogChunk
from buildrunner.errors import LeaseLost, StoreError, StoreUnavailable
from buildrunner.logs.files.copies import (
    append_to_events,
    append_to_log,
    copied_bytes,
    events_piece,
    flush_copy,
    log_piece,
)
from buildrunner.logs.files.log_file import LogFileSink
from buildrunner.retry import backoff
from buildrunner.store.model.builds import Lease
from buildrunner.store.model.remote import BegunBuild
from buildrunner.worker.remote.queue import OffsetRefused, RemoteQueue, until_answered

UNSENT_BYTES: Final = 8 << 20
"""Bytes of the log that may wait to be sent; then the build's output waits, too."""

_PAUSE_S: Final = 0.05  # between two pieces, so that small chunks are combined
_PAUSE_FACTOR: Final = 4
_LONGEST_ANSWER_PAUSE_S: Final = 1.0
_BULK_BYTES: Final = 1 << 20
_IDLE_S: Final = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 2.0

_log = logging.getLogger(__name__)


class LogSender:
    """Sends one build's log and events. Call `start` once. All methods are thread-safe.

    Args:
        queue: the queue of the server.
        lease: the lease of the build.
        folder: the log folder of the build on this disk.
        begun: the sizes of the server's copies.
    """

    def __init__(self, queue: RemoteQueue, lease: Lease, folder: str, begun: BegunBuild) -> None:
        self._queue = queue
        self._lease = lease
        self._folder = folder
        self._sent = {"log": begun.log_bytes, "events": begun.event_bytes}
        self._sending = threading.Lock()
        self._news = threading.Event()
        self._moved = threading.Condition()
        self._ended = False

    def start(self) -> None:
        """Start the thread that sends present and later data."""
        threading.Thread(target=self._run, name="log-sender", daemon=True).start()

    def wake(self) -> None:
        """Notify the thread that there is more to send. Cheap."""
        self._news.set()

    def wait_for_room(self, size: int) -> None:
        """Wait until no more than `UNSENT_BYTES` of a log of ``size`` bytes are unsent."""
        if size - self._sent["log"] <= UNSENT_BYTES:
            return
        with self._moved:
            self._moved.wait_for(lambda: self._ended or size - self._sent["log"] <= UNSENT_BYTES)

    def send_all(self) -> None:
        """Send all data. Returns when the server has all of it on its disk.

        Raises:
            LeaseLost: another worker has the lease.
            StoreUnavailable: the server does not answer now.
            StoreError: the server refuses the data.
        """
        with self._sending:
            # After a power cut, the copy must not be longer than the original.
            flush_copy(self._folder)
            for kind, piece_of in (("log", log_piece), ("events", events_piece)):
                while self._send_piece(kind, piece_of):
                    flush_copy(self._folder)

    def _send_piece(self, kind: str, piece_of: Callable[[str, int], tuple[bytes, int]]) -> bool:
        piece, end = piece_of(self._folder, self._sent[kind])
        if not piece:
            return False
        query = {"offset": self._sent[kind]}
        try:
            self._queue.call("PUT", self._lease, f"/{kind}", query=query, content=piece)
        except OffsetRefused as error:
            if error.size == self._sent[kind]:
                raise
            end = error.size  # an answer was lost
        with self._moved:
            self._sent[kind] = end
            self._moved.notify_all()
        return True

    def _run(self) -> None:
        failures = 0
        try:
            while True:
                self._news.wait(_IDLE_S)
                self._news.clear()
                begun, sent = time.monotonic(), self._sent["log"]
                try:
                    self.send_all()
                    failures = 0
                    wait_s = pause_s(time.monotonic() - begun, self._sent["log"] - sent)
                except StoreUnavailable as error:
                    failures += 1
                    if failures == 1:
                        _log.warning("the log can't be sent now: %s", error)
                    wait_s = backoff(failures, _FIRST_PAUSE_S, _LONGEST_PAUSE_S)
                    self._news.set()
                threading.Event().wait(wait_s)
        except LeaseLost:
            pass  # the lease keeper ends the process
        except StoreError as error:
            _log.error("the log can't be sent: %s", error)
        finally:
            with self._moved:
                self._ended = True
                self._moved.notify_all()


def pause_s(answer_s: float, sent_bytes: int) -> float:
    """Return the pause before the next piece, in seconds: longer for a busy server.

    Args:
        answer_s: seconds that the server took for the last pieces.
        sent_bytes: bytes of the log in them. For a log that grows fast, the pause is the shortest.
    """
    if sent_bytes >= _BULK_BYTES:
        return _PAUSE_S
    return min(max(_PAUSE_S, _PAUSE_FACTOR * answer_s), _LONGEST_ANSWER_PAUSE_S)


class SentLog:
    """Implements `LogSink`: the log file of a build whose log is sent.

    Args:
        log: the file.
        sender: sends the content of the file.
    """

    def __init__(self, log: LogFileSink, sender: LogSender) -> None:
        self._log = log
        self._sender = sender

    def write(self, chunk: LogChunk) -> None:
        """Append a chunk. Waits while much is unsent: no part of a log is dropped."""
        self._log.write(chunk)
        self._sender.wake()
        self._sender.wait_for_room(self._log.size)

    def close(self) -> None:
        """Close the file."""
        self._log.close()


def send_rest(queue: RemoteQueue, folder: str, lease: Lease, begun: BegunBuild) -> None:
    """Send the part of a log that the server lacks. Retries while the server does not answer.

    Raises:
        LeaseLost: another worker has the lease.
        StoreError: the server refuses the data.
    """
    until_answered(LogSender(queue, lease, folder, begun).send_all)


def fetch_copy(queue: RemoteQueue, lease: Lease, folder: str, begun: BegunBuild) -> None:
    """Fetch the log and the events that an earlier worker of the build has sent.

    Nothing is fetched if the files on this disk are complete: then this worker has sent them.

    Raises:
        LeaseLost: another worker has the lease.
        StoreError: the files can't be written.
    """
    if os.path.isdir(folder):
        log_bytes, event_bytes = copied_bytes(folder)
        if log_bytes >= begun.log_bytes and event_bytes >= begun.event_bytes:
            return
        shutil.rmtree(folder)
    for kind, append, size in (
        ("log", append_to_log, begun.log_bytes),
        ("events", append_to_events, begun.event_bytes),
    ):
        offset = 0
        while offset < size:
            answer = until_answered(
                partial(queue.call, "GET", lease, f"/{kind}", query={"offset": offset})
            )
            offset = append(folder, offset, answer.content)
