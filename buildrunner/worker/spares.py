"""Keeps places for builds ready before the builds come.

As with `spare_process`: what a build would wait for at its start is done before it comes. A thread
of the server looks at the spare places (`Sandbox.keep_spares`) when it begins, soon after a build
has begun (which had the processor to itself until then), when one has ended, and now and then: the
engine may have been restarted, or have other images.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping

import msgspec

from buildrunner.errors import BuildrunnerError, EngineUnavailable
from buildrunner.sandboxes.protocol import Sandbox
from buildrunner.store.model.builds import Lease
from buildrunner.worker.child_process import LOG_NAME, ExecuteSpawner, SpawnedProcess
from buildrunner.worker.data_folder import DataFolder

LOOK_S = 10.0
_PAUSE_S = 2.0
_MOST_S = 80.0
_CLOSE_S = 10.0

_log = logging.getLogger(__name__)


class SpareKeeper:
    """See the module. `start` once; every method from any thread.

    Args:
        sandbox: where places are. Not closed.
        count: how many are kept ready; with 0 only what they share is looked after.
        look_s: how often to look when nobody says anything; twice as long after each failure.
        pause_s: how long a build has the processor to itself.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        count: int,
        *,
        look_s: float = LOOK_S,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._sandbox = sandbox
        self._count = count
        self._look_s = look_s
        self._pause_s = pause_s
        self._trouble = ""
        self._next_s = look_s
        self._begun = False
        self._closed = False
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spare sandboxes", daemon=True)

    def start(self) -> None:
        """Begin: what an earlier server kept goes."""
        self._thread.start()

    def build_began(self) -> None:
        """One may be taken soon."""
        self._begun = True
        self._news.set()

    def build_ended(self) -> None:
        """The machine has time."""
        self._news.set()

    def close(self) -> None:
        """Remove those that no build has. What can't be removed soon, the next server removes."""
        self._closed = True
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        self._try(self._sandbox.drop_spares)
        while not self._closed:
            self._try(lambda: self._sandbox.keep_spares(self._count))
            self._wait(self._next_s)
            if self._begun and not self._closed:
                self._begun = False
                self._wait(self._pause_s)
        self._try(self._sandbox.drop_spares)

    def _wait(self, timeout_s: float) -> None:
        self._news.wait(timeout_s)
        self._news.clear()

    def _try(self, work: Callable[[], None]) -> None:
        """Say what goes wrong once, not at each look."""
        try:
            work()
        except EngineUnavailable:  # no build begins then, and the supervisor says why
            self._next_s = min(self._next_s * 2, _MOST_S)
        except (BuildrunnerError, OSError) as error:  # no engine, or no space
            if str(error) != self._trouble:
                _log.warning("no sandbox is ready ahead of builds: %s", error)
            self._trouble = str(error)
            self._next_s = min(self._next_s * 2, _MOST_S)
        except Exception:  # noqa: BLE001  (builds do without)
            _log.exception("a bug in keeping sandboxes ready")
            self._next_s = _MOST_S
        else:
            self._trouble = ""
            self._next_s = self._look_s


_PAUSE_S_SPARE_PROCESS = 1.0

_logger = logging.getLogger(__name__)


class SpareOrder(msgspec.Struct, frozen=True):
    """The order to a spare process: one line of JSON.

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
        self,
        folder: DataFolder,
        environ: Mapping[str, str],
        *,
        pause_s: float = _PAUSE_S_SPARE_PROCESS,
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
