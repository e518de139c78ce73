"""The program of a server's process for one build. It runs the stored request in a sandbox.

Everything between the source and the push is `BuildExecution`, the same as for ``submit``. This
module has only the differences of a server: where containers run, what an untrusted config may
not use, and how another process resumes the build.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.build_run.compile import (
    BuildPlace,
    PlannedBuild,
    compile_request,
    fitted_to_engine,
    planned_build,
)
from buildrunner.build_run.execution import BuildExecution
from buildrunner.build_run.log_upload import LogUpload
from buildrunner.build_run.request import BuildRequest, Event, Overrides, RepositoryConfig
from buildrunner.engine.events import BuildEvent, StepFinished, StepStarted
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.protocols import Attester, SecretResolver
from buildrunner.engine.run_options import RunOptions
from buildrunner.errors import BuildrunnerError, EngineError, SourceError, UsageError
from buildrunner.metadata import MetadataServer
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan, project_number
from buildrunner.plan.compile import git_source_of
from buildrunner.plan.privilege import granted, refusal
from buildrunner.plan.resolve import PlanContext
from buildrunner.sandboxes.host import SharedNetwork
from buildrunner.sandboxes.protocol import OpenSandbox, Sandbox
from buildrunner.settings import Settings, WorkerSettings, lock_folder
from buildrunner.sources.policy import SourcePolicy
from buildrunner.sources.uploads import OpenUpload
from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.spec.writing import encode_message
from buildrunner.store.model.builds import StoredBuild, build_asker
from buildrunner.store.records import FROM_BUILD, reused_steps_of, rollback_of
from buildrunner.triggers.labels import BUILT_REF, CONFIG_LABEL, NAMED_COMMIT, TRIGGER_NAME
from buildrunner.worker.execution import RunWiring
from buildrunner.worker.identity import (
    URL,
    URL_VARIABLE,
    BuildIdentities,
    Identities,
    project_facts,
)
from buildrunner.worker.policy import check_policy, policy_facts
from buildrunner.worker.recovery import PlannedNote, ResumePoint
from buildrunner.workspace.kept import (
    Keeping,
    KeptWorkspace,
    NotedWorkspace,
    RestoredWorkspace,
    ResumedWorkspace,
    WorkspaceStore,
    decode_prepared,
    encode_prepared,
)
from buildrunner.workspace.protocol import Workspace

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout

_FAILED = frozenset({"FAILURE", "TIMEOUT"})

# `PreparedWorkspace.way` of a workspace whose lowest layer is the checkout
_ON_CHECKOUT = "overlay"


class SourceLost(BuildrunnerError):
    """Raised if the source below a build's workspace has changed: steps would see a mixture."""


class ServerSources(msgspec.Struct, frozen=True, kw_only=True):
    """The allowed sources of a server's builds.

    Attributes:
        policy: allowed origins of Git fetches; None allows all.
        uploads: opens sources that were uploaded to the server; None if there are none.
    """

    policy: SourcePolicy | None = None
    uploads: OpenUpload | None = None


