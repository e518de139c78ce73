"""The session of one build in this process: its log, store entry, output and signals."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime, timedelta
from typing import Protocol

from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.build_run.log_upload import LogUpload
from buildrunner.cli.terminal.streams import Interruption
from buildrunner.containers.process_owner import this_process
from buildrunner.engine.cancellation import CancelToken
from buildrunner.engine.events import BuildEvent, StepStarted
from buildrunner.engine.log.pipeline import LogSink, TeeSink
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.errors import (
    EXIT_BUILD_FAILED,
    EXIT_INFRASTRUCTURE,
    EXIT_INTERRUPTED,
    EXIT_SUCCESS,
    EXIT_TIMEOUT,
    StoreError,
)
from buildrunner.logs.files.log_file import LOG_NAME, LogFileSink, log_folder
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.settings import data_folder, terminal
from buildrunner.spec.model.build import Build, Status
from buildrunner.storage.stores import Stores
from buildrunner.store.build_store import BuildStore, Document
from buildrunner.store.records import BuildRecord, BuildWriter

EXIT_CODES = {
    Status.SUCCESS: EXIT_SUCCESS,
    Status.FAILURE: EXIT_BUILD_FAILED,
    Status.INTERNAL_ERROR: EXIT_INFRASTRUCTURE,
    Status.TIMEOUT: EXIT_TIMEOUT,
    Status.CANCELLED: EXIT_INTERRUPTED,
}
_LOCATION = "global"


class BuildSession:
    """Stores and shows one build while it is entered. Signals cancel the build.

    Args:
        build: with its id; substitutions made where that is possible by now.
        plan: its plan; until the build is planned, a plan without steps.
        stores: which store has the bucket of the log.
        output: returns the display of the build, given the folder of the log.

    Attributes:
        sink: takes the log.
        cancel: set when the user wants the build to stop.
    """

    def __init__(
        self, build: Build, plan: BuildPlan, stores: Stores, output: Callable[[str], Output]
    ) -> None:
        self._plan = plan
        self._stores = stores
        self._make_output = output
        self._made_log_upload: LogUpload | None = None
        self._store_folder = data_folder()
        self._record = BuildRecord(
            replace(self._with_places(build, plan), create_time=_now()), _left_out(build, plan)
        )
        self.cancel = CancelToken()

    def __enter__(self) -> BuildSession:
        with ExitStack() as stack:
            self._folder = _LogFolder(self._plan, self._store_folder)
            stack.callback(self._folder.close)
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: ExitStack) -> None:
        self._log = LogFileSink(self._folder.path)
        self._output = self._make_output(self._folder.path)
        self.sink: LogSink = TeeSink(self._log, self._output.sink)
        self._writer = BuildWriter(
            _store_opener(self._store_folder), _document, owner=this_process()
        )
        self._writer.save(self._record.build)
        interruption = Interruption(
            lambda: self.cancel.cancel(f"cancelled by {interruption.by}"), self._output.notice
        )
        self._interruption = stack.enter_context(interruption)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def planned(self, build: Build, plan: BuildPlan) -> None:
        """Take the build and its plan, if they were unknown when the session began."""
        self._folder.store_log = plan.store_log
        self._record.planned(self._with_places(build, plan), _left_out(build, plan))
        self._output.planned(plan)
        self._writer.save(self._record.build)

    def _with_places(self, build: Build, plan: BuildPlan) -> Build:
        """Return the build with its name and its log's URL. The URL is that of a file."""
        location = plan.substitutions.get("LOCATION") or _LOCATION
        name = f"projects/{build.project_id}/locations/{location}/builds/{build.id}"
        build = replace(build, name=name, timeout=timedelta(seconds=plan.timeout_s))
        if not plan.store_log:
            return build
        folder = os.path.abspath(log_folder(self._store_folder, build.id))
        return replace(build, log_url=_file_url(os.path.join(folder, LOG_NAME)))

    def on_event(self, event: BuildEvent) -> None:
        """Take an event of the build."""
        self._output.on_event(event)
        if deployed := self._record.deployments(event):
            self._writer.add_deployments(deployed)
        if self._record.apply(event):
            self._writer.save(self._record.build)
        if isinstance(event, StepStarted):
            self._writer.begin()
            if self._record.build.logs_bucket:
                self._log_upload().begin(self._record.build)

    def finish(self, outcome: BuildOutcome) -> int:
        """End the session of a finished build: store its results and show the rest.

        Returns:
            The exit code of the command.
        """
        self._record.finish(outcome)
        self._store_attestations(outcome.attestations)
        self._store_log()
        self._writer.save(self._record.build)
        exit_code = self._exit_code(outcome)
        try:
            self._output.finish(self._record.build, exit_code, lambda: self._interruption.caught)
        finally:
            self._log.close()
            _close_writer(self._writer)
        return exit_code

    def _store_attestations(self, attestations: Sequence[bytes]) -> None:
        if not attestations:  # the usual case imports nothing
            return
        from buildrunner.provenance.stored import store_attestations

        try:
            store_attestations(log_folder(self._store_folder, self._plan.build_id), attestations)
        except StoreError as error:
            say(f"warning: {error}\n")

    def _exit_code(self, outcome: BuildOutcome) -> int:
        if self._interruption.caught and outcome.status is not Status.SUCCESS:
            return EXIT_INTERRUPTED
        return EXIT_CODES[outcome.status]

    def _log_upload(self) -> LogUpload:
        if self._made_log_upload is None:
            self._made_log_upload = LogUpload(self._stores)
        return self._made_log_upload

    def _store_log(self) -> None:
        build = self._record.build
        if not build.logs_bucket:
            return
        path = os.path.join(self._folder.path, LOG_NAME)
        stored = self._log_upload().stored(build, path, lambda: self._interruption.caught)
        self._record.replace(stored)
        for warning in stored.warnings[len(build.warnings) :]:
            say(f"warning: {warning.text}\n")


