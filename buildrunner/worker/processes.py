"""The processes of builds: started in their own sessions, and found again after a restart.

Some processes are started before their builds (`SpareSpawner`), and spare places for builds are
kept (`SpareKeeper`): slow work at the start of a build is done in advance. A thread of the server
checks the spare places (`Sandbox.keep_spares`) at its start, soon after a build has begun (which
had the processor to itself until then), after a build has ended, and periodically: the engine may
have been restarted, or have other images.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from buildrunner.containers.process_owner import is_alive, pid_of
from buildrunner.errors import BuildrunnerError, EngineUnavailable
from buildrunner.sandboxes.protocol import Sandbox
from buildrunner.store.model.builds import Lease
from buildrunner.worker.data_folder import DataFolder

LOG_NAME = "execute.log"

_log = logging.getLogger(__name__)

# The variables that a build's process gets from our environment. It gets no others, such as tokens
# of the server, or of the shell that started it.
_NAMES = frozenset(
    {
        "ALL_PROXY",
        "HOME",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "LANG",
        "LOGNAME",
        "NO_PROXY",
        "PATH",
        "REQUESTS_CA_BUNDLE",
        "SSH_AUTH_SOCK",
        "STORAGE_EMULATOR_HOST",
        "TMPDIR",
        "TZ",
        "USER",
    }
)
_BEGINNINGS = (
    "BUILDRUNNER_",
    "CLOUDSDK_",
    "DBUS_",
    "DOCKER_",
    "GIT_",
    "GOOGLE_",
    "LC_",
    "OTEL_",
    "SSL_CERT_",
    "XDG_",
)


class ChildProcess(Protocol):
    """The process of one build."""

    pid: int

    def ended(self) -> str | None:
        """Return how it ended, as the rest of a sentence about it; None while it runs."""
        ...

    def notify(self) -> None:
        """Notify it that there may be a cancel request."""
        ...


class Spawner(Protocol):
    """Starts the processes of builds."""

    def spawn(self, lease: Lease, *, resume: bool) -> ChildProcess:
        """Start the process of a build.

        Raises:
            OSError: the process can't be started.
        """
        ...

    def close(self) -> None:
        """Start no more processes. The processes of builds continue."""
        ...


class SpawnedProcess:
    """A child process of ours."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def ended(self) -> str | None:
        """See `ChildProcess.ended`."""
        code = self._process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"it ended with exit code {code}"
        try:
            name = f" ({signal.Signals(-code).name})"
        except ValueError:
            name = ""
        return f"it was killed by signal {-code}{name}"

    def notify(self) -> None:
        """See `ChildProcess.notify`."""
        self._process.send_signal(signal.SIGTERM)


class AdoptedProcess:
    """A process that an earlier server started."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self.pid = pid_of(owner)

    def ended(self) -> str | None:
        """See `ChildProcess.ended`. Only its parent, which has ended, could report how it ended."""
        return None if is_alive(self._owner) else "it ended before it was done"

    def notify(self) -> None:
        """See `ChildProcess.notify`."""
        if is_alive(self._owner):
            try:
                os.kill(self.pid, signal.SIGTERM)
            except ProcessLookupError:
                return


class ExecuteSpawner:
    """Starts ``buildrunner execute`` for builds.

    Args:
        folder: the server's folder.
        environ: the result of `child_environment`.
    """

    def __init__(self, folder: DataFolder, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = dict(environ)

    def spawn(self, lease: Lease, *, resume: bool) -> SpawnedProcess:
        """See `Spawner.spawn`.

        The lease is an argument: it is no secret. The database's URL, which may hold a password,
        is a variable of the environment.
        """
        run_folder = self._folder.make_run_folder(lease.build_id)
        argv = [sys.executable, "-P", "-m", "buildrunner", "execute", lease.build_id]
        argv += ["--fence", str(lease.fence), *(["--resume"] if resume else [])]
        with open(os.path.join(run_folder, LOG_NAME), "ab", opener=_private) as log:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=run_folder,
                env=self._environ,
                start_new_session=True,
            )
        return SpawnedProcess(process)

    def close(self) -> None:
        """See `Spawner.close`."""


def child_environment(environ: Mapping[str, str], needed: Iterable[str] = ()) -> dict[str, str]:
    """Return the part of an environment that a build's process gets.

    Args:
        environ: our environment.
        needed: further names: the variables that hold secrets according to the settings.
    """
    names = _NAMES.union(needed)
    return {
        name: value
        for name, value in environ.items()
        if name.upper() in names or name in names or name.startswith(_BEGINNINGS)
    }


def last_words(folder: DataFolder, build_id: str) -> str:
    """Return the last line that a build's process wrote about itself; empty if there is none."""
    path = os.path.join(folder.run_folder(build_id), LOG_NAME)
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip() if lines else ""


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


