"""What the process of a build works with, and the seams around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from buildrunner.engine.cancel_token import CancelToken
from buildrunner.worker.build_notes import PlannedNote
from buildrunner.worker.recovery import ResumePoint

if TYPE_CHECKING:  # nothing of these is ever decoded, and so looked up (TC004)
    from collections.abc import Callable  # noqa: TC004
    from datetime import datetime  # noqa: TC004

    from buildrunner.engine.events import BuildEvent  # noqa: TC004
    from buildrunner.engine.outcome import BuildOutcome
    from buildrunner.logs.sink import LogSink  # noqa: TC004
    from buildrunner.spec.model import Build
    from buildrunner.store.server_store import BuildQueue  # noqa: TC004
    from buildrunner.store.stored_build import Lease, StoredBuild  # noqa: TC004
    from buildrunner.worker.data_folder import DataFolder  # noqa: TC004


class RunWiring(msgspec.Struct, frozen=True, kw_only=True):
    """What a run reports to, and hears from.

    Attributes:
        sink: takes the log. Not closed.
        on_event: takes events, in the thread that runs the build.
        on_plan: told of what will be run, before any of it is done; what it raises ends the build.
        on_workspace: told of the filled workspace (`encode_prepared`) before any step sees it.
        cancel: the wish to stop.
        resume: an earlier process, which is dead, began the build: from where to go on.
    """

    sink: LogSink
    on_event: Callable[[BuildEvent], None]
    on_plan: Callable[[PlannedNote], None]
    on_workspace: Callable[[bytes], None]
    cancel: CancelToken
    resume: ResumePoint | None = None


class BuildProgram(Protocol):
    """What runs a Build: source, plan, steps, push. The same code that ``submit`` uses."""

    def run(self, stored: StoredBuild, wiring: RunWiring) -> BuildOutcome:
        """Run ``stored.request`` to its end and remove what was made for it; or go on with it.

        Failures are outcomes.

        Raises:
            BuildrunnerError: it can't even begin.
        """
        ...

    def sweep(self, build_id: str) -> None:
        """Remove all that an earlier process made for the build.

        Raises:
            EngineError: something could not be removed.
        """
        ...

    def store_log(self, stored: StoredBuild, build: Build, path: str) -> Build:
        """Put the log where the Build wants it; the Build, with a warning if that failed."""
        ...


class EventWriter(Protocol):
    """Keeps the events of a build."""

    def on_event(self, event: BuildEvent) -> None:
        """Take one."""
        ...

    def close(self) -> None:
        """No more; all taken are kept."""
        ...


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """What `execute` works with.

    Attributes:
        queue: where the build is.
        stored: the build as it was claimed.
        lease: our right to it.
        folder: the server's folder.
        program: runs builds.
        open_events: opens the event log in a build's log folder.
        now: the time.
        lost: called when the lease is somebody else's. It ends the process and does not return;
            whatever is on the engine is the new holder's.
        listeners: told of every event besides, such as a trace.
        log_bytes: what the log may take of the disk; 0 sets no limit.
        renew_s: pause between renewals of the lease.
    """

    queue: BuildQueue
    stored: StoredBuild
    lease: Lease
    folder: DataFolder
    program: BuildProgram
    open_events: Callable[[str], EventWriter]
    now: Callable[[], datetime]
    lost: Callable[[], None]
    listeners: tuple[Callable[[BuildEvent], None], ...] = ()
    log_bytes: int = 0
    renew_s: float = 5.0