class _LogFolder:
    """The folder of the log. For ``logging: NONE``, it is deleted with the build."""

    def __init__(self, plan: BuildPlan, store_folder: str) -> None:
        self.store_log = plan.store_log
        if plan.store_log:
            self.path = log_folder(store_folder, plan.build_id)
        else:
            import tempfile

            self.path = tempfile.mkdtemp(prefix="buildrunner-log-")

    def close(self) -> None:
        if not self.store_log:
            import shutil

            shutil.rmtree(self.path, ignore_errors=True)


def _left_out(build: Build, plan: BuildPlan) -> set[int]:
    """Return the indexes of the steps that the user left out."""
    if not plan.left_out:
        return set()
    return set(range(len(build.steps))) - {step.index for step in plan.steps}


def _now() -> datetime:
    from datetime import UTC

    return datetime.now(UTC)


def _store_opener(folder: str) -> Callable[[], BuildStore]:
    def open_store() -> BuildStore:
        return wiring.build_store(folder)

    return open_store


def _document(build: Build) -> Document:
    from buildrunner.spec.writing import encode_message

    return encode_message(build)


def _close_writer(writer: BuildWriter) -> None:
    # The build itself has ended by now: a failure of the store is only a warning.
    try:
        writer.close()
    except StoreError as error:
        say(f"warning: this build is not kept: {error}\n")


def _file_url(path: str) -> str:
    if path.isascii() and not set(path) & set(' %?#"<>'):  # the usual case imports nothing
        return f"file://{path}"
    from urllib.parse import quote

    return f"file://{quote(path)}"


# A blocked output must not delay the end of a build that was cancelled.
_DRAIN_S = 1.0
_LOOK_S = 0.2


class Output(Protocol):
    """The display of a running build: `TextOutput` or `JsonOutput`."""

    sink: LogSink

    def planned(self, plan: BuildPlan) -> None:
        """Take the plan of a build that had none when it began."""
        ...

    def on_event(self, event: BuildEvent) -> None:
        """Take an event."""
        ...

    def notice(self, text: str) -> None:
        """Show a message at once. Any thread may call it."""
        ...

    def finish(self, build: Build, exit_code: int, hurry: Callable[[], bool]) -> None:
        """Show the rest of a finished build; cut short once ``hurry`` returns true."""
        ...


class TextOutput:
    """Log, status line and summary for a person."""

    def __init__(
        self,
        plan: BuildPlan,
        folder: str,
        *,
        quiet: bool,
        command: str = "",
        log_command: str = "buildrunner builds log",
        retry_command: str = "",
    ) -> None:
        from buildrunner.logs.console.console import Console

        output_look = terminal(
            output_is_terminal=os.isatty(1), encoding=sys.stdout.encoding or "ascii"
        )
        dialogue_look = terminal(
            output_is_terminal=os.isatty(2), encoding=sys.stderr.encoding or "ascii"
        )
        if dialogue_look.live and not quiet and _is_pipe(1):
            # The reader (`| tee log`) may print to this terminal, in the middle of the status line.
            dialogue_look = replace(dialogue_look, live=False)
        self._command = command
        self._log_command = log_command
        self._retry_command = retry_command
        self._console = Console(plan, folder, output_look, dialogue_look, quiet=quiet)
        self.sink: LogSink = self._console

    def planned(self, plan: BuildPlan) -> None:
        """See `Output.planned`."""
        self._console.planned(plan)

    def on_event(self, event: BuildEvent) -> None:
        """See `Output.on_event`."""
        self._console.on_event(event)

    def notice(self, text: str) -> None:
        """See `Output.notice`."""
        self._console.notice(text)

    def finish(self, build: Build, exit_code: int, hurry: Callable[[], bool]) -> None:  # noqa: ARG002
        """See `Output.finish`."""
        while not hurry() and not self._console.drain(_LOOK_S):
            pass
        self._console.drain(_DRAIN_S)
        say(self._console.summary(self._command, self._log_command, self._retry_command))

    def close(self) -> None:
        """Show the remaining output and erase the status line. Idempotent."""
        self._console.drain(_DRAIN_S)


class JsonOutput:
    """Events and log lines for a machine."""

    def __init__(self) -> None:
        from buildrunner.logs.console.outputs import JsonEvents

        self._events = JsonEvents(1)
        self.sink: LogSink = self._events

    def planned(self, plan: BuildPlan) -> None:
        """See `Output.planned`: events name steps by their index."""

    def on_event(self, event: BuildEvent) -> None:
        """See `Output.on_event`."""
        self._events.on_event(event)

    def notice(self, text: str) -> None:
        """See `Output.notice`."""
        os.write(2, f"{text}\n".encode())

    def finish(self, build: Build, exit_code: int, hurry: Callable[[], bool]) -> None:  # noqa: ARG002
        """See `Output.finish`."""
        from buildrunner.spec.writing import encode_message

        self._events.result(encode_message(build), exit_code)
        if lost := self._events.lost:
            say(f"warning: standard output can't be written ({lost}): events are lost\n")

    def close(self) -> None:
        """Do nothing: events are written at once."""


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def say(text: str) -> None:
    """Print a message to the user beside the log."""
    # The terminal may be closed, and that may have cancelled the build.
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
