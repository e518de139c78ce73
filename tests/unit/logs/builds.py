"""Plans and events for tests of what is shown."""

from datetime import UTC, datetime, timedelta

from buildrunner.engine import events
from buildrunner.logs.console.build_view import BuildView
from buildrunner.plan.build_plan import BuildPlan, StepPlan

START = datetime(2024, 5, 31, 12, tzinfo=UTC)
BUILD_ID = "6f0b1c9e-5d0a-4c1c-9a55-0a2c2f1c7a11"


def at(seconds):
    return START + timedelta(seconds=seconds)


def diamond():
    """deps, then lint and test at once, then image."""
    steps = (
        StepPlan(index=0, id="deps", image="python"),
        StepPlan(index=1, id="lint", image="python", depends_on=(0,)),
        StepPlan(index=2, id="test", image="python", depends_on=(0,), timeout_s=60.0),
        StepPlan(index=3, image="docker", depends_on=(0, 1, 2)),
    )
    return BuildPlan(build_id=BUILD_ID, project_id="p", steps=steps)


def view_of(plan, *happened):
    view = BuildView(plan)
    view.apply(events.BuildStarted(at=START, build_id=BUILD_ID, steps=len(plan.steps)))
    for event in happened:
        view.apply(event)
    return view


def started(step, seconds):
    return events.StepStarted(at=at(seconds), step=step)


def running(step, seconds):
    return events.StepRunning(at=at(seconds), step=step)


def ended(step, seconds, status="SUCCESS", **more):
    return events.StepFinished(at=at(seconds), step=step, status=status, **more)


def finished(seconds, status="SUCCESS", **more):
    return events.BuildFinished(at=at(seconds), status=status, **more)
