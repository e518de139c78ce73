"""What a server's process for one build runs: the stored request, in a sandbox.

Everything between the source and the push is `BuildExecution`, the same as for ``submit``; here is
only what a server decides differently: where containers live, what an untrusted config may not
have, and that another process may go on with the build.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.build_execution import BuildExecution, BuildOrder, PlannedBuild, with_commit
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.workspace_resumed import (
    NotedWorkspace,
    ResumedWorkspace,
    decode_prepared,
    encode_prepared,
)
from buildrunner.errors import BuildrunnerError, ConfigError, EngineError
from buildrunner.plan.build_plan import ResourceLimits
from buildrunner.plan.compile import plan_resolved
from buildrunner.plan.identity import project_number
from buildrunner.plan.limits import fitted
from buildrunner.plan.resolve import PlanContext, resolve
from buildrunner.settings import load_settings, lock_folder
from buildrunner.spec.decode import LoadedBuild, decode_message, load_build
from buildrunner.spec.encode import encode_message
from buildrunner.spec.model import Build
from buildrunner.spec.problem import Problem, Severity
from buildrunner.spec.validate import check_build
from buildrunner.spec.variables import BuiltIns, merged
from buildrunner.worker.build_notes import PlannedNote
from buildrunner.worker.shared_network import SharedNetwork

if TYPE_CHECKING:
    from collections.abc import Mapping

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.engine.outcome import BuildOutcome
    from buildrunner.engine.workspace_protocol import Workspace
    from buildrunner.plan.build_plan import BuildPlan
    from buildrunner.settings import Settings, WorkerSettings
    from buildrunner.sources.git_source import GitCheckout
    from buildrunner.sources.source_policy import SourcePolicy
    from buildrunner.store.server_store import StoredBuild
    from buildrunner.worker.execute import RunWiring
    from buildrunner.worker.recovery import ResumePoint
    from buildrunner.worker.sandbox import OpenSandbox, Sandbox

SOURCES_BUCKET = "buildrunner-sources"

_ON_CHECKOUT = "overlay"  # `PreparedWorkspace.way` of one whose lowest layer is the checkout
_AUTODETECT = "?"
_CONFIG_NAMES = ("cloudbuild.yaml", "cloudbuild.yml", "cloudbuild.json")
_DOCKERFILE_IMAGE = "gcr.io/$PROJECT_ID/$REPO_NAME:$COMMIT_SHA"


class SourceLost(BuildrunnerError):
    """What a build's workspace stands on is not what it was: its steps would see a mixture."""


