"""Runs one compiled build on a container engine: the way in."""

from __future__ import annotations

from collections.abc import Callable

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine.build_loop import BuildLoop
from buildrunner.engine.cancellation import CancelToken, Clock
from buildrunner.engine.events import BuildEvent
from buildrunner.engine.log.sink import LogSink
from buildrunner.engine.namespaces import NamespacePool
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.protocols import ObjectUploader, PackagePublisher, SecretResolver
from buildrunner.engine.resume import ResumeState
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.source_phase import BegunBuild
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.workspace.protocol import Workspace


def run_build(
    plan: BuildPlan,
    *,
    engine: ContainerEngine,
    workspace: Workspace,
    secrets: SecretResolver,
    sink: LogSink,
    on_event: Callable[[BuildEvent], None],
    cancel: CancelToken,
    options: RunOptions | None = None,
    clock: Clock | None = None,
    publisher: PackagePublisher | None = None,
    uploader: ObjectUploader | None = None,
    begun: BegunBuild | None = None,
    resume: ResumeState | None = None,
    namespaces: NamespacePool | None = None,
) -> BuildOutcome:
    """Run ``plan`` to its end and remove everything that was made for it.

    Blocks until then. Whatever goes wrong with the build is in the outcome, never an exception.

    Args:
        plan: what to run.
        engine: where. Not closed.
        workspace: fills ``/workspace``.
        secrets: turns the plan's references into values.
        sink: takes the log, already masked. Not closed. When it breaks, the build fails.
        on_event: takes events, always in the calling thread. What it raises ends the build.
        cancel: ends the build as CANCELLED when it is set.
        options: choices of the machine and the person.
        clock: time and jitter.
        publisher: publishes the plan's packages; needed only for a plan that has any.
        uploader: uploads ``artifacts.objects``; needed only for a plan that has any.
        begun: the build began before it had a plan (see `SourcePhase`); its first lines and events
            are out.
        resume: an earlier process, which is dead, began the build; go on from there. Its workspace
            must be there (`ResumedWorkspace`), and it must have run with ``options.keep_logs``.
        namespaces: network namespaces of the build that are open or being opened already.

    Raises:
        Exception: what ``on_event`` raised; everything is stopped and removed before.
    """
    loop = BuildLoop(
        plan,
        engine=engine,
        workspace=workspace,
        secrets=secrets,
        sink=sink,
        on_event=on_event,
        cancel=cancel,
        options=options or RunOptions(),
        clock=clock or Clock(),
        publisher=publisher,
        uploader=uploader,
        begun=begun,
        resume=resume,
        namespaces=namespaces,
    )
    return loop.run()
