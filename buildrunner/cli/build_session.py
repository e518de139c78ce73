"""All that stands around one build in this process: log, store, output, signals."""

from __future__ import annotations

import os
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.cli.build_output import say
from buildrunner.cli.interrupt import Interruption
from buildrunner.engine.cancel_token import CancelToken
from buildrunner.engine.events import StepStarted
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
from buildrunner.settings import data_folder
from buildrunner.spec.model import Status
from buildrunner.store.build_record import BuildRecord
from buildrunner.store.build_writer import BuildWriter
from buildrunner.store.process_owner import this_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from buildrunner.cli.build_output import Output
    from buildrunner.cli.log_upload import LogUpload
    from buildrunner.engine.events import BuildEvent
    from buildrunner.engine.outcome import BuildOutcome
    from buildrunner.logs.sink import LogSink
    from buildrunner.plan.build_plan import BuildPlan
    from buildrunner.spec.model import Build
    from buildrunner.storage.stores import Stores
    from buildrunner.store.build_store import BuildStore, Document

EXIT_CODES = {
    Status.SUCCESS: EXIT_SUCCESS,
    Status.FAILURE: EXIT_BUILD_FAILED,
    Status.INTERNAL_ERROR: EXIT_INFRASTRUCTURE,
    Status.TIMEOUT: EXIT_TIMEOUT,
    Status.CANCELLED: EXIT_INTERRUPTED,
}
_LOCATION = "global"


class BuildSession:
    """Keeps and shows one build while it is entered. Signals cancel it.

    Args:
        build: with its id; substitutions made where that is possible by now.
        plan: its plan, or one without steps until there is one.
        stores: which store has the bucket of the log.
        output: makes what shows the build, given the folder of the log.

    Attributes:
        sink: takes the log.
        cancel: set when the person wants the build to stop.
    """

    def __init__(
        self, build: Build, plan: BuildPlan, stores: Stores, output: Callable[[str], Output]
    ) -> None:
        self._plan = plan
        self._stores = stores
        self._make_output = output
        self._made_log_upload: LogUpload | None = None
        self._store_folder = data_folder()
        self._record = BuildRecord(replace(self._with_places(build, plan), create_time=_now()))
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
        interruption = Interruption(self.cancel.cancel, self._output.notice)
        self._interruption = stack.enter_context(interruption)

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def planned(self, build: Build, plan: BuildPlan) -> None:
        """The build and the plan that run, where they were not known when the session began."""
        self._folder.store_log = plan.store_log
        self._record.planned(self._with_places(build, plan))
        self._output.planned(plan)
        self._writer.save(self._record.build)

    def _with_places(self, build: Build, plan: BuildPlan) -> Build:
        """The build with what names it and its log. There is no page: the log is a file."""
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
        if self._record.apply(event):
            self._writer.save(self._record.build)
        if isinstance(event, StepStarted):
            self._writer.begin()
            if self._record.build.logs_bucket:
                self._log_upload().begin(self._record.build)

    def finish(self, outcome: BuildOutcome) -> int:
        """The build is over: keep what came of it, show the rest.

        Returns:
            The exit code of the command.
        """
        self._record.finish(outcome)
        self._store_log()
        self._writer.save(self._record.build)
        exit_code = self._exit_code(outcome)
        try:
            self._output.finish(self._record.build, exit_code, lambda: self._interruption.caught)
        finally:
            self._log.close()
            _close_writer(self._writer)
        return exit_code

    def _exit_code(self, outcome: BuildOutcome) -> int:
        if self._interruption.caught and outcome.status is not Status.SUCCESS:
            return EXIT_INTERRUPTED
        return EXIT_CODES[outcome.status]

    def _log_upload(self) -> LogUpload:
        if self._made_log_upload is None:
            from buildrunner.cli.log_upload import LogUpload  # few builds have a logsBucket

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
    """The folder of the log; one that vanishes with the build for ``logging: NONE``."""

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


def _now() -> datetime:
    from datetime import UTC, datetime

    return datetime.now(UTC)


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
        say(f"warning: this build is not kept: {error}\n")


def _file_url(path: str) -> str:
    if path.isascii() and not set(path) & set(' %?#"<>'):  # as mostly: nothing to import
        return f"file://{path}"
    from urllib.parse import quote

    return f"file://{quote(path)}"
