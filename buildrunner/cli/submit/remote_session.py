"""Showing a build that runs on a server as if it ran here: log, status line, summary, Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from buildrunner.cli.submit.session import EXIT_CODES, JsonOutput, TextOutput
from buildrunner.client.client import Document, ServerClient
from buildrunner.client.stream import EventPiece, LogPiece, StateChange, StreamEnd, StreamItem
from buildrunner.engine.events import BuildEvent, BuildFinished, StepStarted
from buildrunner.engine.log.pipeline import LogChunk, TeeSink
from buildrunner.errors import (
    EXIT_INFRASTRUCTURE,
    EXIT_INTERRUPTED,
    EXIT_TIMEOUT,
    Conflict,
    NotFound,
    ServerError,
    ServerUnavailable,
)
from buildrunner.logs.console.wording import printable
from buildrunner.logs.files.log_file import LogFileSink
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.spec.model.build import Build, Status

_PLAN_TRIES = 50
_PLAN_PAUSE_S = 0.1
_NEXT = "turn"  # it begins in a moment: not worth a line


class RemoteSession:
    """One build on a server, followed to its end.

    Args:
        client: where it runs.
        build: as it was created.
        plan: what runs, or a plan without steps where that is not known yet.
        planned: whether it is known.
        quiet: don't show the log.
        as_json: events as JSON lines instead of text.
    """

    def __init__(
        self,
        client: ServerClient,
        build: Document,
        *,
        plan: BuildPlan,
        planned: bool,
        quiet: bool,
        as_json: bool,
    ) -> None:
        self._client = client
        self._id: str = build["id"]
        self._plan = plan
        self._planned = planned
        self._quiet = quiet
        self._as_json = as_json
        self._said = ""
        self._is_lost = False
        self._finished = False
        self._decoder = msgspec.json.Decoder(BuildEvent)

    def run(self) -> int:
        """Follow the build.

        Returns:
            The exit code of the command.

        Raises:
            ServerUnavailable: the server was away for ten minutes. The build is not cancelled.
        """
        with tempfile.TemporaryDirectory(prefix="buildrunner-log-") as folder:
            log = LogFileSink(folder)
            self._output = self._make_output(folder)
            self._sink = TeeSink(log, self._output.sink)
            with _RemoteInterruption(self._cancel) as interruption:
                try:
                    return self._finish(self._follow(), interruption)
                except ServerUnavailable as error:
                    again = f"{self._command('log')} --follow {self._id}"
                    raise ServerUnavailable(
                        str(error), hint=f"the build was not cancelled: `{again}`"
                    ) from error
                finally:
                    self._output.close()
                    log.close()

    def _make_output(self, folder: str) -> TextOutput | JsonOutput:
        if self._as_json:
            return JsonOutput()
        return TextOutput(
            self._plan,
            folder,
            quiet=self._quiet,
            log_command=self._command("log"),
            retry_command=self._command("retry"),
        )

    def _command(self, action: str) -> str:
        """The command for this build that holds in any folder, whatever the settings there say."""
        where = f"--server {self._client.url} --project {self._client.project}"
        return f"buildrunner builds {action} {where}"

    def _follow(self) -> str:
        status = ""
        stream = self._client.follow(self._id, events=0, chunks=self._as_json, on_lost=self._lost)
        for item in stream:
            status = self._take(item) or status
        return status

    def _take(self, item: StreamItem) -> str:
        """Show an item; the final status with the last one."""
        if self._is_lost:
            self._is_lost = False
            self._notice(self._said)
        match item:
            case LogPiece():
                self._write(item)
            case EventPiece():
                self._take_event(item.line)
            case StateChange():
                self._tell_wait(item)
            case StreamEnd():
                return item.status
        return ""

    def _write(self, piece: LogPiece) -> None:
        begin = 0
        for size, at_us, step in piece.chunks:
            at = datetime.fromtimestamp(at_us / 1_000_000, UTC)
            data = piece.data[begin : begin + size]
            self._sink.write(LogChunk(data, None if step < 0 else step, at))
            begin += size
        if begin < len(piece.data):
            self._sink.write(LogChunk(piece.data[begin:], None, datetime.now(UTC)))

    def _take_event(self, line: bytes) -> None:
        try:
            event = self._decoder.decode(line)
        except msgspec.ValidationError:
            return  # of a newer server
        if isinstance(event, StepStarted) and not self._planned:
            self._learn_plan()
        if isinstance(event, BuildFinished):
            self._finished = True
        self._output.on_event(event)

    def _learn_plan(self) -> None:
        """Ask for the plan, which the server has when the first step begins, or a moment later.

        Raises:
            ServerError: it has none.
        """
        for left in range(_PLAN_TRIES, 0, -1):
            try:
                text = self._client.read_plan(self._id)
            except NotFound as error:
                if left == 1:
                    raise ServerError(f"the server has no plan of build {self._id}") from error
                time.sleep(_PLAN_PAUSE_S)
            else:
                self._planned = True
                self._output.planned(msgspec.json.decode(text, type=BuildPlan))
                return

    def _tell_wait(self, state: StateChange) -> None:
        text = ""
        waiting: dict[str, Any] = state.waiting or {}
        if waiting and waiting.get("kind") != _NEXT:
            text = f"Waiting: {printable(waiting['text'])}"
        if text != self._said:
            self._said = text
            self._notice(text)

    def _notice(self, text: str) -> None:
        if text or not self._as_json:  # nothing to take back where there is no status line
            self._output.notice(text)

    def _lost(self, _: ServerError) -> None:
        self._is_lost = True
        self._notice(f"The connection to {self._client.url} was lost; trying again ...")

    def _cancel(self) -> None:
        """Ask the server; called in a thread of its own."""
        try:
            self._output.notice("Cancelling ...")
            self._client.cancel_build(self._id)
        except (Conflict, NotFound):
            return  # it has ended by itself
        except ServerError as error:
            self._output.notice(f"the build can't be cancelled: {error}")

    def _finish(self, status: str, interruption: _RemoteInterruption) -> int:
        from buildrunner.spec.reading.decode import decode_message

        document = self._client.get_build(self._id)
        build = decode_message(Build, document).value
        code = exit_code(status)
        if interruption.caught and status != "SUCCESS":
            code = EXIT_INTERRUPTED
        self._output.finish(build, code, lambda: interruption.caught)
        if not self._finished and not self._as_json:
            self._say_end(document)
        if interruption.caught and status == "CANCELLED":
            sys.stderr.write(f"Cancelled [{self._client.build_url(self._id)}].\n")
        return code

    def _say_end(self, document: Document) -> None:
        """Write the result of a build that ended without a summary."""
        detail = document.get("statusDetail") or document.get("failureInfo", {}).get("detail", "")
        text = f"Build {self._id} {document['status']}"
        sys.stderr.write(f"{text}: {printable(detail)}\n" if detail else f"{text}\n")


def exit_code(status: str) -> int:
    """Return a command's exit code for a build with that final status."""
    if status == "EXPIRED":
        return EXIT_TIMEOUT
    try:
        return EXIT_CODES[Status[status]]
    except KeyError:
        return EXIT_INFRASTRUCTURE


class _RemoteInterruption:
    """Ctrl-C cancels the build, as gcloud's does; the third leaves it to the server.

    Other signals end this process only: the build goes on.
    """

    def __init__(self, cancel: Any) -> None:
        self._cancel = cancel
        self._count = 0
        self._before: Any = None

    @property
    def caught(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._count > 0

    def __enter__(self) -> _RemoteInterruption:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._before = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._count += 1
        if self._count == 1:
            # In a thread: the handler interrupts code that may hold the client's locks.
            threading.Thread(target=self._cancel, name="cancel", daemon=True).start()
        elif self._count == 2:
            os.write(2, b"Already cancelling; once more leaves the build to the server.\n")
        else:
            raise KeyboardInterrupt