class ServerProgram:
    """Implements `worker.execute.BuildProgram`.

    Args:
        sandbox: where containers live.
        settings: the server's settings.
        labels: what everything made on the engine carries.
        policy: where Git may fetch from; None: anywhere.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        settings: Settings,
        labels: Mapping[str, str],
        policy: SourcePolicy | None = None,
    ) -> None:
        self._sandbox = sandbox
        self._settings = settings
        self._labels = dict(labels)
        self._policy = policy

    def run(self, stored: StoredBuild, run: RunWiring) -> BuildOutcome:
        """See `BuildProgram.run`."""
        settings = _bare(self._settings) if stored.untrusted else self._settings
        opened = self._sandbox.open(stored.id)
        request = RequestedBuild(stored, settings, opened, self._labels)

        def place(source: Workspace) -> Workspace:
            placed = opened.workspace(source)
            return NotedWorkspace(placed, lambda made: run.on_workspace(encode_prepared(made)))

        try:
            execution = BuildExecution(
                settings=settings,
                engine=opened.engine,
                sink=run.sink,
                on_event=run.on_event,
                on_planned=lambda planned: run.on_plan(request.note(planned)),
                cancel=run.cancel,
                place_workspace=place,
                source_policy=self._policy,
            )
            if run.resume is None:
                outcome = execution.execute(BuildOrder(build=request.build), request.plan).outcome
            else:
                outcome = self._go_on(execution, request, run.resume)
        except BuildrunnerError:
            with suppress(EngineError):  # the supervisor's sweep tries again
                self._sandbox.remove(stored.id)
            raise
        finally:
            opened.close()
        try:
            self._sandbox.remove(stored.id)
        except EngineError as error:  # the same
            left = f"something of the build was left behind: {error}"
            return replace(outcome, warnings=(*outcome.warnings, left))
        return outcome

    def _go_on(
        self, execution: BuildExecution, request: RequestedBuild, resume: ResumePoint
    ) -> BuildOutcome:
        build = decode_message(Build, resume.planned.document).value
        planned = request.prepared(build, resume.plan)
        prepared = decode_prepared(resume.workspace)
        note = resume.planned
        lease = None
        if note.checkout and prepared.way == _ON_CHECKOUT:
            lease = wiring.git_mirror(self._settings).hold(note.checkout, note.commit)
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

    def store_log(self, build: Build, path: str) -> Build:
        """See `BuildProgram.store_log`."""
        from buildrunner.artifacts.stored_log import wants_stored_log

        if not wants_stored_log(build):
            return build
        from buildrunner.cli.log_upload import with_stored_log

        return with_stored_log(build, wiring.stores(self._settings), path, lambda: False)


class RequestedBuild:
    """A stored request on its way to a plan.

    Args:
        stored: the build.
        settings: those that count for it.
        opened: where it runs.
        labels: what everything made for it carries.
    """

    def __init__(
        self,
        stored: StoredBuild,
        settings: Settings,
        opened: OpenSandbox,
        labels: Mapping[str, str],
    ) -> None:
        self._stored = stored
        self._settings = settings
        self._opened = opened
        self._labels = dict(labels)
        self._loaded = decode_message(Build, stored.request)
        self._checkout: GitCheckout | None = None
        project = str(stored.document.get("projectId", settings.project_id))
        self._project = project
        self.build = replace(self._loaded.value, id=stored.id, project_id=project)

    def plan(self, checkout: GitCheckout | None) -> PlannedBuild:
        """A `build_execution.Planner`.

        Raises:
            ConfigError: the config is wrong, or asks for what it may not have.
            EngineError: the engine does not answer.
        """
        self._checkout = checkout
        build, plan = self._compile(checkout)
        return self.prepared(build, _fitted(plan, self._opened.engine))

    def prepared(self, build: Build, plan: BuildPlan) -> PlannedBuild:
        """A plan with how it is run: the same for the process that began and the one that goes on.

        Raises:
            ConfigError: it asks for a package that can't be published from here.
            EngineError: the engine does not answer.
        """
        from buildrunner.cli.builder_aliases import with_builder_images

        engine = self._opened.engine
        self._opened.expect(plan)
        aliases = with_builder_images(self._settings.image_aliases, plan, engine)
        push = self._stored.push
        options = RunOptions(
            push=push,
            network=wiring.NETWORK,
            keep_network=True,
            image_aliases=aliases,
            pause_image=wiring.pause_image(engine),
            home_files=wiring.home_files(plan, self._settings),
            labels=self._labels,
            keep_logs=True,
        )
        return PlannedBuild(
            build=build,
            plan=plan,
            options=self._opened.options(options),
            publisher=wiring.publisher(plan, self._settings, engine) if push else None,
        )

    def note(self, planned: PlannedBuild) -> PlannedNote:
        """What a later process needs to go on with the plan."""
        checkout = self._checkout
        return PlannedNote(
            document=encode_message(planned.build),
            plan=msgspec.Raw(msgspec.json.encode(planned.plan)),
            checkout=checkout.folder if checkout else "",
            commit=checkout.resolved.commit_sha if checkout else "",
        )

    def _compile(self, checkout: GitCheckout | None) -> tuple[Build, BuildPlan]:
        built_ins = with_commit(
            BuiltIns(
                project_id=self._project,
                project_number=project_number(self._project),
                build_id=self._stored.id,
                location=self._stored.location,
                service_account_email=self.build.service_account.rpartition("/")[2],
            ),
            checkout,
        )
        file, loaded, build = self._with_config(checkout)
        triggered = bool(self._stored.document.get("buildTriggerId"))
        if file:
            # What was sent comes from outside: the stricter rules are for the file's own values.
            own = replace(build, substitutions=loaded.build.substitutions)
            problems = check_build(
                LoadedBuild(value=own, problems=loaded.problems, root=loaded.root),
                file=file,
                substitutions=self.build.substitutions,
                built_ins=built_ins,
                triggered=triggered,
            )
        else:
            problems = check_build(build, built_ins=built_ins, triggered=triggered)
        if any(problem.severity is Severity.ERROR for problem in problems):
            raise ConfigError(problems)
        context = PlanContext(
            built_ins=built_ins,
            triggered=triggered,
            docker_socket=self._settings.docker_socket,
            privileged=not self._stored.untrusted
            and (self._settings.privileged or self._opened.privileged_steps),
        )
        resolved = resolve(build, context=context)
        plan = plan_resolved(resolved, context=context)
        if self._stored.untrusted:
            _refuse_what_needs_trust(resolved.build, plan, file)
        return resolved.build, plan

    def _with_config(self, checkout: GitCheckout | None) -> tuple[str, LoadedBuild, Build]:
        """The config: what was sent, or what is in the repository with what was sent over it."""
        name = self._stored.labels.get("config_file", "")
        if not name or checkout is None:
            loaded = LoadedBuild(self._loaded.value, self._loaded.problems, self._loaded.root)
            return "", loaded, self.build
        file, loaded = _load_from(checkout.folder, name)
        sent = self.build
        build = replace(
            loaded.build,
            id=sent.id,
            project_id=sent.project_id,
            source=sent.source,
            substitutions=merged(loaded.build.substitutions, sent.substitutions),
            tags=tuple(dict.fromkeys((*loaded.build.tags, *sent.tags))),
            service_account=sent.service_account or loaded.build.service_account,
        )
        return file, loaded, build


def server_settings(worker: WorkerSettings) -> Settings:
    """The server's own settings; what was uploaded to it is a bucket for its builds.

    Raises:
        ConfigError: a settings file is wrong.
    """
    settings = load_settings("/")
    sources = f"file://{os.path.join(worker.data, 'sources')}"
    folders = {**settings.storage_folders, f"gs://{SOURCES_BUCKET}": sources}
    return replace(settings, storage_folders=folders)


def shared_network() -> SharedNetwork:
    """A hold on the network of builds on the engine at hand; it stays as long as we do."""
    engine = wiring.container_engine()
    return SharedNetwork(engine, engine.endpoint.address, wiring.NETWORK, lock_folder())


def _load_from(folder: str, name: str) -> tuple[str, LoadedBuild]:
    """A config of the repository.

    Source: ``BuildTrigger.filename`` and ``autodetect``: cloudbuild.yaml, .yml, .json, Dockerfile,
        in the repository's root, in whatever case.
    """
    from buildrunner.sources.git_files import read_file

    if name != _AUTODETECT:
        text = read_file(folder, name)
        if text is None:
            raise ConfigError([Problem("there is no such file in the repository", file=name)])
        return name, load_build(text, file=name)
    there = {entry.lower(): entry for entry in sorted(os.listdir(folder), reverse=True)}
    for wanted in _CONFIG_NAMES:
        entry = there.get(wanted)
        text = read_file(folder, entry) if entry else None
        if entry and text is not None:
            return entry, load_build(text, file=entry)
    if "dockerfile" in there:
        from buildrunner.cli.dockerfile_build import dockerfile_build

        return "Dockerfile", LoadedBuild(dockerfile_build(_DOCKERFILE_IMAGE, cache=False), ())
    listed = ", ".join(_CONFIG_NAMES)
    raise ConfigError([Problem(f"the repository has neither {listed} nor a Dockerfile")])


def _bare(settings: Settings) -> Settings:
    """For a config of somebody who may have neither our secrets nor our engine."""
    return replace(settings, docker_socket=False, privileged=False, share_registry_logins=False)


def _refuse_what_needs_trust(build: Build, plan: BuildPlan, file: str) -> None:
    """Raises `ConfigError` when an untrusted config asks for what our credentials would get it."""
    wanted = {
        "availableSecrets": any(step.secrets for step in plan.steps) and "secrets",
        "dependencies": build.dependencies and "repositories beside its source",
    }
    problems = [
        Problem(f"a build from somebody who is not trusted gets no {what}", path, file)
        for path, what in wanted.items()
        if what
    ]
    if problems:
        raise ConfigError(problems)


def _fitted(plan: BuildPlan, engine: ContainerEngine) -> BuildPlan:
    """The plan with limits that the engine's machine can give."""
    if plan.limits == ResourceLimits():
        return plan
    info = engine.info()
    machine = ResourceLimits(cpus=info.cpus or None, memory_bytes=info.memory_bytes or None)
    return replace(plan, limits=fitted(plan.limits, machine)[0])
