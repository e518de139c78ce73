"""Recovery of a build whose process died, from the notes of that process.

Notes (`BuildNotes`) are on this disk, beside the log, since the database may not answer. Each note
is written atomically and durably before the process does the work that the note announces. The
process that takes over the build decides by the notes:

* the work was done and only its end was not stored: store that end (`Recovery.STORE_END`);
* no step was started: remove all resources and begin again (`Recovery.RUN_AGAIN`);
* steps have run: resume with the existing containers, from the stored plan, workspace, events
  and log (`Recovery.RESUME`, see `engine.resume`);
* steps have run, but the data for resuming was lost: no step may run twice, so the build is
  ended, with its death as the reason (`Recovery.GIVE_UP`).
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
    """The planned build, for a later process.

    Attributes:
        document: the Build with its substitutions made.
        plan: plan of the build, as JSON.
        checkout: folder of the Git checkout below the workspace; empty for none.
        commit: commit of the checkout.
    """

    document: dict[str, Any]
    plan: msgspec.Raw
    checkout: str = ""
    commit: str = ""


class BuildNotes:
    """Notes in an existing run folder of a build. Used by one process at a time."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @property
    def steps_begun(self) -> bool:
        """Return whether a step may have been started: beginning again could run it twice."""
        return os.path.exists(os.path.join(self._folder, _STEPS_BEGUN))

    def note_steps_begun(self) -> None:
        """Note that a step is about to start."""
        if not self.steps_begun:
            write_durably(os.path.join(self._folder, _STEPS_BEGUN), b"")

    def planned(self) -> PlannedNote | None:
        """Return the planned build; None if it is not noted."""
        data = self._read(_PLANNED)
        return None if data is None else msgspec.json.decode(data, type=PlannedNote)

    def note_planned(self, note: PlannedNote) -> None:
        """Note the planned build, before it is run."""
        write_durably(os.path.join(self._folder, _PLANNED), msgspec.json.encode(note))

    def workspace(self) -> bytes | None:
        """Return the filled workspace, as `encode_prepared` wrote it; None if it is not noted."""
        return self._read(_WORKSPACE)

    def note_workspace(self, prepared: bytes) -> None:
        """Note the filled workspace, before the first step."""
        write_durably(os.path.join(self._folder, _WORKSPACE), prepared)

    def forget_all(self) -> None:
        """Remove all notes: they are of another run of the build."""
        for name in (_STEPS_BEGUN, _FINAL, _DEATH, _PLANNED, _WORKSPACE):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, name))

    def forget_run(self) -> None:
        """Remove the notes of the plan and the workspace: the build begins again."""
        for name in (_PLANNED, _WORKSPACE):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, name))

    def final(self) -> Document | None:
        """Return the finished Build if the work is done and its log complete."""
        data = self._read(_FINAL)
        return None if data is None else msgspec.json.decode(data, type=dict)

    def note_final(self, document: Document) -> None:
        """Note the finished Build, before it and its complete log are stored."""
        write_durably(os.path.join(self._folder, _FINAL), msgspec.json.encode(document))

    def death(self) -> str:
        """Return how the last process ended; empty if unknown."""
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
    """The point from which a build resumes after its process died.

    Attributes:
        planned: the planned build.
        plan: plan of the build.
        workspace: the filled workspace, as `workspace.kept.encode_prepared` wrote it.
        state: progress of the build.
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
    """Return a sentence: the build's process died, how if known, and during what.

    Args:
        build: the Build as last stored.
        how: ``it was killed by signal 9``; empty if unknown.
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
    """Return a sentence: every process of the build died."""
    last = f", the last time because {how}" if how else ""
    return f"the process of this build died {MAX_ATTEMPTS} times{last}"


def ended_so(build: Build, reason: str, now: datetime, warnings: tuple[str, ...] = ()) -> Build:
    """Return the Build, ended by our own fault: INTERNAL_ERROR, with its running steps stopped."""
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
    """Return the Build, ended by an error that prevented running it.

    It is FAILURE for an error of the build or its config, and INTERNAL_ERROR for others.
    """
    if error.exit_code in (EXIT_BUILD_FAILED, EXIT_BAD_CONFIG):
        failure = FailureInfo(type=FailureType.FAILURE_TYPE_UNSPECIFIED, detail=text_of(error))
        ended = ended_so(build, text_of(error), now)
        return replace(ended, status=Status.FAILURE, failure_info=failure)
    return ended_so(build, text_of(error), now)


def resume_point(notes: BuildNotes, log_folder: str) -> ResumePoint | None:
    """Return the resume point; None if no step was reached, or a note is missing.

    Log and events must be repaired (opened for writing) before, and have no other writer.
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
    """Return all stored events of a build, in order."""
    reader = EventLogReader(log_folder)
    offset = 0
    while found := reader.read(offset):
        for one in found:
            yield one.event()
        offset = found[-1].end


def begun_again(how: str, now: datetime, *, ran: bool = False) -> LogChunk:
    """Return a log line for a build that begins again after the output of its dead process.

    Args:
        how: how it died; empty if unknown.
        now: the time.
        ran: steps of it may have run.
    """
    before = "" if ran else " before any step ran"
    text = f"The process of this build died{f' ({how})' if how else ''}{before}."
    return LogChunk(data=f"{text} It begins again.\n".encode(), step=None, at=now)


def end_of_log(reason: str, now: datetime) -> LogChunk:
    """Return the last log lines of a build that we end this way."""
    return LogChunk(data=f"ERROR\nERROR: {reason}\n".encode(), step=None, at=now)


def sweep_engine(sandbox: Sandbox, find: Callable[[str], StoredBuild]) -> list[str]:
    """Remove the resources of this server's finished builds from the engine.

    The resources of unfinished builds are kept, whether the process lives or not: the next process
    resumes with them.

    Args:
        sandbox: the sandbox of builds.
        find: returns the stored build with an id.

    Returns:
        Sentences about the resources that could not be removed.

    Raises:
        StoreError: the database does not answer: the sweep stops.
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