class ServerProgram:
    """Implements `worker.execution.BuildProgram`.

    Args:
        sandbox: the sandbox of the containers.
        settings: the server's settings.
        labels: labels of all resources on the engine.
        sources: the allowed sources of builds.
        keeping: store for workspaces of builds that failed or deployed; None keeps none.
        payload: returns the payload of the event that fired the trigger of a build, by root name;
            None if no event fires triggers here.
        identities: source of identity tokens; None if builds get none.
        secrets: resolves the secrets of a build; None uses the settings.
        store_log: stores the log of a build in its bucket; None if this process does it.
        attester: see `BuildPlace.attester`.
        on_planned: called after the plan is stored, and before it is run.
        not_kept: returns why the workspace of the build is not kept; empty for no reason.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        settings: Settings,
        labels: Mapping[str, str],
        sources: ServerSources | None = None,
        keeping: WorkspaceStore | None = None,
        payload: Callable[[StoredBuild], Mapping[str, Any]] | None = None,
        identities: Identities | None = None,
        secrets: SecretResolver | None = None,
        store_log: Callable[[StoredBuild, Build], Build] | None = None,
        attester: Callable[[Build, BuildPlan], Attester | None] | None = None,
        on_planned: Callable[[], object] = lambda: None,
        not_kept: Callable[[], str] = lambda: "",
    ) -> None:
        self._not_kept = not_kept
        self._attester = attester
        self._on_planned = on_planned
        self._secrets = secrets
        self._store_log = store_log
        self._sandbox = sandbox
        self._settings = settings
        self._labels = dict(labels)
        self._sources = sources or ServerSources()
        self._keeping = keeping
        self._payload = payload
        self._identities = identities
        self._log_uploads: dict[str, LogUpload] = {}

    def run(self, stored: StoredBuild, run: RunWiring) -> BuildOutcome:
        """See `BuildProgram.run`."""
        settings = self._settings_for(stored)
        if settings.logins_folder and not os.path.isdir(settings.logins_folder):
            raise UsageError(
                f"{settings.logins_folder}, which has the logins of the project's builds, is not a "
                "folder",
                hint="the server's administrator makes it, or corrects [projects.NAME.registries] "
                "logins",
            )
        if reached := self._sandbox.unenforced(settings.egress):
            raise UsageError(
                f"the build must not reach {', '.join(reached)} ([sandbox] egress_deny), and the "
                f"{self._sandbox.name} sandbox of this worker does not keep it from there",
                hint="run it on a worker with --sandbox nested, or in a pool on Kubernetes whose "
                "isolation is user-namespace",
            )
        opened = self._sandbox.open(
            stored.id, project=project_of(stored, settings), trusted=not stored.untrusted
        )
        event = partial(self._payload, stored) if self._payload else None
        request = request_of(
            stored, settings, privileged_place=opened.privileged_steps, event=event
        )
        metadata = _Metadata(self._identities, stored, opened)
        planning = ServerPlanning(
            request,
            self.place(stored, settings, opened, env=metadata.env, hosts=metadata.hosts),
            lambda planned: check_policy(
                settings.policy, planned.build, policy_facts(stored, planned.plan)
            ),
        )
        watch = _Watch(run, None if self._store_log else self._log_upload(stored))

        def place(source: Workspace) -> Workspace:
            placed = self._kept(stored, source, opened, watch)
            return NotedWorkspace(placed, lambda made: run.on_workspace(encode_prepared(made)))

        def on_planned(planned: PlannedBuild) -> None:
            watch.on_planned(planned, planning.note(planned))
            self._on_planned()
            metadata.start(planned.plan.origin)

        try:
            execution = BuildExecution(
                settings=settings,
                engine=opened.engine,
                sink=run.sink,
                on_event=watch.on_event,
                on_planned=on_planned,
                cancel=run.cancel,
                place_workspace=place,
                source_policy=self._sources.policy,
                secrets=self._secrets
                or wiring.secret_resolver(settings, build_asker(stored, settings.project_id)),
                uploads=self._sources.uploads,
            )
            if run.resume is None:
                outcome = execution.execute(request, planning.plan).outcome
            else:
                watch.take_up(run.resume)
                self._on_planned()
                metadata.start(run.resume.plan.origin)
                outcome = self._resume(execution, planning, run.resume, settings)
        except BuildrunnerError:
            with suppress(EngineError):  # the supervisor's sweep retries
                self._sandbox.remove(stored.id)
            raise
        finally:
            metadata.close()
            opened.close()
        warnings = (*outcome.warnings, *planning.warnings, *metadata.warnings)
        if reason := self._not_kept():
            text = f"the workspace is not kept, so no retry from a step is possible: {reason}"
            warnings = (*warnings, text)
        try:
            self._sandbox.remove(stored.id)
        except EngineError as error:  # the supervisor's sweep retries
            warnings = (*warnings, f"something of the build was left behind: {error}")
        return replace(outcome, warnings=warnings)

    def _kept(
        self, stored: StoredBuild, source: Workspace, opened: OpenSandbox, watch: _Watch
    ) -> Workspace:
        """Return a workspace with the source, or with the kept files of another build.

        It is kept for later builds if ``watch`` says so, and if the server keeps workspaces.
        """
        from_build = stored.labels.get(FROM_BUILD, "")
        if self._keeping is None:
            if from_build and not watch.is_resumed:
                raise SourceError(
                    f"the build goes on with the workspace of build {from_build}, and none is "
                    "kept here",
                    hint="retry the whole build",
                )
            return opened.workspace(source)
        folder = self._keeping.of(from_build) if from_build else ""
        begins_with = RestoredWorkspace(folder, from_build) if from_build else source
        if watch.is_resumed:
            begins_with = source
        placed = opened.workspace(begins_with)
        return KeptWorkspace(
            placed,
            self._keeping,
            stored.id,
            wanted=lambda: watch.keeps_workspace,
            volumes=lambda: watch.volumes,
            restored="" if watch.is_resumed else from_build,
        )

    def place(
        self,
        stored: StoredBuild,
        settings: Settings,
        opened: OpenSandbox,
        *,
        env: tuple[str, ...] = (),
        hosts: tuple[str, ...] = (),
    ) -> BuildPlace:
        """Return where a build runs, and the server's choices for it."""
        options = RunOptions(
            push=stored.push and not stored.untrusted,
            network=wiring.NETWORK,
            keep_network=True,
            labels=self._labels,
            keep_logs=True,
            env=env,
            extra_hosts=hosts,
        )
        return BuildPlace(
            engine=opened.engine,
            settings=settings,
            options=options,
            sandbox=opened,
            policy=self._sources.policy,
            attester=self._attester,
            identity_token=(
                partial(self._identities.signing_token, stored)
                if isinstance(self._identities, BuildIdentities)
                else None
            ),
        )

    def _resume(
        self,
        execution: BuildExecution,
        planning: ServerPlanning,
        resume: ResumePoint,
        settings: Settings,
    ) -> BuildOutcome:
        build = decode_message(Build, resume.planned.document).value
        planned = planning.prepared(build, resume.plan)
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
            return execution.resume(planned, ResumedWorkspace(prepared), resume.state)
        finally:
            if lease is not None:
                lease.release()

    def sweep(self, build_id: str) -> None:
        """See `BuildProgram.sweep`."""
        self._sandbox.remove(build_id)

    def store_log(self, stored: StoredBuild, build: Build, path: str) -> Build:
        """See `BuildProgram.store_log`."""
        if self._store_log is not None:
            return self._store_log(stored, build)
        return self._log_upload(stored).stored(build, path, lambda: False)

    def _log_upload(self, stored: StoredBuild) -> LogUpload:
        """Return the upload of a build's log: begun while the build runs, and used at its end."""
        if stored.id not in self._log_uploads:
            stores = wiring.stores(self._settings_for(stored))
            self._log_uploads[stored.id] = LogUpload(stores)
        return self._log_uploads[stored.id]

    def _settings_for(self, stored: StoredBuild) -> Settings:
        """Return the settings for the build's project, without unsafe ones for untrusted builds."""
        settings = self._settings.of_project(project_of(stored, self._settings))
        if not stored.untrusted:
            return settings
        return replace(
            settings,
            share_registry_logins=False,
            provenance_sbom=(),  # this process would read the content of the fork's image
            provenance_push=False,  # this process would talk to a registry of the fork's choice
            storage_folders={},
            storage_buckets=(),
            # .gitmodules and .lfsconfig may name any repository that the host's token can read.
            git=replace(settings.git, submodules=False, lfs=False),
        )


