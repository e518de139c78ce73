"""Recovery of a build whose process died.

The decision is taken from the notes that the dead process left (`BuildNotes`), by the process that
takes the build over:

* the work was done and only its end not stored: store that end (`Recovery.STORE_END`);
* no step was ever started: remove what was made and begin again (`Recovery.RUN_AGAIN`);
* steps have run: go on with the containers that are there, from the stored plan, workspace, events
  and log (`Recovery.RESUME`, see `engine.resume`);
* steps have run, but what it takes to go on was lost: no step may run twice, so that the build is
  ended with what happened as the reason (`Recovery.GIVE_UP`).
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Iterator
from datetime import datetime

import msgspec
from msgspec.structs import replace

from buildrunner.engine.events import BuildEvent
from buildrunner.engine.log.pipeline import LogChunk, StoredLog
from buildrunner.engine.outcome import text_of
from buildrunner.engine.resume import ResumeState, resume_state
from buildrunner.errors import EXIT_BAD_CONFIG, EXIT_BUILD_FAILED, BuildrunnerError, NotFound
from buildrunner.logs.files.events import EventLogReader
from buildrunner.logs.files.reader import LogFileReader
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.sandboxes.protocol import Sandbox
from buildrunner.spec.model.build import FINAL_STATUSES, Build, Status
from buildrunner.spec.model.results import FailureInfo, FailureType, Priority, Warning_
from buildrunner.store.model.builds import StoredBuild
from buildrunner.worker.build_notes import BuildNotes, PlannedNote

MAX_ATTEMPTS = 3

_logger = logging.getLogger(__name__)


class ResumePoint(msgspec.Struct, frozen=True, kw_only=True):
    """The point at which a build resumes after its process died.

    Attributes:
        planned: what was decided to run.
        plan: its plan.
        workspace: what `workspace_resumed.encode_prepared` wrote.
        state: how far it came.
    """

    planned: PlannedNote
    plan: BuildPlan
    workspace: bytes
    state: ResumeState


class Recovery(enum.Enum):
    """How a worker recovers a build whose process died."""

    STORE_END = "store-end"
    RUN_AGAIN = "run-again"
    RESUME = "resume"
    GIVE_UP = "give-up"


def recovery_of(notes: BuildNotes) -> Recovery:
    """Choose the recovery from the notes of the dead process."""
    if notes.final() is not None:
        return Recovery.STORE_END
    if not notes.steps_begun:
        return Recovery.RUN_AGAIN
    if notes.planned() is None or notes.workspace() is None:
        return Recovery.GIVE_UP
    return Recovery.RESUME


def died_text(build: Build, how: str) -> str:
    """One sentence: the build's process died, how if somebody saw it, and during what.

    Args:
        build: as it was stored last.
        how: ``it was killed by signal 9``; empty when nobody saw it.
    """
    seen = f": {how}" if how else " while no server watched it"
    running = [
        f'step {index} ("{step.id or step.name}")'
        for index, step in enumerate(build.steps)
        if step.status is Status.WORKING
    ]
    during = f"; {', '.join(running)} ran at that moment" if running else ""
    return f"the process of this build died{seen}{during}; what it takes to go on is lost"


def too_often_text(how: str) -> str:
    """One sentence: every process of the build died."""
    last = f", the last time because {how}" if how else ""
    return f"the process of this build died {MAX_ATTEMPTS} times{last}"


def ended_so(build: Build, reason: str, now: datetime, warnings: tuple[str, ...] = ()) -> Build:
    """The build, ended by our own fault: INTERNAL_ERROR, with its running steps stopped."""
    steps = tuple(
        replace(
            step,
            status=Status.CANCELLED,
            timing=replace(step.timing, end_time=now) if step.timing else None,
        )
        if step.status is Status.WORKING
        else step
        for step in build.steps
    )
    return replace(
        build,
        status=Status.INTERNAL_ERROR,
        status_detail=reason,
        steps=steps,
        start_time=build.start_time or now,
        finish_time=now,
        warnings=(
            *build.warnings,
            *(Warning_(text=text, priority=Priority.WARNING) for text in warnings),
        ),
    )


def failed_so(build: Build, error: BuildrunnerError, now: datetime) -> Build:
    """The build, ended by what kept us from running it: by its own fault or by ours."""
    if error.exit_code in (EXIT_BUILD_FAILED, EXIT_BAD_CONFIG):
        failure = FailureInfo(type=FailureType.FAILURE_TYPE_UNSPECIFIED, detail=text_of(error))
        ended = ended_so(build, text_of(error), now)
        return replace(ended, status=Status.FAILURE, failure_info=failure)
    return ended_so(build, text_of(error), now)


def resume_point(notes: BuildNotes, log_folder: str) -> ResumePoint | None:
    """From where to go on; None when no step's turn had come.

    Log and events are repaired by now (opened for writing), and nobody writes to them.
    """
    planned, workspace = notes.planned(), notes.workspace()
    if planned is None or workspace is None:
        return None
    reader = LogFileReader(log_folder)
    size = reader.size()
    stored = StoredLog(
        output=reader.stored_output(),
        said=frozenset(reader.own_chunks()),
        is_torn=size > 0 and reader.read(size - 1, 1) != b"\n",
    )
    state = resume_state(stored_events(log_folder), stored)
    if state is None:
        return None
    plan = msgspec.json.decode(planned.plan, type=BuildPlan)
    return ResumePoint(planned=planned, plan=plan, workspace=workspace, state=state)


def stored_events(log_folder: str) -> Iterator[BuildEvent]:
    """Every stored event of a build, in order."""
    reader = EventLogReader(log_folder)
    offset = 0
    while found := reader.read(offset):
        for one in found:
            yield one.event()
        offset = found[-1].end


def begun_again(how: str, now: datetime) -> LogChunk:
    """A line for the log of a build that begins anew, behind what its dead process wrote."""
    text = f"The process of this build died{f' ({how})' if how else ''} before any step began."
    return LogChunk(data=f"{text} It begins again.\n".encode(), step=None, at=now)


def end_of_log(reason: str, now: datetime) -> LogChunk:
    """The log's last lines for a build that we end so."""
    return LogChunk(data=f"ERROR\nERROR: {reason}\n".encode(), step=None, at=now)


def sweep_engine(sandbox: Sandbox, find: Callable[[str], StoredBuild]) -> list[str]:
    """Remove from the engine what belongs to builds of this server that are over.

    What belongs to a build that is not over is left alone, whether its process lives or not: the
    next one goes on with it.

    Args:
        sandbox: where builds live.
        find: the stored build of an id.

    Returns:
        What could not be removed, in sentences.

    Raises:
        StoreError: the database is away: nothing more is removed.
    """
    problems: list[str] = []
    for build_id in sandbox.builds_left():
        try:
            if find(build_id).status not in FINAL_STATUSES:
                continue
        except NotFound:
            _logger.info("build %s is not known any more", build_id)
        try:
            sandbox.remove(build_id)
        except BuildrunnerError as error:
            problems.append(f"build {build_id}: {error}")
    return problems
