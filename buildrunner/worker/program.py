"""What a server's process for one build runs: the stored request, in a sandbox.

Everything between the source and the push is `BuildExecution`, the same as for ``submit``; here is
only what a server decides differently: where containers live, what an untrusted config may not
have, and that another process may go on with the build.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.build_run.execution import BuildExecution
from buildrunner.build_run.log_upload import LogUpload
from buildrunner.build_run.order import BuildOrder, PlannedBuild
from buildrunner.build_run.requested import RequestedBuild, project_of
from buildrunner.engine.events import BuildEvent, StepFinished, StepStarted
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.errors import BuildrunnerError, EngineError
from buildrunner.sandboxes.host import SharedNetwork
from buildrunner.sandboxes.protocol import OpenSandbox, Sandbox
from buildrunner.secrets.secret_scope import Asker, Use
from buildrunner.settings import Settings, WorkerSettings, lock_folder
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import decode_message
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.records import FROM_BUILD
from buildrunner.triggers.labels import BUILT_REF, TRIGGER_NAME
from buildrunner.worker.execution import RunWiring
from buildrunner.worker.recovery import ResumePoint
from buildrunner.workspace.kept import Keeping, KeptWorkspace, RestoredWorkspace
from buildrunner.workspace.protocol import Workspace
from buildrunner.workspace.resumed import (
    NotedWorkspace,
    ResumedWorkspace,
    decode_prepared,
    encode_prepared,
)

_FAILED = frozenset({"FAILURE", "TIMEOUT"})

_ON_CHECKOUT = "overlay"  # `PreparedWorkspace.way` of one whose lowest layer is the checkout


class SourceLost(BuildrunnerError):
    """What a build's workspace stands on is not what it was: its steps would see a mixture."""


