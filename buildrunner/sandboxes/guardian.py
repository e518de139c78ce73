"""A small process beside each build that cleans up after it, even if the build's process is killed.

The guardian reads a pipe whose only writer is the build's process. When that process ends, even by
SIGKILL, the kernel closes the pipe, and the guardian removes the build's containers, volumes,
folders and, if no other build needs it, the network. In the normal case the guardian does the same
after `finish`, when the command has already returned to its user: the removal of a network takes
180 ms, and the user should not wait for it.

The guardian is started by posix_spawn with an interpreter that imports almost nothing (about 1 ms
of the build's time, and 9 ms of another core). It has its own session, so that Ctrl-C does not
reach it. Its program is guardian_process.py.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import threading
from collections.abc import Callable, Mapping

import msgspec

import buildrunner
from buildrunner.containers.cleanup import hold_network_lock, open_network_lock
from buildrunner.containers.docker.endpoint import Endpoint
from buildrunner.errors import EngineError

FINISH_TIMEOUT_S = 30.0
_AHEAD_TIMEOUT_S = 2.0  # an engine that hangs must not block the end of the build as well

# File descriptors in the guardian. It reads messages from 0.
REPORT_FD = 3
LOCK_FD = 4
# our descriptors are moved above the guardian's numbers, so that none overwrites another
_SAFE_FD = 10


class Guardian:
    """One build's guardian. Its methods may be called from any thread."""

    def __init__(self, pid: int, orders: int, report: int, lock: int, network: str) -> None:
        self.pid = pid
        self._orders = orders
        self._report = report
        self._lock = lock
        self._network = network
        self._closed = False
        self._closing = threading.Lock()
        self._ahead: threading.Thread | None = None

    @classmethod
    def start(
        cls,
        build_id: str,
        endpoint: Endpoint,
        state_dir: str,
        *,
        network: str = "cloudbuild",
        environ: Mapping[str, str] | None = None,
    ) -> Guardian:
        """Start a guardian. Call it before the build makes anything on the engine.

        Args:
            build_id: value of the label `LABEL_BUILD` on every resource of the build.
            endpoint: the build's engine.
            state_dir: folder for locks and for the guardians' log; the same for all builds of the
                machine that share the network.
            network: name of the network that builds share.
            environ: environment of the guardian (None: that of this process).

        Raises:
            EngineError: the guardian can't be started.
        """
        try:
            return cls._start(build_id, endpoint, state_dir, network, environ)
        except OSError as error:
            raise EngineError(
                f"the process that cleans up after the build can't be started: {error}",
                hint=f"Is {state_dir} writable, and is there memory for one more process?",
            ) from error

    @classmethod
    def _start(
        cls,
        build_id: str,
        endpoint: Endpoint,
        state_dir: str,
        network: str,
        environ: Mapping[str, str] | None,
    ) -> Guardian:
        lock = _moved(open_network_lock(state_dir, endpoint.address))
        received, orders = (_moved(end) for end in os.pipe())
        report, reported = (_moved(end) for end in os.pipe())
        script = os.path.join(os.path.dirname(__file__), "guardian_process.py")
        try:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", script, build_id],
                dict(os.environ if environ is None else environ),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, received, 0),
                    (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                    (os.POSIX_SPAWN_DUP2, reported, REPORT_FD),
                    (os.POSIX_SPAWN_DUP2, lock, LOCK_FD),
                ],
                setsid=True,
            )
        except BaseException:
            for end in (orders, report, lock):
                os.close(end)
            raise
        finally:
            os.close(received)
            os.close(reported)
        guardian = cls(pid, orders, report, lock, network)
        package_root = os.path.dirname(os.path.dirname(os.path.abspath(buildrunner.__file__)))
        guardian._tell("path", os.pathsep.join([package_root, *filter(None, sys.path)]))
        guardian._tell("endpoint", msgspec.json.encode(endpoint).decode())
        guardian._tell("log", os.path.join(os.path.abspath(state_dir), "guardian.log"))
        return guardian

    def note_directory(self, path: str) -> None:
        """Let the guardian remove this absolute folder, after containers and volumes."""
        self._tell("directory", path)

    def note_image_cache(self, folder: str, image: str, sandboxes: str) -> None:
        """Let the guardian cache the images that the nested sandbox used, after the clean-up.

        This takes as long as the copies of the images. `finish` does not wait for it.

        Args:
            folder: see `ImageCache`.
            image: image of the cache engine.
            sandboxes: see `SandboxFolders`.
        """
        self._tell("cache", folder)
        self._tell("sandboxes", sandboxes)
        self._tell("cache image", image)

    def hold_network(self) -> None:
        """Hold the network, so that no other guardian removes it. Call it before `ensure_network`.

        Waits while another build's guardian removes the network (200 ms at most). Does nothing
        after `finish`.
        """
        with self._closing:
            if self._closed:
                return
            self._tell("network", self._network)
            lock = os.dup(self._lock)  # `finish` may close the descriptor during this wait
        try:
            hold_network_lock(lock)
        finally:
            os.close(lock)

    def run_ahead(self, work: Callable[[], object]) -> None:
        """Do ``work`` in a thread. Call it once.

        `finish` waits for the thread, for 2 s at most. So everything that ``work`` makes on the
        engine exists before the clean-up begins, and a command that ends early leaves nothing
        behind.
        """
        self._ahead = threading.Thread(target=work, name="ahead", daemon=True)
        self._ahead.start()

    def finish(self, *, wait: bool, timeout_s: float = FINISH_TIMEOUT_S) -> tuple[str, ...]:
        """Let the guardian clean up after the build and end. Further calls do nothing.

        Args:
            wait: whether to return only after the clean-up, or after ``timeout_s``. Otherwise
                this method returns at once, and the guardian continues alone.
            timeout_s: limit of the wait in seconds; the guardian continues after it.

        Returns:
            A sentence for each resource that could not be removed (empty without ``wait``).
        """
        if self._ahead is not None:
            self._ahead.join(_AHEAD_TIMEOUT_S)
        with self._closing:
            if self._closed:
                return ()
            self._tell("finish", "")
            self._closed = True
            os.close(self._orders)
            os.close(self._lock)  # the guardian holds the same lock with its own descriptor
        problems = self._await_report(timeout_s) if wait else ()
        os.close(self._report)
        return problems

    def _await_report(self, timeout_s: float) -> tuple[str, ...]:
        import time

        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        text = b""
        while (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                piece = os.read(self._report, 65536)
                if not piece:  # the guardian ended
                    os.waitpid(self.pid, 0)
                    return tuple(text.decode("utf-8", "replace").splitlines())
                text += piece
        return (f"the clean-up still runs after {timeout_s:.0f} s (process {self.pid})",)

    def _tell(self, kind: str, value: str) -> None:
        if "\n" in value:
            raise ValueError(f"a newline in {value!r}")
        if not self._closed:
            try:
                os.write(self._orders, f"{kind}\t{value}\n".encode("utf-8", "surrogateescape"))
            except BrokenPipeError:
                return  # the guardian was killed: the next sweep does its work


def _moved(descriptor: int) -> int:
    """Return an open file under a number that does not collide with the guardian's own files."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _SAFE_FD)
    finally:
        os.close(descriptor)