class _Metadata:
    """The metadata server of a build whose trigger allows identity tokens.

    Attributes:
        env, hosts: variables and host names with which steps find it; empty if there is none.
        warnings: why a build has none although its trigger allows tokens.
    """

    def __init__(
        self, identities: Identities | None, stored: StoredBuild, opened: OpenSandbox
    ) -> None:
        self._identities = identities
        self._stored = stored
        self._stack = ExitStack()
        self._listener = None
        self.env: tuple[str, ...] = ()
        self.hosts: tuple[str, ...] = ()
        self.warnings: tuple[str, ...] = ()
        if identities is None or not identities.audiences(stored):
            return
        self._listener = opened.metadata_listener()
        if self._listener is None:
            self.warnings = ("the build gets no identity tokens: they need serve --sandbox nested",)
            return
        self.env = (f"{URL_VARIABLE}={URL}",)
        self.hosts = wiring.metadata_hosts()

    def start(self, origin: BuildOrigin) -> None:
        """Serve the tokens of the planned build.

        Raises:
            EngineError: the sandbox did not start, or the address is not available in it.
        """
        if self._listener is None or self._identities is None:
            return
        server = MetadataServer(
            self._stack.enter_context(self._listener),
            project_facts(self._stored),
            credentials=self._identities.of_build(self._stored, origin),
        )
        self._stack.callback(server.close)

    def close(self) -> None:
        """Stop serving. Idempotent."""
        self._stack.close()