LOOK_S = 10.0
_PAUSE_S = 2.0
_MOST_S = 80.0
_CLOSE_S = 10.0


class SpareKeeper:
    """Keeps spare places for builds. Call `start` once; other methods are thread-safe.

    Args:
        sandbox: sandbox with the places. Not closed.
        count: number of spare places. For 0, only the resources that sandboxes share are kept.
        look_s: seconds between checks without a notification; doubled after each failure.
        pause_s: seconds for which a build has the processor to itself.
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
        """Start; the places of an earlier server are removed."""
        self._thread.start()

    def build_began(self) -> None:
        """Notify that a build has begun, which may take a place soon."""
        self._begun = True
        self._news.set()

    def build_ended(self) -> None:
        """Notify that a build has ended, so that the machine has time."""
        self._news.set()

    def close(self) -> None:
        """Remove unused places. The next server removes those that can't be removed soon."""
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
        """Do the work. An error is logged once, not at each check."""
        try:
            work()
        except EngineUnavailable:  # no build begins then, and the supervisor reports why
            self._next_s = min(self._next_s * 2, _MOST_S)
        except (BuildrunnerError, OSError) as error:  # no engine, or no space
            if str(error) != self._trouble:
                _log.warning("no sandbox is ready ahead of builds: %s", error)
            self._trouble = str(error)
            self._next_s = min(self._next_s * 2, _MOST_S)
        except Exception:  # noqa: BLE001  (builds can start without spare places)
            _log.exception("a bug in keeping sandboxes ready")
            self._next_s = _MOST_S
        else:
            self._trouble = ""
            self._next_s = self._look_s


_RESTART_PAUSE_S = 1.0


class SpareOrder(msgspec.Struct, frozen=True):
    """The order for a spare process: one line of JSON.

    Attributes:
        build_id: the build to run.
        fence: fence of the claim.
        resume: whether another process began the build.
        folder: run folder of the build.
        log: file for its output.
    """

    build_id: str
    fence: int
    resume: bool
    folder: str
    log: str


class SpareSpawner:
    """Implements `Spawner` as `ExecuteSpawner` does, with a process that was started before.

    Args:
        folder: the server's folder.
        environ: the result of `child_environment`.
        pause_s: seconds for which a new build has the processor to itself before the next process
            is started.
    """

    def __init__(
        self,
        folder: DataFolder,
        environ: Mapping[str, str],
        *,
        pause_s: float = _RESTART_PAUSE_S,
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
        """Start a process that waits for the next build, unless there is one."""
        with self._lock:
            if self._closed or self._spare is not None:
                return
            try:
                self._spare = self._start()
            except OSError as error:
                _log.warning("no process can be started ahead: %s", error)

    def spawn(self, lease: Lease, *, resume: bool) -> SpawnedProcess:
        """See `Spawner.spawn`."""
        with self._lock:
            spare, self._spare = self._spare, None
        taken = spare is not None and self._give(spare, lease, resume=resume)
        process = SpawnedProcess(spare) if taken and spare else None
        self._prepare_soon()
        return process or self._direct.spawn(lease, resume=resume)

    def close(self) -> None:
        """See `Spawner.close`: the waiting process ends; those that run builds continue."""
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
        """Send the order to the waiting process; return whether there was one."""
        run_folder = self._folder.make_run_folder(lease.build_id)
        log = os.path.join(run_folder, LOG_NAME)
        order = SpareOrder(lease.build_id, lease.fence, resume, run_folder, log)
        assert spare.stdin is not None  # noqa: S101  (the process has a pipe)
        if spare.poll() is None:
            try:
                # Shorter than a pipe's buffer: it is written at once, without waiting.
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
