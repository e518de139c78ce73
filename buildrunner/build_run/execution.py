"""One build from its request to its end: fetch its source, plan it, run it.

The command line and a server's process for one build share this: no argv, no terminal, no store,
only a request, settings, and sinks for events and log. A build whose source is a Git repository
has no plan before the commit is here: the caller passes a `Planner`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from buildrunner import wiring
from buildrunner.build_run.compile import PlannedBuild, Planner
from buildrunner.build_run.request import BuildRequest
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine.build_loop import run_build
from buildrunner.engine.cancellation import CancelToken, Clock
from buildrunner.engine.events import BuildEvent
from buildrunner.engine.log.pipeline import LogSink
from buildrunner.engine.outcome import BuildOutcome, failed_planning
from buildrunner.engine.protocols import SecretResolver
from buildrunner.engine.resume import ResumeState
from buildrunner.engine.running_build import RunContext
from buildrunner.engine.source_phase import BegunBuild, SourcePhase, SourceReport
from buildrunner.errors import BuildrunnerError
from buildrunner.plan.compile import fetches_nothing
from buildrunner.settings import Settings
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.source import Source
from buildrunner.workspace.protocol import Workspace

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout, GitPlace
    from buildrunner.sources.uploads import OpenUpload


def source_workspace(
    request: BuildRequest,
    build: Build,
    settings: Settings,
    *,
    uploads: OpenUpload | None = None,
    policy: SourcePolicy | None = None,
) -> Workspace:
    """Return the workspace of a build whose source is no Git repository.

    Args:
        request: the requested build.
        build: its Build with substitutions made.
        settings: settings of the user or the server.
        uploads: opens the uploaded source of a build; None where there is no server.
        policy: limits the size of a source in a bucket; None sets no limit of the server.

    Raises:
        UsageError: no such folder, or no such ignore file.
        SourceError: ignore rules that can't be read.
        StorageError: the source is in no bucket that builds may read.
    """
    local = request.local
    if fetches_nothing(build):
        return wiring.workspace(None)
    if local is None:
        stored = wiring.storage_workspace(
            build,
            wiring.stores(settings),
            uploads=uploads,
            largest_bytes=policy.largest_bytes if policy is not None else 0,
        )
        return stored or wiring.workspace(None)
    if local.archive:
        hashes = build.options.source_provenance_hash if build.options else ()
        return wiring.archive_workspace(local.archive, hashes)
    return wiring.workspace(local.folder, ignore_file=local.ignore_file)


class ExecutedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a build.

    Attributes:
        outcome: goes into the Build with `engine.results.apply_outcome`.
        error: why the build could not be planned on its source; mostly None.
    """

    outcome: BuildOutcome
    error: BuildrunnerError | None = None