class ServerProgram:
    """Implements `worker.execution.BuildProgram`.

    Args:
        sandbox: where containers live.
        settings: the server's settings.
        labels: what everything made on the engine carries.
        policy: where Git may fetch from; None: anywhere.
        keeping: where workspaces of builds that failed are kept; None: nowhere.
        uploads: the folder of the sources that were uploaded to the server.
        payload: gives the payload of the event that fired the trigger of a build, by root name;
            None: no event fires triggers here.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        settings: Settings,
        labels: Mapping[str, str],
        policy: SourcePolicy | None = None,
        keeping: Keeping | None = None,
        uploads: str = "",
        payload: Callable[[StoredBuild], Mapping[str, Any]] | None = None,
    ) -> None:
        self._sandbox = sandbox
        self._settings = settings
        self._labels = dict(labels)
        self._policy = policy
        self._keeping = keeping
        self._uploads = uploads
        self._payload = payload
        self._log_uploads: dict[str, LogUpload] = {}

    def run(self, stored: StoredBuild, run: RunWiring) -> BuildOutcome:
        """See `BuildProgram.run`."""
        settings = self._settings_for(stored)
        opened = self._sandbox.open(
            stored.id, project=project_of(stored, settings), trusted=not stored.untrusted
        )
        payload = partial(self._payload, stored) if self._payload else None
        request = RequestedBuild(stored, settings, opened, self._labels, self._policy, payload)

        watch = _Watch(run, self._log_upload(stored))

        def place(source: Workspace) -> Workspace:
            placed = self._kept(stored, source, opened, watch)
            return NotedWorkspace(placed, lambda made: run.on_workspace(encode_prepared(made)))

        try:
            execution = BuildExecution(
                settings=settings,
                engine=opened.engine,
                sink=run.sink,
                on_event=watch.on_event,
                on_planned=lambda planned: watch.on_planned(planned, request),
                cancel=run.cancel,
                place_workspace=place,
                source_policy=self._policy,
                secrets=wiring.secret_resolver(settings, build_asker(stored, settings)),
                uploads=self._uploads,
            )
            if run.resume is None:
                outcome = execution.execute(BuildOrder(build=request.build), request.plan).outcome
            else:
                watch.take_up(run.resume)
                outcome = self._go_on(execution, request, run.resume, settings)
        except BuildrunnerError:
            with suppress(EngineError):  # the supervisor's sweep tries again
                self._sandbox.remove(stored.id)
            raise
        finally:
            opened.close()
        warnings = (*outcome.warnings, *request.warnings)
        try:
            self._sandbox.remove(stored.id)
        except EngineError as error:  # the same
            warnings = (*warnings, f"something of the build was left behind: {error}")
        return replace(outcome, warnings=warnings)

    def _kept(
        self, stored: StoredBuild, source: Workspace, opened: OpenSandbox, watch: _Watch
    ) -> Workspace:
        """The source in its place, kept when the build fails; or what was kept of another one."""
        if self._keeping is None:
            return opened.workspace(source)
        from_build = stored.labels.get(FROM_BUILD, "")
        folder = self._keeping.of(from_build) if from_build else ""
        begins_with = RestoredWorkspace(folder, from_build) if from_build else source
        if watch.is_resumed:
            begins_with = source
        placed = opened.workspace(begins_with)
        return KeptWorkspace(
            placed,
            self._keeping,
            stored.id,
            failed=lambda: watch.failed,
            volumes=lambda: watch.volumes,
            restored="" if watch.is_resumed else folder,
        )

    def _go_on(
        self,
        execution: BuildExecution,
        request: RequestedBuild,
        resume: ResumePoint,
        settings: Settings,
    ) -> BuildOutcome:
        build = decode_message(Build, resume.planned.document).value
        planned = request.prepared(build, resume.plan)
        prepared = decode_prepared(resume.workspace)
        note = resume.planned
        lease = None
        if note.checkout and prepared.way == _ON_CHECKOUT:
            lease = wiring.git_mirror(settings).hold(note.checkout, note.commit)
            if lease is None:
                raise SourceLost(
                    "the checkout that the build's workspace stands on was changed while no "
                    "process of the build lived"
                )
        try:
            return execution.go_on(planned, ResumedWorkspace(prepared), resume.state)
        finally:
            if lease is not None:
                lease.release()

    def sweep(self, build_id: str) -> None:
        """See `BuildProgram.sweep`."""
        self._sandbox.remove(build_id)

    def store_log(self, stored: StoredBuild, build: Build, path: str) -> Build:
        """See `BuildProgram.store_log`."""
        return self._log_upload(stored).stored(build, path, lambda: False)

    def _log_upload(self, stored: StoredBuild) -> LogUpload:
        """What stores the log of a build: begun while it runs, and used at its end."""
        if stored.id not in self._log_uploads:
            stores = wiring.stores(self._settings_for(stored))
            self._log_uploads[stored.id] = LogUpload(stores)
        return self._log_uploads[stored.id]

    def _settings_for(self, stored: StoredBuild) -> Settings:
        """The settings for the build's project, without what a stranger's config may not use."""
        settings = self._settings.of_project(project_of(stored, self._settings))
        if not stored.untrusted:
            return settings
        return replace(
            settings,
            share_registry_logins=False,
            storage_folders={},
            storage_buckets=(),
            # .gitmodules and .lfsconfig may name any repository that the host's token can read.
            git=replace(settings.git, submodules=False, lfs=False),
        )


class _Watch:
    """Watches a run: whether its workspace is kept, and when its log's bucket is looked for."""

    def __init__(self, run: RunWiring, log_upload: LogUpload) -> None:
        self._run = run
        self._log_upload = log_upload
        self._build: Build | None = None
        self.failed = False
        self.volumes: tuple[str, ...] = ()
        self.is_resumed = False

    def on_event(self, event: BuildEvent) -> None:
        if isinstance(event, StepFinished) and event.status in _FAILED and not event.forgiven:
            self.failed = True
        if isinstance(event, StepStarted) and self._build is not None:
            self._log_upload.begin(self._build)
        self._run.on_event(event)

    def on_planned(self, planned: PlannedBuild, request: RequestedBuild) -> None:
        self._build = planned.build
        self.volumes = planned.plan.volumes
        self._run.on_plan(request.note(planned))

    def take_up(self, resume: ResumePoint) -> None:
        self.is_resumed = True
        self.volumes = resume.plan.volumes
        self.failed = any(
            outcome.status.name in _FAILED and not outcome.forgiven
            for outcome in resume.state.outcomes.values()
        )


def build_asker(stored: StoredBuild, settings: Settings) -> Asker:
    """The build as it asks for secrets: what the server knows of it, not what its config says."""
    trigger = str(stored.document.get("buildTriggerId", ""))
    name = stored.labels.get(TRIGGER_NAME, "")
    return Asker(
        use=Use.BUILD,
        project=project_of(stored, settings),
        trusted=not stored.untrusted,
        triggers=tuple(filter(None, (trigger, name))) if trigger else (),
        ref=stored.labels.get(BUILT_REF, "") if trigger else "",
    )


def keeping_of(worker: WorkerSettings) -> Keeping | None:
    """Where a server keeps workspaces; None where it keeps none."""
    from buildrunner.workspace.kept import Keeping

    if not worker.keep_gib:
        return None
    return Keeping(
        folder=os.path.join(worker.data, "workspaces"), limit_bytes=worker.keep_gib << 30
    )


def shared_network() -> SharedNetwork:
    """A hold on the network of builds on the engine at hand; it stays as long as we do."""
    engine = wiring.container_engine()
    return SharedNetwork(engine, engine.endpoint.address, wiring.NETWORK, lock_folder())
