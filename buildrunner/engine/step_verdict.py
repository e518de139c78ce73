"""What came of a step: from how its container ended, or why there is none, to its outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner.engine.outcome import Span, StepOutcome
from buildrunner.errors import EngineUnavailable
from buildrunner.spec.model import Status

if TYPE_CHECKING:
    from datetime import datetime

    from buildrunner.containers.engine_types import ContainerExit
    from buildrunner.engine.step_log import StepLog
    from buildrunner.engine.workbench import Workbench
    from buildrunner.errors import EngineError
    from buildrunner.plan.build_plan import StepPlan

_KILLED_CODES = (137, 143)  # by SIGKILL, by SIGTERM


class StepVerdict:
    """Judges one step, and says so in its log.

    Args:
        step: the step.
        bench: what it works with.
        log: its way into the log.
    """

    def __init__(self, step: StepPlan, bench: Workbench, log: StepLog) -> None:
        self._step = step
        self._bench = bench
        self._log = log
        self.stopped_by: Status | None = None
        """Why it was stopped from outside: CANCELLED or TIMEOUT."""
        self.unwatched = False
        """Its container ended while no process of the build lived."""

    def ended(
        self, base: StepOutcome, exit_: ContainerExit, output: bytes, trouble: str
    ) -> StepOutcome:
        """The outcome of a step whose container has ended.

        Args:
            base: what is known besides.
            exit_: how it ended.
            output: the step's output.
            trouble: why that can't be read, which fails a successful step.
        """
        self._say_finished(exit_)
        if self.stopped_by is not None:
            return replace(base, status=self.stopped_by, output=output, error=self._stop_text())
        if exit_.code == 0 and not trouble:
            return replace(base, status=Status.SUCCESS, exit_code=0, output=output)
        return replace(
            base,
            status=Status.FAILURE,
            exit_code=exit_.code,
            oom_killed=exit_.oom_killed,
            forgiven=bool(exit_.code) and self._step.forgives(exit_.code),
            error=trouble if exit_.code == 0 else self._exit_text(exit_),
            infrastructure=self._was_killed_unwatched(exit_),
            output=output,
            last_lines=self._log.last_lines(),
        )

    def never_started(self, base: StepOutcome) -> StepOutcome:
        """The outcome of a step that was stopped before."""
        return replace(base, status=Status.CANCELLED, error="it was stopped before it started")

    def without_image(self, error: EngineError, pulling: Span) -> StepOutcome:
        """The outcome of a step whose image can't be had."""
        said = f"{error}: {error.hint}" if error.hint else str(error)
        if advice := self._bench.options.image_advice.get(self._step.image):
            said = f"{said}; {advice}"
        text = f'error pulling build step {self._step.index} "{self._step.image}": {said}'
        self._say_forgiven(text)
        self._log.finish()
        return StepOutcome(
            index=self._step.index,
            status=self.stopped_by or Status.FAILURE,
            infrastructure=isinstance(error, EngineUnavailable),
            forgiven=self._forgives_trouble(),
            error=text,
            timing=pulling,
            pull_timing=pulling,
        )

    def broken(self, base: StepOutcome, began: datetime, error: EngineError) -> StepOutcome:
        """The outcome of a step whose container the engine could not run to its end."""
        self._say_forgiven(str(error))
        self._log.finish()
        return replace(
            base,
            status=self.stopped_by or Status.FAILURE,
            infrastructure=isinstance(error, EngineUnavailable),
            forgiven=self._forgives_trouble(),
            error=str(error),
            timing=Span(began, self._bench.clock.now()),
            last_lines=self._log.last_lines(),
        )

    def _say_finished(self, exit_: ContainerExit) -> None:
        if exit_.code and self.stopped_by is None and self._step.forgives(exit_.code):
            self._log.line(f"{self._exit_text(exit_)} (allowed to fail)")
        if self.stopped_by is Status.TIMEOUT:
            self._say_forgiven(self._stop_text())
        if len(self._bench.plan.steps) > 1:
            self._bench.log.line_once(f"Finished {self._step.label}")

    def _say_forgiven(self, trouble: str) -> None:
        """What is not forgiven fails the build, whose last words name it."""
        if self.stopped_by in (None, Status.TIMEOUT) and self._forgives_trouble():
            self._log.line(f"{trouble} (allowed to fail)")

    def _forgives_trouble(self) -> bool:
        """Whether what is no exit code is forgiven: a pull that failed, a timeout."""
        return self._step.allow_failure and not self._step.allow_exit_codes

    def _exit_text(self, exit_: ContainerExit) -> str:
        text = f"step exited with non-zero status: {exit_.code}"
        if exit_.oom_killed:
            limit = self._bench.plan.limits.memory_bytes
            size = f" of {limit / 2**20:.0f} MiB" if limit else ""
            text += f" (killed for lack of memory: it went over its limit{size})"
        elif self._was_killed_unwatched(exit_):
            text += (
                " (killed while no process of the build watched it; did the container engine or "
                "the machine stop?)"
            )
        return text

    def _was_killed_unwatched(self, exit_: ContainerExit) -> bool:
        """An engine that stops kills what runs: that is no failure of the step."""
        return self.unwatched and not exit_.oom_killed and exit_.code in _KILLED_CODES

    def _stop_text(self) -> str:
        if self.stopped_by is Status.TIMEOUT:
            return f"step exceeded its timeout of {self._step.timeout_s:g}s"
        return "it was stopped"
