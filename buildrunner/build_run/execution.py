"""One build from what was asked for to its end: fetch its source, plan it, run it.

The seam that the command line and a server's process for one build share: no argv, no terminal, no
store, only a Build, settings, and sinks for what happens. A build whose source is a Git repository
has no plan before the commit is here: what plans it is passed in (`Planner`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from buildrunner import wiring
from buildrunner.build_run.order import BuildOrder, ExecutedBuild, PlannedBuild, Planner
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine.build_loop import run_build
from buildrunner.engine.cancellation import CancelToken, Clock
from buildrunner.engine.events import BuildEvent
from buildrunner.engine.log.sink import LogSink
from buildrunner.engine.outcome import BuildOutcome, failed_planning
from buildrunner.engine.protocols import SecretResolver
from buildrunner.engine.resume import ResumeState
from buildrunner.engine.running_build import RunContext
from buildrunner.engine.source_phase import BegunBuild, SourcePhase, SourceReport
from buildrunner.errors import BuildrunnerError
from buildrunner.plan.compile import DEFAULT_TIMEOUT_S, fetches_nothing
from buildrunner.settings import Settings
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.source import Source
from buildrunner.workspace.protocol import Workspace

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout, GitPlace


def source_workspace(
    order: BuildOrder, build: Build, settings: Settings, *, uploads: str = ""
) -> Workspace:
    """What fills ``/workspace`` of a build whose source is no Git repository.

    Args:
        order: what is to be built.
        build: the same with substitutions made.
        settings: what the user or the server has set.
        uploads: the server's folder of uploaded sources; empty where there is no server.

    Raises:
        UsageError: no such folder, or no such ignore file.
        SourceError: ignore rules that can't be read.
        StorageError: the source is in no bucket that builds may read.
    """
    local = order.local
    if fetches_nothing(build):
        return wiring.workspace(None)
    if local is None:
        stored = wiring.storage_workspace(build, wiring.stores(settings), uploads=uploads)
        return stored or wiring.workspace(None)
    if local.archive:
        hashes = build.options.source_provenance_hash if build.options else ()
        return wiring.archive_workspace(local.archive, hashes)
    return wiring.workspace(local.folder, ignore_file=local.ignore_file)


class BuildExecution:
    """Executes one build. Used by one thread; everything it tells, it tells in that thread.

    Args:
        settings: what the user or the server has set.
        engine: where. Not closed.
        sink: takes the log, from its first line on. Not closed.
        on_event: takes events.
        on_planned: told of the plan before anything of it runs.
        cancel: ends the build as CANCELLED.
        source_policy: where Git may fetch from; None: anywhere. Who asks for the build must have
            been held to it before (`sources.source_policy.refusals`).
        secrets: who knows secrets; None: all whom the settings name.
        uploads: the server's folder of uploaded sources; empty where there is no server.
        place_workspace: given what fills ``/workspace``, right before the build runs; returns how
            that is done where the build lives. None: as it is.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        engine: ContainerEngine,
        sink: LogSink,
        on_event: Callable[[BuildEvent], None],
        on_planned: Callable[[PlannedBuild], None],
        cancel: CancelToken,
        source_policy: SourcePolicy | None = None,
        secrets: SecretResolver | None = None,
        uploads: str = "",
        place_workspace: Callable[[Workspace], Workspace] | None = None,
    ) -> None:
        self._policy = source_policy
        self._secrets = secrets or wiring.secret_resolver(settings)
        self._uploads = uploads
        self._place_workspace = place_workspace
        self._settings = settings
        self._engine = engine
        self._sink = sink
        self._on_event = on_event
        self._on_planned = on_planned
        self._cancel = cancel
        self._stores = wiring.stores(settings)

    def execute(self, order: BuildOrder, planner: Planner) -> ExecutedBuild:
        """Fetch the source where the plan depends on it, plan, run, clean up. Blocks until then.

        Args:
            order: what to build.
            planner: called once.

        Raises:
            ConfigError, UsageError, EngineError: the build can't be planned, and nothing of it has
                begun. Once it has begun they are `ExecutedBuild.error`, and the build failed.
            Exception: what ``on_event`` raised; everything is removed before.
        """
        if order.git_source is None:
            planned = planner(None)
            workspace = planned.workspace or source_workspace(
                order, planned.build, self._settings, uploads=self._uploads
            )
            if planned.build.dependencies:  # else nothing of Git is imported
                workspace = self._with_dependencies(workspace, planned, self._place(order))
            return self._run(planned, workspace, None)
        place = self._place(order)
        from buildrunner.engine.source_phase import SourcePhase

        timeout = order.build.timeout
        phase: SourcePhase[GitCheckout] = SourcePhase(
            order.build.id,
            steps=len(order.build.steps),
            sink=self._sink,
            on_event=self._on_event,
            cancel=self._cancel,
            timeout_s=timeout.total_seconds() if timeout else DEFAULT_TIMEOUT_S,
            clock=Clock(),
        )
        checkout = phase.fetch(partial(_fetch, order.git_source, self._settings, place), _give_back)
        if isinstance(checkout, BuildOutcome):
            return ExecutedBuild(outcome=checkout)
        try:
            return self._run_fetched(checkout, planner, phase, place)
        finally:
            checkout.release()

    def go_on(
        self, planned: PlannedBuild, workspace: Workspace, resume: ResumeState
    ) -> BuildOutcome:
        """Go on with a build whose process died, which had planned and begun it.

        Args:
            planned: what that process planned.
            workspace: what it filled (`ResumedWorkspace`).
            resume: how far it came.

        Raises:
            Exception: what ``on_event`` raised; everything is removed before.
        """
        return self._run_plan(planned, workspace, None, resume)

    def _run_fetched(
        self,
        checkout: GitCheckout,
        planner: Planner,
        phase: SourcePhase[GitCheckout],
        place: GitPlace,
    ) -> ExecutedBuild:
        try:
            planned = planner(checkout)
            workspace = self._with_dependencies(wiring.git_workspace(checkout), planned, place)
        except BuildrunnerError as error:
            return ExecutedBuild(outcome=phase.fail(failed_planning(error)), error=error)
        return self._run(planned, workspace, phase.begun)

    def _place(self, order: BuildOrder) -> GitPlace:
        return wiring.git_place(self._settings, folder=order.git_folder, policy=self._policy)

    def _with_dependencies(
        self, workspace: Workspace, planned: PlannedBuild, place: GitPlace
    ) -> Workspace:
        return wiring.with_dependencies(workspace, planned.build, self._settings, place)

    def _run(
        self, planned: PlannedBuild, workspace: Workspace, begun: BegunBuild | None
    ) -> ExecutedBuild:
        self._on_planned(planned)
        return ExecutedBuild(outcome=self._run_plan(planned, workspace, begun, None))

    def _run_plan(
        self,
        planned: PlannedBuild,
        workspace: Workspace,
        begun: BegunBuild | None,
        resume: ResumeState | None,
    ) -> BuildOutcome:
        if self._place_workspace is not None:
            workspace = self._place_workspace(workspace)
        return run_build(
            planned.plan,
            RunContext(
                engine=self._engine,
                workspace=workspace,
                secrets=self._secrets,
                sink=self._sink,
                on_event=self._on_event,
                cancel=self._cancel,
                options=planned.options,
                publisher=planned.publisher,
                attester=planned.attester,
                uploader=wiring.uploader(planned.plan, self._stores),
                begun=begun,
                resume=resume,
                namespaces=planned.namespaces,
            ),
        )


def _give_back(checkout: GitCheckout) -> None:
    checkout.release()


def _fetch(
    source: Source,
    settings: Settings,
    place: GitPlace,
    cancel: threading.Event,
    report: SourceReport,
) -> GitCheckout:
    """Fetch, and tell the log and the status line."""

    def progress(text: str, percent: int | None) -> None:
        if percent is None:
            report.line(text)
        else:
            report.doing("source", f"{text} {percent}%" if percent else text)

    checkout = wiring.fetch_git_source(source, settings, place, cancel=cancel, progress=progress)
    missing = missing_dir(source, checkout)
    if missing:
        report.line(f"WARNING: the repository has no folder {missing}: steps begin in an empty one")
    return checkout


def missing_dir(source: Source, checkout: GitCheckout) -> str:
    """The source's ``dir`` where the commit has no such folder; empty where it has."""
    kinds = (source.git_source, source.repo_source, source.connected_repository)
    folder = next((kind.dir for kind in kinds if kind), "")
    return "" if os.path.isdir(os.path.join(checkout.folder, folder)) else folder
