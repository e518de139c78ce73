"""A process that is ready before its build comes.

Starting Python and importing what a build needs takes longer than all that happens between the
request and the first container. So one process is started ahead: it has imported everything,
opened nothing, and waits at a pipe for the build it is to run. It ends with the pipe, which ends
with the server.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import msgspec

from buildrunner.worker.child_process import LOG_NAME, ExecuteSpawner, SpawnedProcess

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.store.stored_build import Lease
    from buildrunner.worker.data_folder import DataFolder

_PAUSE_S = 1.0

_logger = logging.getLogger(__name__)


class SpareOrder(msgspec.Struct, frozen=True):
    """What a spare process is told: one line of JSON.

    Attributes:
        build_id: the build it is to run.
        fence: of the claim it runs under.
        resume: another process had it before.
        folder: the build's run folder.
        log: file that its output goes to.
    """

    build_id: str
    fence: int
    resume: bool
    folder: str
    log: str


class SpareSpawner:
    """Implements `Spawner`: as `ExecuteSpawner`, with a process that is there already.

    Args:
        folder: the server's folder.
        environ: what `child_environment` gave.
        pause_s: after a build was given away, how long to leave the processor to it before the
            next process is started.
    """

    def __init__(
        self, folder: DataFolder, environ: Mapping[str, str], *, pause_s: float = _PAUSE_S
    ) -> None:
        self._folder = folder
        self._environ = dict(environ)
        self._direct = ExecuteSpawner(folder, environ)
        self._pause_s = pause_s
        self._lock = threading.Lock()
        self._spare: subprocess.Popen[bytes] | None = None
        self._timer: threading.Timer | None = None
        self._closed = False

    def prepare(self) -> None:
        """Start the process that waits for the next build, if there is none."""
        with self._lock:
            if self._closed or self._spare is not None:
                return
            try:
                self._spare = self._start()
            except OSError as error:
                _logger.warning("no process can be started ahead: %s", error)

    def spawn(self, lease: Lease, *, resume: bool) -> SpawnedProcess:
        """See `Spawner.spawn`."""
        with self._lock:
            spare, self._spare = self._spare, None
        taken = spare is not None and self._give(spare, lease, resume=resume)
        process = SpawnedProcess(spare) if taken and spare else None
        self._prepare_soon()
        return process or self._direct.spawn(lease, resume=resume)

    def close(self) -> None:
        """See `Spawner.close`: the process that waits ends; those that run builds go on."""
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            spare, self._spare = self._spare, None
        if spare is not None:
            _hang_up(spare)
            spare.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "buildrunner", "spare"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.path,
            env=self._environ,
            start_new_session=True,
        )

    def _give(self, spare: subprocess.Popen[bytes], lease: Lease, *, resume: bool) -> bool:
        """Hand the build over; whether there was somebody to take it."""
        run_folder = self._folder.make_run_folder(lease.build_id)
        log = os.path.join(run_folder, LOG_NAME)
        order = SpareOrder(lease.build_id, lease.fence, resume, run_folder, log)
        assert spare.stdin is not None  # noqa: S101  (a pipe was asked for)
        if spare.poll() is None:
            try:
                # Shorter than a pipe's buffer: it is taken whole, and nobody waits.
                os.write(spare.stdin.fileno(), msgspec.json.encode(order) + b"\n")
            except BrokenPipeError:
                pass
            else:
                _hang_up(spare)
                return True
        _hang_up(spare)
        spare.wait()
        return False

    def _prepare_soon(self) -> None:
        with self._lock:
            if self._closed:
                return
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(self._pause_s, self.prepare)
            self._timer.daemon = True
            self._timer.start()


def _hang_up(spare: subprocess.Popen[bytes]) -> None:
    if spare.stdin is not None and not spare.stdin.closed:
        spare.stdin.close()
