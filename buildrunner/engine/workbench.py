"""What every step of a build works with."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from buildrunner.containers.private_names import PrivateNames
from buildrunner.engine.image_pulls import ImagePulls
from buildrunner.engine.log_pipeline import LogPipeline
from buildrunner.engine.reaper import Reaper
from buildrunner.engine.step_container import HOME, build_labels
from buildrunner.engine.step_images import StepImages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.engine.clock import Clock
    from buildrunner.engine.events import BuildEvent
    from buildrunner.engine.log_pipeline import StoredLog
    from buildrunner.engine.run_options import RunOptions
    from buildrunner.engine.workspace_protocol import PreparedWorkspace
    from buildrunner.logs.sink import LogSink
    from buildrunner.plan.build_plan import BuildPlan, SecretReference


class Workbench:
    """The parts that the lives of steps share. Filled by the setup before the first step starts.

    Args:
        plan: what to run.
        engine: where.
        sink: takes the log.
        options: choices of the machine and the person.
        clock: time.
        report: takes events, from any thread.
        on_log_failure: called once, from any thread, when the sink breaks.
        stored: of a build that is resumed: what the log holds already.

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
        sink: LogSink,
        options: RunOptions,
        clock: Clock,
        report: Callable[[BuildEvent], None],
        on_log_failure: Callable[[Exception], None],
        stored: StoredLog | None = None,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.options = options
        self.clock = clock
        self.halt = threading.Event()
        self.log = LogPipeline(sink, clock, on_log_failure, stored)
        images = StepImages(engine, options.public_images)
        self.pulls = ImagePulls(
            plan, images, options.image_aliases, halt=self.halt, clock=clock, report=report
        )
        self.secrets: Mapping[SecretReference, str] = {}
        self.reaper = Reaper(engine)
        self.private_names = PrivateNames(engine, plan.build_id)
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
                self.engine.fill_mount(container, HOME, (tar,))
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
