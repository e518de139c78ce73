"""The state of a build, from its events, for status line and summary."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from buildrunner.engine.events import (
    BuildEvent,
    BuildFinished,
    BuildStarted,
    ImagePushed,
    PhaseStarted,
    PullFinished,
    PullStarted,
    PushStarted,
    SourceFetched,
    StepFinished,
    StepRunning,
    StepStarted,
    TransferMoved,
    Warned,
)
from buildrunner.logs.console.wording import printable
from buildrunner.plan.build_plan import BuildPlan, StepPlan

_FILES = ("fetch", "upload")


class StepView:
    """The state of one step, from its events.

    Attributes:
        plan: the step in the plan.
        status: QUEUED, PULLING, WORKING, or the final status of `StepFinished`.
        started_at: time of the step's start.
        finished: the step's last event, once the step has ended.
    """

    __slots__ = ("finished", "plan", "started_at", "status")

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self.status = "QUEUED"
        self.started_at: datetime | None = None
        self.finished: StepFinished | None = None

    @property
    def name(self) -> str:
        """Return the step's id, or ``#index`` for a step without one."""
        return printable(self.plan.shown_id) or f"#{self.plan.index}"


class TransferView:
    """One running transfer; sizes in bytes, 0 if unknown."""

    __slots__ = ("current_bytes", "direction", "image", "status", "total_bytes")

    def __init__(self, direction: str, image: str) -> None:
        self.direction = direction
        self.image = image
        self.status = ""
        self.current_bytes = 0
        self.total_bytes = 0


class BuildView:
    """The state of a build. One thread calls `apply`; readers never see a partial value of a field.

    Attributes:
        plan: the plan that runs.
        steps: the steps, in the order of the plan.
        phase: SETUPBUILD, FETCHSOURCE, BUILD or PUSH; empty before the first.
        transfers: running pulls, pushes, fetches and uploads, by image or URL, oldest first.
        pushed: images that registries confirmed, in order.
        warnings: texts, in order.
        started_at: time of the build's start.
        finished: the build's last event, once the build has ended.
    """

    def __init__(self, plan: BuildPlan) -> None:
        self.plan = plan
        self._take_steps(plan)
        self.phase = ""
        self.transfers: dict[str, TransferView] = {}
        self.pushed: list[ImagePushed] = []
        self.warnings: list[str] = []
        self.started_at: datetime | None = None
        self.finished: BuildFinished | None = None

    def planned(self, plan: BuildPlan) -> None:
        """Take the plan, which may be known only after the build has begun."""
        self._take_steps(plan)
        self.plan = plan

    def step(self, index: int) -> StepView:
        """Return the step of that index in the whole build, as in events."""
        return self._by_index[index]

    def _take_steps(self, plan: BuildPlan) -> None:
        self.steps = [StepView(step) for step in plan.steps]
        self._by_index = {step.plan.index: step for step in self.steps}

    def apply(self, event: BuildEvent) -> None:
        """Apply the next event. Kinds that change nothing here are ignored."""
        handler = _HANDLERS.get(type(event))
        if handler is not None:
            handler(self, event)


def _build_started(view: BuildView, event: BuildStarted) -> None:
    view.started_at = event.at


def _phase_started(view: BuildView, event: PhaseStarted) -> None:
    view.phase = event.phase


def _step_started(view: BuildView, event: StepStarted) -> None:
    step = view.step(event.step)
    step.started_at = event.at
    step.status = "PULLING"


def _step_running(view: BuildView, event: StepRunning) -> None:
    view.step(event.step).status = "WORKING"


def _step_finished(view: BuildView, event: StepFinished) -> None:
    step = view.step(event.step)
    step.status = event.status
    step.finished = event


def _pull_started(view: BuildView, event: PullStarted) -> None:
    view.transfers[event.image] = TransferView("pull", event.image)


def _pull_finished(view: BuildView, event: PullFinished) -> None:
    view.transfers.pop(event.image, None)


def _push_started(view: BuildView, event: PushStarted) -> None:
    view.transfers[event.image] = TransferView("push", event.image)


def _transfer_moved(view: BuildView, event: TransferMoved) -> None:
    transfer = view.transfers.get(event.image)
    if event.direction in _FILES:  # these have no events of their beginning and end
        if 0 < event.total_bytes <= event.current_bytes:
            view.transfers.pop(event.image, None)
            return
        transfer = view.transfers.setdefault(
            event.image, TransferView(event.direction, event.image)
        )
    if transfer is not None:
        transfer.current_bytes = event.current_bytes
        transfer.total_bytes = event.total_bytes
        transfer.status = event.status


def _source_fetched(view: BuildView, event: SourceFetched) -> None:  # noqa: ARG001
    for name in [one.image for one in view.transfers.values() if one.direction == "fetch"]:
        del view.transfers[name]


def _image_pushed(view: BuildView, event: ImagePushed) -> None:
    view.pushed.append(event)
    view.transfers.pop(event.name, None)


def _warned(view: BuildView, event: Warned) -> None:
    view.warnings.append(event.text)


def _build_finished(view: BuildView, event: BuildFinished) -> None:
    view.finished = event
    view.transfers.clear()


_HANDLERS: dict[type, Callable[[BuildView, Any], None]] = {
    BuildStarted: _build_started,
    PhaseStarted: _phase_started,
    StepStarted: _step_started,
    StepRunning: _step_running,
    StepFinished: _step_finished,
    PullStarted: _pull_started,
    PullFinished: _pull_finished,
    PushStarted: _push_started,
    TransferMoved: _transfer_moved,
    SourceFetched: _source_fetched,
    ImagePushed: _image_pushed,
    Warned: _warned,
    BuildFinished: _build_finished,
}
