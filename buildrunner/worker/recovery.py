"""Recovery of a build whose process died, from the notes that the process left.

Notes (`BuildNotes`) are on this disk, beside the log: the database may be away when it matters.
Each note is there whole or not at all, also after a power cut, before the process does what the
note is about. The process that takes the build over decides by the notes:

* the work was done and only its end not stored: store that end (`Recovery.STORE_END`);
* no step was ever started: remove what was made and begin again (`Recovery.RUN_AGAIN`);
* steps have run: resume with the containers that are there, from the stored plan, workspace, events
  and log (`Recovery.RESUME`, see `engine.resume`);
* steps have run, but what it takes to resume was lost: no step may run twice, so that the build is
  ended with what happened as the reason (`Recovery.GIVE_UP`).
"""

from __future__ import annotations

import enum
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

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
from buildrunner.store.build_store import Document
from buildrunner.store.model.builds import StoredBuild
from buildrunner.worker.data_folder import write_durably

_STEPS_BEGUN = "steps-begun"
_FINAL = "final.json"
_DEATH = "death"
_PLANNED = "planned.json"
_WORKSPACE = "workspace.json"


class PlannedNote(msgspec.Struct, frozen=True):
    """The build that will run, as a later process needs it.

    Attributes:
        document: the Build with its substitutions made.
        plan: its plan, as JSON.
        checkout: folder of the Git checkout that the workspace stands on; empty for none.
        commit: its commit.
    """

    document: dict[str, Any]
    plan: msgspec.Raw
    checkout: str = ""
    commit: str = ""


class BuildNotes:
    """Notes in a build's run folder, which is there. Used by one process at a time."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @property
    def steps_begun(self) -> bool:
        """A step may have been started: beginning anew could run it twice."""
        return os.path.exists(os.path.join(self._folder, _STEPS_BEGUN))

    def note_steps_begun(self) -> None:
        """A step is about to be started."""
        if not self.steps_begun:
            write_durably(os.path.join(self._folder, _STEPS_BEGUN), b"")

    def planned(self) -> PlannedNote | None:
        """The plan, once it was decided."""
        data = self._read(_PLANNED)
        return None if data is None else msgspec.json.decode(data, type=PlannedNote)

    def note_planned(self, note: PlannedNote) -> None:
        """It is decided what is run; nothing of it was done yet."""
        write_durably(os.path.join(self._folder, _PLANNED), msgspec.json.encode(note))

    def workspace(self) -> bytes | None:
        """The filled workspace, as `workspace_resumed.encode_prepared` wrote it."""
        return self._read(_WORKSPACE)

    def note_workspace(self, prepared: bytes) -> None:
        """The workspace is filled; no step has seen it yet."""
        write_durably(os.path.join(self._folder, _WORKSPACE), prepared)

    def forget_all(self) -> None:
        """Nothing is known of the build: it is another run than the one of the notes."""
        for name in (_STEPS_BEGUN, _FINAL, _DEATH, _PLANNED, _WORKSPACE):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, name))

    def forget_run(self) -> None:
        """The build begins anew: what was decided and filled for it is gone."""
        for name in (_PLANNED, _WORKSPACE):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, name))

    def final(self) -> Document | None:
        """The finished Build, when the work is done and its log complete."""
        data = self._read(_FINAL)
        return None if data is None else msgspec.json.decode(data, type=dict)

    def note_final(self, document: Document) -> None:
        """The work is done, the log complete; what is left is to store both."""
        write_durably(os.path.join(self._folder, _FINAL), msgspec.json.encode(document))

    def death(self) -> str:
        """How the process before ours ended, as far as somebody saw it; empty when nobody did."""
        return (self._read(_DEATH) or b"").decode()

    def note_death(self, how: str) -> None:
        """Note how the build's process ended: ``it was killed by signal 9``."""
        write_durably(os.path.join(self._folder, _DEATH), how.encode())

    def _read(self, name: str) -> bytes | None:
        try:
            with open(os.path.join(self._folder, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None


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