class BuildExecution(msgspec.Struct, frozen=True, kw_only=True):
    """Executes a build in one thread, in which it reports everything.

    Attributes:
        settings: settings of the user or the server.
        engine: runs the containers. Not closed.
        sink: takes the log, from its first line on. Not closed.
        on_event: takes events.
        on_planned: takes the plan before any of it runs.
        cancel: ends the build as CANCELLED.
        source_policy: where Git may fetch from; None: anywhere. The caller has checked the request
            against it (`sources.source_policy.refusals`).
        secrets: resolves secrets; None: all that the settings name.
        uploads: opens the uploaded source of a build; None without a server.
        place_workspace: given the workspace right before the build runs, returns it as it is filled
            where the build runs. None: as it is.
    """

    settings: Settings
    engine: ContainerEngine
    sink: LogSink
    on_event: Callable[[BuildEvent], None]
    on_planned: Callable[[PlannedBuild], None]
    cancel: CancelToken
    source_policy: SourcePolicy | None = None
    secrets: SecretResolver | None = None
    uploads: OpenUpload | None = None
    place_workspace: Callable[[Workspace], Workspace] | None = None

    def execute(self, request: BuildRequest, planner: Planner) -> ExecutedBuild:
        """Fetch the source where the plan depends on it, plan, run, clean up. Blocks until then.

        Args:
            request: the requested build.
            planner: called once.

        Raises:
            ConfigError, UsageError, EngineError: the build can't be planned, and nothing of it has
                begun. Once it has begun they are `ExecutedBuild.error`, and the build failed.
            Exception: any error of ``on_event``. Everything is removed before it is raised.
        """
        if request.git_source is None:
            planned = planner(None)
            workspace = planned.workspace or source_workspace(
                request,
                planned.build,
                self.settings,
                uploads=self.uploads,
                policy=self.source_policy,
            )
            if planned.build.dependencies:  # most builds have none, and import nothing of Git
                workspace = self._with_dependencies(workspace, planned, self._place(request))
            return self._run(planned, workspace, None)
        place = self._place(request)

        phase: SourcePhase[GitCheckout] = SourcePhase(
            request.build,
            sink=self.sink,
            on_event=self.on_event,
            cancel=self.cancel,
            clock=Clock(),
        )
        checkout = phase.fetch(
            partial(_fetch, request.git_source, request.is_named_commit, self.settings, place),
            _give_back,
        )
        if isinstance(checkout, BuildOutcome):
            return ExecutedBuild(outcome=checkout)
        try:
            return self._run_fetched(checkout, planner, phase, place)
        finally:
            checkout.release()

    def resume(
        self, planned: PlannedBuild, workspace: Workspace, state: ResumeState
    ) -> BuildOutcome:
        """Resume a build whose process died after it had planned and begun it.

        Args:
            planned: the build as that process planned it.
            workspace: the workspace that it filled (`ResumedWorkspace`).
            state: how far it came.

        Raises:
            Exception: any error of ``on_event``. Everything is removed before it is raised.
        """
        return self._run_plan(planned, workspace, None, state)

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

    def _place(self, request: BuildRequest) -> GitPlace:
        return wiring.git_place(self.settings, folder=request.git_folder, policy=self.source_policy)

    def _with_dependencies(
        self, workspace: Workspace, planned: PlannedBuild, place: GitPlace
    ) -> Workspace:
        return wiring.with_dependencies(workspace, planned.build, self.settings, place)

    def _run(
        self, planned: PlannedBuild, workspace: Workspace, begun: BegunBuild | None
    ) -> ExecutedBuild:
        self.on_planned(planned)
        return ExecutedBuild(outcome=self._run_plan(planned, workspace, begun, None))

    def _run_plan(
        self,
        planned: PlannedBuild,
        workspace: Workspace,
        begun: BegunBuild | None,
        resume: ResumeState | None,
    ) -> BuildOutcome:
        if self.place_workspace is not None:
            workspace = self.place_workspace(workspace)
        return run_build(
            planned.plan,
            RunContext(
                engine=self.engine,
                workspace=workspace,
                secrets=self.secrets or wiring.secret_resolver(self.settings),
                sink=self.sink,
                on_event=self.on_event,
                cancel=self.cancel,
                options=planned.options,
                publisher=planned.publisher,
                attester=planned.attester,
                uploader=wiring.uploader(planned.plan, wiring.stores(self.settings)),
                begun=begun,
                resume=resume,
            ),
        )


def _give_back(checkout: GitCheckout) -> None:
    checkout.release()


def _fetch(
    source: Source,
    is_named_commit: bool,
    settings: Settings,
    place: GitPlace,
    cancel: threading.Event,
    report: SourceReport,
) -> GitCheckout:
    """Fetch the source, and report progress to the log and the status line."""

    def progress(text: str, percent: int | None) -> None:
        if percent is None:
            report.line(text)
        else:
            report.doing("source", f"{text} {percent}%" if percent else text)

    checkout = wiring.fetch_git_source(
        source,
        settings,
        place,
        cancel=cancel,
        progress=progress,
        is_named_commit=is_named_commit,
    )
    missing = missing_dir(source, checkout)
    if missing:
        report.line(f"WARNING: the repository has no folder {missing}: steps begin in an empty one")
    return checkout


def missing_dir(source: Source, checkout: GitCheckout) -> str:
    """Return the source's ``dir`` if the commit has no such folder; else an empty string.

    Nothing is said of a ``dir`` that leads out of the commit through a link.
    """
    kinds = (source.git_source, source.repo_source, source.connected_repository)
    folder = next((kind.dir for kind in kinds if kind), "")
    root = os.path.realpath(checkout.folder)
    found = os.path.realpath(os.path.join(root, folder))
    is_inside = os.path.commonpath([root, found]) == root
    return folder if is_inside and not os.path.isdir(found) else ""
