"""What a command shows of a running build: log and summary for a person, events for a machine."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from buildrunner.settings import terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.engine.events import BuildEvent
    from buildrunner.logs.sink import LogSink
    from buildrunner.plan.build_plan import BuildPlan
    from buildrunner.spec.model import Build

# An output that takes nothing must not hold up the end of a build that was cancelled.
_DRAIN_S = 1.0
_LOOK_S = 0.2


class Output(Protocol):
    """What shows a running build: `TextOutput` or `JsonOutput`."""

    sink: LogSink

    def planned(self, plan: BuildPlan) -> None:
        """There is a plan now, where there was none when the build began."""
        ...

    def on_event(self, event: BuildEvent) -> None:
        """Take an event."""
        ...

    def notice(self, text: str) -> None:
        """Say something at once; any thread may call it."""
        ...

    def finish(self, build: Build, exit_code: int, hurry: Callable[[], bool]) -> None:
        """The build is over: show the rest. ``hurry`` tells when nobody wants to wait for it."""
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
        from buildrunner.logs.console import Console

        output_look = terminal(
            output_is_terminal=os.isatty(1), encoding=sys.stdout.encoding or "ascii"
        )
        dialogue_look = terminal(
            output_is_terminal=os.isatty(2), encoding=sys.stderr.encoding or "ascii"
        )
        if dialogue_look.live and not quiet and _is_pipe(1):
            # What reads it (`| tee log`) shows it on this terminal too, in the middle of our line.
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
        """Show what there is and take the status line away: nothing more comes. Idempotent."""
        self._console.drain(_DRAIN_S)


class JsonOutput:
    """Events and log lines for a machine."""

    def __init__(self) -> None:
        from buildrunner.logs.json_events import JsonEvents

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
        from buildrunner.spec.encode import encode_message

        self._events.result(encode_message(build), exit_code)
        if lost := self._events.lost:
            say(f"warning: standard output can't be written ({lost}): events are lost\n")

    def close(self) -> None:
        """Nothing is held back."""


def _is_pipe(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def say(text: str) -> None:
    """Say something to a person beside the log."""
    # The terminal may be gone, which may be why the build was cancelled.
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