class ServerPlanning:
    """Plans a stored request, and notes the data with which a later process resumes it.

    Args:
        request: the stored request.
        place: where the request runs, with the server's choices.
        check: raises ConfigError for a build that the server's policy refuses.
    """

    def __init__(
        self,
        request: BuildRequest,
        place: BuildPlace,
        check: Callable[[PlannedBuild], None] = lambda _: None,
    ) -> None:
        self._request = request
        self._place = place
        self._check = check
        self._checkout: GitCheckout | None = None
        self.warnings: tuple[str, ...] = ()
        """Rights that the config requests and does not get, and bindings without a value."""

    def plan(self, checkout: GitCheckout | None) -> PlannedBuild:
        """Compile and prepare the build: a `compile.Planner`.

        Raises:
            ConfigError: the config is invalid, or requests rights that it can't have.
            EngineError: the engine does not answer.
        """
        self._checkout = checkout
        made = compile_request(self._request, checkout)
        plan, _ = fitted_to_engine(made.compiled.plan, self._place.engine)
        planned = self.prepared(made.compiled.build, plan)
        self._check(planned)
        unbound = (f"{binding} is not in the event: empty" for binding in made.unbound)
        self.warnings = (*self.warnings, *unbound)
        return planned

    def prepared(self, build: Build, plan: BuildPlan) -> PlannedBuild:
        """Return a plan with all that it needs to run, also for the plan of a dead process.

        Raises:
            ConfigError: the plan has a package that can't be published from here.
            EngineError: the engine does not answer.
        """
        options = build.options
        refused = refusal(self._request.context.grant, options.docker_daemon) if options else ""
        self.warnings = (refused,) if refused else ()
        return planned_build(self._request, build, plan, self._place)

    def note(self, planned: PlannedBuild) -> PlannedNote:
        """Return the note with which a later process resumes the planned build."""
        checkout = self._checkout
        return PlannedNote(
            document=encode_message(planned.build),
            plan=msgspec.Raw(msgspec.json.encode(planned.plan)),
            checkout=checkout.folder if checkout else "",
            commit=checkout.resolved.commit_sha if checkout else "",
        )


