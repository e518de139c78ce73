"""The execution of one build in its process, from the lease to the final status.

The order keeps the stored state true for a process that takes over after a crash:

1. The process and its fence are stored; an earlier holder of the build can't write any more.
2. Each state is stored, through the lease, before the work that it announces is done.
3. After the work, the log is closed and flushed to the disk, then the finished Build is
   noted in the run folder, then the log is sent to its bucket, then the final status is stored:
   a finished build has a complete log.

A second process for the same build (``resume``) continues where the first one stopped; see
`recovery`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from typing import Protocol

import msgspec
from msgspec.structs import replace

from buildrunner.containers.process_owner import this_process
from buildrunner.engine.cancellation import CancelToken
from buildrunner.engine.events import BuildEvent, StepStarted
from buildrunner.engine.log.pipeline import LogSink
from buildrunner.engine.outcome import BuildOutcome, text_of
from buildrunner.errors import BuildrunnerError, InvalidRecord, LeaseLost, StoreError
from buildrunner.logs.files.log_file import INDEX_NAME, LOG_NAME, LogFileSink
from buildrunner.provenance.stored import store_attestations
from buildrunner.spec.model.build import Build, Status
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.writing import encode_message
from buildrunner.store.model.builds import LOST_WORKER, BuildQueue, Lease, StoredBuild
from buildrunner.store.records import BuildRecord, reused_steps_of, rollback_of
from buildrunner.triggers.labels import RERUNS_LOST
from buildrunner.worker.data_folder import DataFolder
from buildrunner.worker.leases import LeasedRecord, LeaseKeeper, until_available
from buildrunner.worker.recovery import (
    BuildNotes,
    PlannedNote,
    Recovery,
    ResumePoint,
    begun_again,
    died_text,
    end_of_log,
    ended_so,
    failed_so,
    recovery_of,
    resume_point,
    stored_events,
)

EXIT_LEASE_LOST = 75

_logger = logging.getLogger(__name__)


def execute(
    job: Execution, *, resume: bool, on_look: Callable[[Callable[[], None]], None]
) -> Status:
    """Run the build to its end, or store the end that another process left.

    Args:
        job: the build and its dependencies.
        resume: whether another process began the build.
        on_look: gets a function that checks at once for a cancel request; a signal handler may
            call it.

    Returns:
        The final status of the build.

    Raises:
        StoreError: the folder or the database can't be used.
        InvalidRecord: the server refuses every end of the build.
    """
    _take(job)
    cancel = CancelToken()
    if job.stored.cancel_requested:  # before the work of the dead process is examined
        cancel.cancel(job.stored.cancel_reason)
    process = _Process(job, cancel)
    keeper = LeaseKeeper(
        job.queue,
        job.lease,
        on_cancel=cancel.cancel,
        on_lost=process.writer.lost,
        now=job.now,
        every_s=job.renew_s,
    )
    on_look(keeper.look)
    keeper.start()
    try:
        status = process.run(resume=resume)
    finally:
        keeper.close()
    job.folder.drop_run_folder(job.lease.build_id)
    return status


def give_up(job: Execution, reason: str) -> None:
    """End a build that no process will run again, unless its end is noted already.

    Raises:
        StoreError: its log or its notes can't be written.
        InvalidRecord: see `execute`.
    """
    process = _Process(job, CancelToken())
    if recovery_of(process.notes) is Recovery.STORE_END:
        process.run(resume=True)
    else:
        process.give_up(reason)


def _take(job: Execution) -> None:
    try:
        until_available(lambda: job.queue.set_process(job.lease, this_process()))
    except LeaseLost:
        job.lost()
        raise


class _Process:
    def __init__(self, job: Execution, cancel: CancelToken) -> None:
        self._job = job
        self._id = job.lease.build_id
        self._cancel = cancel
        self.notes = BuildNotes(job.folder.make_run_folder(self._id))
        self.writer = LeasedRecord(job.queue, job.lease, on_lost=job.lost)
        self._log_folder = job.folder.log_folder(self._id)
        self._build = decode_message(Build, job.stored.document).value

    def run(self, *, resume: bool) -> Status:
        if self._build.status.is_final:
            return self._build.status
        if not resume:
            return self._run()
        self._record_deployed()
        match recovery_of(self.notes):
            case Recovery.STORE_END:
                return self._store_end(decode_message(Build, self.notes.final()).value)
            case Recovery.RUN_AGAIN:
                return self._run_again()
            case Recovery.RESUME:
                return self._run(resumed=True)
            case Recovery.GIVE_UP:
                return self.give_up(died_text(self._build, self.notes.death()))

    def _record_deployed(self) -> None:
        """Record the deployments of ended steps, some of which the dead process may have missed."""
        record = BuildRecord(self._build)
        for event in stored_events(self._log_folder):
            if deployed := record.deployments(event):
                self.writer.save_deployments(deployed)

    def _run_again(self) -> Status:
        """Run the build from the beginning: no step has run, or its trigger wants it."""
        self._sweep()
        log = LogFileSink(self._log_folder)
        try:
            said = os.path.getsize(os.path.join(self._log_folder, LOG_NAME))
            labels = self._job.stored.labels
            if said or LOST_WORKER in labels:
                ran = LOST_WORKER in labels and RERUNS_LOST in labels
                log.write(begun_again(self.notes.death(), self._job.now(), ran=ran))
        finally:
            log.close()
        return self._run()

    def _sweep(self) -> tuple[str, ...]:
        """Remove the resources of the dead process; return the warnings."""
        try:
            self._job.program.sweep(self._id)
        except BuildrunnerError as error:  # the supervisor sweeps again later
            _logger.warning("build %s: %s", self._id, error)
            return (f"something of the build was left behind: {error}",)
        return ()

    def _run(self, *, resumed: bool = False) -> Status:
        log = self._job.wrap_log(LogFileSink(self._log_folder, limit_bytes=self._job.log_bytes))
        events = self._job.open_events(self._log_folder)
        record = BuildRecord(self._build)
        try:
            resume = self._resume_point(record, log) if resumed else None
            outcome = self._run_program(record, log, events, resume)
            store_attestations(self._log_folder, outcome.attestations)
            record.finish(outcome)
        except BuildrunnerError as error:
            _logger.exception("build %s could not be run", self._id)
            now = self._job.now()
            with suppress(StoreError):  # the error may be a full disk
                log.write(end_of_log(text_of(error), now))
            record.replace(failed_so(record.build, error, now))
        except Exception as error:  # a second try would meet the same bug
            now = self._job.now()
            reason = f"this is a bug in buildrunner ({type(error).__name__})"
            report = self._job.folder.report_crash(self._id, error)
            _logger.exception("build %s: %s; the details are in %s", self._id, reason, report)
            with suppress(StoreError):
                log.write(end_of_log(reason, now))
            record.replace(ended_so(record.build, reason, now, self._sweep()))
        finally:
            events.close()
            log.close()
        return self._end(record.build)

    def _resume_point(self, record: BuildRecord, log: LogSink) -> ResumePoint | None:
        """Return the resume point, after updating the record to it; None to run all again."""
        point = resume_point(self.notes, self._log_folder)
        if point is None:  # it died between the note and the event of the first step
            self._sweep()
            log.write(begun_again(self.notes.death(), self._job.now()))
            return None
        noted = decode_message(Build, point.planned.document).value
        # After an outage of the database, the events are at least as new.
        record.replace(self._build if self._build.steps else noted)
        return point

    def _run_program(
        self,
        record: BuildRecord,
        log: LogSink,
        events: EventWriter,
        resume: ResumePoint | None,
    ) -> BuildOutcome:
        def on_event(event: BuildEvent) -> None:
            if isinstance(event, StepStarted):
                self.notes.note_steps_begun()
            events.on_event(event)
            if record.apply(event):
                self.writer.save(encode_message(record.build))
            if deployed := record.deployments(event):
                self.writer.save_deployments(deployed)
            for listener in self._job.listeners:
                listener(event)

        def on_plan(note: PlannedNote) -> None:
            resolved = decode_message(Build, note.document).value
            labels = self._job.stored.labels
            reused, rollback = reused_steps_of(labels), rollback_of(labels)
            only = None if rollback is None else rollback.step
            record.replace(planned(record.build, resolved, reused, only))
            self.notes.note_planned(replace(note, document=encode_message(record.build)))
            self.writer.save(encode_message(record.build))
            self.writer.save_plan(bytes(note.plan))

        if resume is None:
            self.notes.forget_run()
        wiring = RunWiring(
            sink=log,
            on_event=on_event,
            on_plan=on_plan,
            on_workspace=self.notes.note_workspace,
            cancel=self._cancel,
            resume=resume,
        )
        return self._job.program.run(self._job.stored, wiring)

    def give_up(self, reason: str) -> Status:
        """End a build whose steps did unknown work meanwhile, and remove its resources."""
        warnings = self._sweep()
        now = self._job.now()
        with suppress(StoreError):
            log = LogFileSink(self._log_folder)
            log.write(end_of_log(reason, now))
            log.close()
        return self._end(ended_so(self._build, reason, now, warnings))

    def _end(self, build: Build) -> Status:
        """End a build whose log is closed: make the log durable, then store the end."""
        for name in (LOG_NAME, INDEX_NAME):
            flush_to_disk(os.path.join(self._log_folder, name))
        try:
            self.notes.note_final(encode_message(build))
        except StoreError as error:  # without the note, a later crash repeats some work
            _logger.warning("the end of build %s can't be noted: %s", self._id, error)
        return self._store_end(build)

    def _store_end(self, build: Build) -> Status:
        if build.logs_bucket:
            build = self._job.program.store_log(
                self._job.stored, build, os.path.join(self._log_folder, LOG_NAME)
            )
        try:
            self.writer.finish(encode_message(build))
        except InvalidRecord as error:
            return self._end_refused(build, error)
        return build.status

    def _end_refused(self, build: Build, error: InvalidRecord) -> Status:
        """End a build as it was last stored, with the reason why the server refused its end."""
        reason = f"the build ended with {build.status.name}, which can't be recorded: {error}"
        _logger.error("build %s: %s", self._id, reason)
        now = self._job.now()
        with suppress(StoreError):
            log = LogFileSink(self._log_folder)
            log.write(end_of_log(reason, now))
            log.close()
        stored = decode_message(Build, self.writer.taken or self._job.stored.document).value
        ended = ended_so(stored, reason, now)
        self.writer.finish(encode_message(ended))
        return ended.status


def planned(
    stored: Build, resolved: Build, reused: Collection[int] = (), only: int | None = None
) -> Build:
    """Return the Build to show after substitution, with the fields that only the server sets.

    Args:
        stored: the Build as shown so far.
        resolved: the Build of the request after substitution.
        reused: indexes of steps that an earlier build ran, and this build does not.
        only: index of the only step that runs; None for all. The others have no status.
    """
    steps = tuple(
        replace(step, status=Status.SUCCESS if index in reused else Status.QUEUED)
        if only in (None, index)
        else step
        for index, step in enumerate(resolved.steps)
    )
    added = tuple(tag for tag in stored.tags if tag not in resolved.tags and "$" not in tag)
    kept = {name: getattr(stored, name) for name in Build.OUTPUT_ONLY}
    return replace(
        resolved,
        **kept,
        steps=steps,
        tags=(*resolved.tags, *added),
        timeout=resolved.timeout or stored.timeout,
        queue_ttl=resolved.queue_ttl or stored.queue_ttl,
    )


def flush_to_disk(path: str) -> None:
    """Flush a file to the disk, so that it survives a power cut; ignore a missing file."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunWiring(msgspec.Struct, frozen=True, kw_only=True):
    """The receivers of a run's reports, and the source of its cancel requests.

    Attributes:
        sink: receives the log. Not closed.
        on_event: receives events, in the thread that runs the build.
        on_plan: called with the plan before it is run; its exceptions end the build.
        on_workspace: called with the filled workspace (`encode_prepared`) before the first step.
        cancel: set to cancel the build.
        resume: the resume point of a build that a dead process began.
    """

    sink: LogSink
    on_event: Callable[[BuildEvent], None]
    on_plan: Callable[[PlannedNote], None]
    on_workspace: Callable[[bytes], None]
    cancel: CancelToken
    resume: ResumePoint | None = None


