"""Running a compiled build in this process: log, store, console and signals around the engine."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import msgspec

from buildrunner import wiring
from buildrunner.cli.build_request import BuildRequest
from buildrunner.cli.interrupt import Interruption
from buildrunner.engine.cancel_token import CancelToken
from buildrunner.engine.events import StepStarted
from buildrunner.engine.run_build import run_build
from buildrunner.engine.run_options import RunOptions
from buildrunner.errors import (
    EXIT_BUILD_FAILED,
    EXIT_INFRASTRUCTURE,
    EXIT_INTERRUPTED,
    EXIT_SUCCESS,
    EXIT_TIMEOUT,
    StoreError,
)
from buildrunner.logs.log_file import LOG_NAME, LogFileSink, log_folder
from buildrunner.logs.tee import TeeSink
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.settings import Settings, data_folder, terminal
from buildrunner.spec.model import Build, Status
from buildrunner.store.build_record import BuildRecord
from buildrunner.store.build_writer import BuildWriter
from buildrunner.store.process_owner import this_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.engine.events import BuildEvent
    from buildrunner.engine.outcome import BuildOutcome
    from buildrunner.engine.workspace_protocol import Workspace
    from buildrunner.logs.sink import LogSink
    from buildrunner.storage.stores import Stores
    from buildrunner.store.build_store import BuildStore, Document

EXIT_CODES = {
    Status.SUCCESS: EXIT_SUCCESS,
    Status.FAILURE: EXIT_BUILD_FAILED,
    Status.INTERNAL_ERROR: EXIT_INFRASTRUCTURE,
    Status.TIMEOUT: EXIT_TIMEOUT,
    Status.CANCELLED: EXIT_INTERRUPTED,
}
# An output that takes nothing must not hold up the end of a build that was cancelled.
_DRAIN_S = 1.0
_LOOK_S = 0.2


class SubmittedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """What is to run, and how it is shown.

    Attributes:
        build: the build resource, substitutions made, with the steps that run.
        plan: its plan.
        request: which config, on which source.
        settings: settings and flags together.
        pause_image: image of containers that hold network namespaces; None makes none.
        extra_hosts: entries for the hosts file of every step.
        ignore_file: ``--ignore-file``.
        push: push images at the end.
        quiet: don't show the log.
        as_json: events as JSON lines instead of text.
        command: how to submit the same again, for hints.
    """

    build: Build
    plan: BuildPlan
    request: BuildRequest
    settings: Settings
    pause_image: str | None = None
    extra_hosts: tuple[str, ...] = ()
    ignore_file: str = ""
    push: bool = True
    quiet: bool = False
    as_json: bool = False
    command: str = "buildrunner submit"


class Output(Protocol):
    """What shows a running build: `TextOutput` or `JsonOutput`."""

    sink: LogSink

    def on_event(self, event: BuildEvent) -> None:
        """Take an event."""
        ...

    def notice(self, text: str) -> None:
        """Say something at once, from a signal handler."""
        ...

    def finish(self, build: Build, exit_code: int, hurry: Callable[[], bool]) -> None:
        """The build is over: show the rest. ``hurry`` tells when nobody wants to wait for it."""
        ...


def run_submitted(submitted: SubmittedBuild, engine: ContainerEngine) -> int:
    """Run the build to its end, keep it in the store, show it.

    Args:
        submitted: what to run.
        engine: where; a guardian watches over the build by now. Not closed.

    Returns:
        The exit code of the command.
    """
    from datetime import UTC, datetime

    stores = wiring.stores(submitted.settings)
    workspace = _workspace(submitted, stores)
    publisher = (
        wiring.publisher(submitted.plan, submitted.settings, engine) if submitted.push else None
    )
    secrets = wiring.secret_resolver(submitted.settings)
    store_folder = data_folder()
    record = BuildRecord(msgspec.structs.replace(submitted.build, create_time=datetime.now(UTC)))
    cancel = CancelToken()
    with _LogFolder(submitted.plan, store_folder) as folder:
        log = LogFileSink(folder)
        output = _output(submitted, folder)
        sink = TeeSink(log, output.sink)
        writer = BuildWriter(_store_opener(store_folder), _document, owner=this_process())
        writer.save(record.build)

        def on_event(event: BuildEvent) -> None:
            output.on_event(event)
            if record.apply(event):
                writer.save(record.build)
            if isinstance(event, StepStarted):
                writer.begin()

        with Interruption(cancel.cancel, output.notice) as interruption:
            outcome = run_build(
                submitted.plan,
                engine=engine,
                workspace=workspace,
                secrets=secrets,
                sink=sink,
                on_event=on_event,
                cancel=cancel,
                options=_options(submitted),
                publisher=publisher,
                uploader=wiring.uploader(submitted.plan, stores),
            )
            record.finish(outcome)
            if submitted.build.logs_bucket:
                _store_log(record, stores, folder, lambda: interruption.caught)
            writer.save(record.build)
            exit_code = _exit_code(outcome, interrupted=interruption.caught)
            try:
                output.finish(record.build, exit_code, lambda: interruption.caught)
            finally:
                log.close()
                _close_writer(writer)
    return exit_code


def _workspace(submitted: SubmittedBuild, stores: Stores) -> Workspace:
    request = submitted.request
    if request.archive:
        return wiring.archive_workspace(request.archive)
    if request.folder is None:
        fetched = wiring.storage_workspace(submitted.build, stores)
        if fetched is not None:
            return fetched
    return wiring.workspace(request.folder, ignore_file=submitted.ignore_file)


def _store_log(record: BuildRecord, stores: Stores, folder: str, hurry: Callable[[], bool]) -> None:
    from buildrunner.artifacts.stored_log import wants_stored_log

    if not wants_stored_log(record.build):
        return
    from buildrunner.cli.log_upload import with_stored_log

    before = len(record.build.warnings)
    path = os.path.join(folder, LOG_NAME)
    record.replace(with_stored_log(record.build, stores, path, hurry))
    for warning in record.build.warnings[before:]:
        _say(f"warning: {warning.text}\n")


class _LogFolder:
    """The folder of the log; one that vanishes with the build for ``logging: NONE``."""

    def __init__(self, plan: BuildPlan, store_folder: str) -> None:
        self._plan = plan
        self._store_folder = store_folder
        self._temporary = ""

    def __enter__(self) -> str:
        if self._plan.store_log:
            return log_folder(self._store_folder, self._plan.build_id)
        import tempfile

        self._temporary = tempfile.mkdtemp(prefix="buildrunner-log-")
        return self._temporary

    def __exit__(self, *_: object) -> None:
        if self._temporary:
            import shutil

            shutil.rmtree(self._temporary, ignore_errors=True)


class TextOutput:
    """Log, status line and summary for a person."""

    def __init__(self, submitted: SubmittedBuild, folder: str) -> None:
        from buildrunner.logs.console import Console

        output_look = terminal(
            output_is_terminal=os.isatty(1), encoding=sys.stdout.encoding or "ascii"
        )
        dialogue_look = terminal(
            output_is_terminal=os.isatty(2), encoding=sys.stderr.encoding or "ascii"
        )
        self._command = submitted.command
        self._console = Console(
            submitted.plan, folder, output_look, dialogue_look, quiet=submitted.quiet
        )
        self.sink: LogSink = self._console

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
        _say(self._console.summary(self._command))


class JsonOutput:
    """Events and log lines for a machine."""

    def __init__(self) -> None:
        from buildrunner.logs.json_events import JsonEvents

        self._events = JsonEvents(1)
        self.sink: LogSink = self._events

    def on_event(self, event: BuildEvent) -> None:
        """See `Output.on_event`."""
        self._events.on_event(event)

    def notice(self, text: str) -> None:
        """See `Output.notice`."""
        os.write(2, f"{text}\n".encode())

    def finish(self, build: Build, exit_code: int, hurry: Callable[[], bool]) -> None:  # noqa: ARG002
        """See `Output.finish`."""
        self._events.result(_document(build), exit_code)


def _output(submitted: SubmittedBuild, folder: str) -> Output:
    return JsonOutput() if submitted.as_json else TextOutput(submitted, folder)


def _options(submitted: SubmittedBuild) -> RunOptions:
    return RunOptions(
        push=submitted.push,
        network=wiring.NETWORK,
        image_aliases=submitted.settings.image_aliases,
        pause_image=submitted.pause_image,
        leave_cleanup_to_guardian=True,
        home_files=wiring.home_files(submitted.plan, submitted.settings),
        labels=wiring.build_labels(submitted.plan.build_id),
        extra_hosts=submitted.extra_hosts,
    )


def _exit_code(outcome: BuildOutcome, *, interrupted: bool) -> int:
    if interrupted and outcome.status is not Status.SUCCESS:
        return EXIT_INTERRUPTED
    return EXIT_CODES[outcome.status]


def _store_opener(folder: str) -> Callable[[], BuildStore]:
    def open_store() -> BuildStore:
        return wiring.build_store(folder)

    return open_store


def _document(build: Build) -> Document:
    from buildrunner.spec.encode import encode_message

    return encode_message(build)


def _close_writer(writer: BuildWriter) -> None:
    # The build itself is done by now: a store that can't keep it is worth a warning only.
    try:
        writer.close()
    except StoreError as error:
        _say(f"warning: this build is not kept: {error}\n")


def _say(text: str) -> None:
    # The terminal may be gone, which may be why the build was cancelled.
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