class _Watch:
    """Watches a run: decides whether to keep its workspace, and when to find its log's bucket."""

    def __init__(self, run: RunWiring, log_upload: LogUpload | None) -> None:
        self._run = run
        self._log_upload = log_upload
        self._build: Build | None = None
        self.keeps_workspace = False
        """Whether a step failed or deployed: a later build may start from that step."""
        self.volumes: tuple[str, ...] = ()
        self.is_resumed = False

    def on_event(self, event: BuildEvent) -> None:
        if isinstance(event, StepFinished) and (
            event.deployments or (event.status in _FAILED and not event.forgiven)
        ):
            self.keeps_workspace = True
        is_step = isinstance(event, StepStarted)
        if is_step and self._build is not None and self._log_upload is not None:
            self._log_upload.begin(self._build)
        self._run.on_event(event)

    def on_planned(self, planned: PlannedBuild, note: PlannedNote) -> None:
        self._build = planned.build
        self.volumes = planned.plan.volumes
        self._run.on_plan(note)

    def take_up(self, resume: ResumePoint) -> None:
        self.is_resumed = True
        self.volumes = resume.plan.volumes
        self.keeps_workspace = any(
            outcome.deployments or (outcome.status.name in _FAILED and not outcome.forgiven)
            for outcome in resume.state.outcomes.values()
        )


def project_of(stored: StoredBuild, settings: Settings) -> str:
    """Return the project of a stored build."""
    return str(stored.document.get("projectId", settings.project_id))


def request_of(
    stored: StoredBuild,
    settings: Settings,
    *,
    privileged_place: bool,
    event: Callable[[], Event] | None = None,
) -> BuildRequest:
    """Return the stored request of a build.

    Args:
        stored: the build.
        settings: settings of its project.
        privileged_place: whether steps are privileged where the build runs, unless settings forbid
            it.
        event: returns the payload of the event that fired the build's trigger.
    """
    loaded = decode_message(Build, stored.request)
    project = project_of(stored, settings)
    build = replace(loaded.value, id=stored.id, project_id=project)
    context = PlanContext(
        built_ins=BuiltIns(
            project_id=project,
            project_number=project_number(project),
            build_id=stored.id,
            location=stored.location,
            service_account_email=build.service_account.rpartition("/")[2],
        ),
        triggered=bool(stored.document.get("buildTriggerId")),
        grant=granted(
            docker_socket=settings.docker_socket,
            privileged=settings.privileged,
            privileged_place=privileged_place,
            trusted=not stored.untrusted,
        ),
        reused=reused_steps_of(stored.labels),
        rollback=rollback_of(stored.labels),
        trusted=not stored.untrusted,
    )
    config = stored.labels.get(CONFIG_LABEL, "")
    if not config or git_source_of(build) is None:
        return BuildRequest(
            build=build,
            config=build,
            context=context,
            origin=_origin(stored),
            is_named_commit=NAMED_COMMIT in stored.labels,
        )
    return BuildRequest(
        build=build,
        origin=_origin(stored),
        repository=RepositoryConfig(names=(config,), of_trigger=True),
        overrides=Overrides(
            source=build.source, tags=build.tags, service_account=build.service_account
        ),
        event=event,
        context=replace(context, substitutions=build.substitutions),
        is_named_commit=NAMED_COMMIT in stored.labels,
    )


def _origin(stored: StoredBuild) -> BuildOrigin:
    """Return the server's own facts about the trigger and its event."""
    trigger = str(stored.document.get("buildTriggerId", ""))
    if not trigger:
        return BuildOrigin(untrusted=stored.untrusted)
    return BuildOrigin(
        ref=stored.labels.get(BUILT_REF, ""),
        trigger=trigger,
        trigger_name=stored.labels.get(TRIGGER_NAME, ""),
        untrusted=stored.untrusted,
    )


def keeping_of(worker: WorkerSettings) -> Keeping | None:
    """Return the store of a server's kept workspaces; None if it keeps none."""
    if not worker.keep_gib:
        return None
    return Keeping(
        folder=os.path.join(worker.data, "workspaces"),
        limit_bytes=worker.keep_gib << 30,
        disk_bytes=(worker.disk_gib << 30) or None,
    )


def shared_network() -> SharedNetwork:
    """Return a hold on the network of builds, until it is closed or this process ends."""
    engine = wiring.container_engine()
    return SharedNetwork(engine, engine.endpoint.address, wiring.NETWORK, lock_folder())