class BuildProgram(Protocol):
    """The program that runs a Build: source, plan, steps, push. ``submit`` shares its code."""

    def run(self, stored: StoredBuild, wiring: RunWiring) -> BuildOutcome:
        """Run ``stored.request`` to its end, or resume it, and remove its resources.

        Failures are outcomes.

        Raises:
            BuildrunnerError: the build can't begin.
        """
        ...

    def sweep(self, build_id: str) -> None:
        """Remove all resources of an earlier process of the build.

        Raises:
            EngineError: some resources could not be removed.
        """
        ...

    def store_log(self, stored: StoredBuild, build: Build, path: str) -> Build:
        """Store the log in the Build's bucket; return the Build, with a warning on failure."""
        ...


class EventWriter(Protocol):
    """Writes the events of a build."""

    def on_event(self, event: BuildEvent) -> None:
        """Write one event."""
        ...

    def close(self) -> None:
        """End writing. All events are stored when this returns."""
        ...


class Execution(msgspec.Struct, frozen=True, kw_only=True):
    """The dependencies of `execute`.

    Attributes:
        queue: queue with the build.
        stored: the build as claimed.
        lease: the lease of the build.
        folder: the server's folder.
        program: runs builds.
        open_events: opens the event log in the log folder of a build.
        now: returns the current time.
        lost: called when another worker has the lease. It ends the process and does not return;
            the resources on the engine belong to the new holder.
        listeners: further receivers of events, such as a trace.
        log_bytes: maximum size of the log on the disk; 0 sets no limit.
        wrap_log: returns the sink that the build writes to, for a log file.
        renew_s: seconds between renewals of the lease.
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
    wrap_log: Callable[[LogFileSink], LogSink] = lambda log: log
    renew_s: float = 5.0
