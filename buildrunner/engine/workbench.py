"""What every step of a build works with."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from buildrunner.engine.step_container import build_labels
from buildrunner.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.engine.clock import Clock
    from buildrunner.engine.image_pulls import ImagePulls
    from buildrunner.engine.log_pipeline import LogPipeline
    from buildrunner.engine.run_options import RunOptions
    from buildrunner.engine.workspace_protocol import PreparedWorkspace
    from buildrunner.plan.build_plan import BuildPlan, SecretReference

_QUIET_S = 0.25  # behind a start or an end; a step that takes longer leaves room for removals
_BACKLOG = 32  # ended containers take disk space: more are never kept


class Workbench:
    """The parts that the lives of steps share. Filled by the loop before the first step starts.

    Attributes:
        halt: set when the build ends early; frees whoever waits for a pull or a push.
        workspace: what to mount at ``/workspace``.
        secrets: values of all secrets of the build.
    """

    workspace: PreparedWorkspace

    def __init__(
        self,
        plan: BuildPlan,
        *,
        engine: ContainerEngine,
        pulls: ImagePulls,
        log: LogPipeline,
        options: RunOptions,
        clock: Clock,
        halt: threading.Event,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.pulls = pulls
        self.log = log
        self.options = options
        self.clock = clock
        self.halt = halt
        self.secrets: Mapping[SecretReference, str] = {}
        self.reaper = Reaper(engine)
        self.labels = build_labels(plan, options)
        self._home_files: dict[str, bytes] = {}
        self._home_lock = threading.Lock()

    def leave_home_files(self, files: dict[str, bytes]) -> None:
        """Files (by absolute path) that the first container to be created has to take along."""
        self._home_files = files

    def fill_home(self, container: str) -> None:
        """Put them into the home volume through ``container``, unless that was done before."""
        if not self._home_files:
            return
        with self._home_lock:
            if self._home_files:
                tar = files_archive(self._home_files, mode=0o600)
                self.engine.put_archive(container, "/", (tar,))
                self._home_files = {}


def files_archive(files: Mapping[str, bytes], *, mode: int) -> bytes:
    """A tar archive of ``files`` by absolute path, owned by root, each with ``mode``."""
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size = len(data)
            member.mode = mode
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class Reaper:
    """Removes ended containers and their volumes in one thread, in quiet moments.

    A removal takes the engine as much work as an eighth of a start, and slows down a start or an
    end that it meets. So it waits until there was neither for a while, unless many are due.
    """

    def __init__(self, engine: ContainerEngine) -> None:
        self._engine = engine
        self._due: deque[tuple[str, str]] = deque()
        self._news = threading.Condition()
        self._quiet_at = 0.0
        self._finishing = False
        self._thread: threading.Thread | None = None
        self.failures: list[str] = []
        """What could not be removed, and why."""

    def hold_off(self) -> None:
        """A step starts or ends: leave the engine to that, and to what comes next."""
        self._quiet_at = time.monotonic() + _QUIET_S

    def remove(self, container: str, volume: str) -> None:
        """Remove an ended container, then the volume that only it used (either may be empty)."""
        self.hold_off()
        with self._news:
            self._due.append((container, volume))
            self._news.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Remove all that is due now, and wait for it."""
        with self._news:
            self._finishing = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (due := self._next()) is not None:
            container, volume = due
            try:
                if container:
                    self._engine.remove_container(container)
                if volume:
                    self._engine.remove_volume(volume)
            except EngineError as error:
                self.failures.append(str(error))

    def _next(self) -> tuple[str, str] | None:
        """What to remove now; waits for it. None when all is done."""
        with self._news:
            while True:
                left_s = self._quiet_at - time.monotonic()
                if self._due and (self._finishing or left_s <= 0 or len(self._due) > _BACKLOG):
                    return self._due.popleft()
                if self._finishing:
                    return None
                self._news.wait(left_s if self._due else None)
