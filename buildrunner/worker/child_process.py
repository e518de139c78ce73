"""The processes of builds: started in sessions of their own, and found again after a restart."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Protocol

from buildrunner.containers.process_owner import is_alive, pid_of
from buildrunner.store.model.builds import Lease
from buildrunner.worker.data_folder import DataFolder

LOG_NAME = "execute.log"

_log = logging.getLogger(__name__)

# What a build's process needs of our environment. Whatever else is there (tokens of the server, of
# the shell that started it) is not its business.
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
    """One build's process."""

    pid: int

    def ended(self) -> str | None:
        """How it ended, as the rest of a sentence about it; None while it runs."""
        ...

    def poke(self) -> None:
        """Let it look whether its build is to be cancelled."""
        ...


class Spawner(Protocol):
    """Starts processes for builds."""

    def spawn(self, lease: Lease, *, resume: bool) -> ChildProcess:
        """Start the process of a build.

        Raises:
            OSError: it can't be started.
        """
        ...

    def close(self) -> None:
        """Nothing more is spawned. Builds' processes go on."""
        ...


class SpawnedProcess:
    """A child of ours."""

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

    def poke(self) -> None:
        """See `ChildProcess.poke`."""
        self._process.send_signal(signal.SIGTERM)


class AdoptedProcess:
    """A process that an earlier server started."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self.pid = pid_of(owner)

    def ended(self) -> str | None:
        """See `ChildProcess.ended`. Only its parent, which is gone, could say how."""
        return None if is_alive(self._owner) else "it ended before it was done"

    def poke(self) -> None:
        """See `ChildProcess.poke`."""
        if is_alive(self._owner):
            try:
                os.kill(self.pid, signal.SIGTERM)
            except ProcessLookupError:
                return


class ExecuteSpawner:
    """Starts ``buildrunner execute`` for builds.

    Args:
        folder: the server's folder.
        environ: what `child_environment` gave.
    """

    def __init__(self, folder: DataFolder, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = dict(environ)

    def spawn(self, lease: Lease, *, resume: bool) -> SpawnedProcess:
        """See `Spawner.spawn`.

        The lease goes by argument: it is no secret. The database's URL, which may hold a password,
        is in the environment.
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
        environ: ours.
        needed: further names: the variables in which settings say that secrets are.
    """
    names = _NAMES.union(needed)
    return {
        name: value
        for name, value in environ.items()
        if name.upper() in names or name in names or name.startswith(_BEGINNINGS)
    }


def last_words(folder: DataFolder, build_id: str) -> str:
    """The last line that a build's process wrote about itself; empty when it wrote none."""
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
