"""From a server's stored request to a plan, the request's config or one of its repository."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.build_run.order import PlannedBuild, origin_of, with_commit
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.step_images import PublicImages
from buildrunner.errors import ConfigError
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan, ResourceLimits, project_number
from buildrunner.plan.compile import fitted, plan_resolved
from buildrunner.plan.privilege import Privilege, granted, refusal
from buildrunner.plan.resolve import PlanContext, resolve
from buildrunner.plan.selection import without_steps
from buildrunner.problem import Problem, Severity
from buildrunner.sandboxes.protocol import OpenSandbox
from buildrunner.settings import Settings
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import LoadedBuild, decode_message, load_build
from buildrunner.spec.substitutions.payload import bind
from buildrunner.spec.substitutions.variables import BuiltIns, merged
from buildrunner.spec.validation.check import check_build
from buildrunner.spec.writing import encode_message
from buildrunner.store.model.builds import StoredBuild
from buildrunner.store.records import reused_steps_of
from buildrunner.triggers.labels import AUTODETECT, BUILT_REF, CONFIG_LABEL, TRIGGER_NAME

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout

_CONFIG_NAMES = ("cloudbuild.yaml", "cloudbuild.yml", "cloudbuild.json")
_DOCKERFILE_IMAGE = "gcr.io/$PROJECT_ID/$REPO_NAME:$COMMIT_SHA"


def project_of(stored: StoredBuild, settings: Settings) -> str:
    """The project of a build."""
    return str(stored.document.get("projectId", settings.project_id))


class RequestedBuild:
    """A stored request on its way to a plan.

    Args:
        stored: the build.
        settings: those that count for it.
        opened: where it runs.
        labels: what everything made for it carries.
        policy: where it may fetch from; None: anywhere.
        payload: gives the payload of the event that fired its trigger, as `spec.bindings.bind`
            takes it; None: there is none.
    """

    def __init__(
        self,
        stored: StoredBuild,
        settings: Settings,
        opened: OpenSandbox,
        labels: Mapping[str, str],
        policy: SourcePolicy | None = None,
        payload: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        self._policy = policy
        self._payload = payload
        self._missing: tuple[str, ...] = ()
        self._stored = stored
        self._settings = settings
        self._opened = opened
        self._labels = dict(labels)
        self._loaded = decode_message(Build, stored.request)
        self._checkout: GitCheckout | None = None
        self._planned: Build | None = None
        project = self._project = project_of(stored, settings)
        self.build = replace(self._loaded.value, id=stored.id, project_id=project)
        self._grant = granted(
            docker_socket=settings.docker_socket,
            privileged=settings.privileged,
            privileged_place=opened.privileged_steps,
            trusted=not stored.untrusted,
        )

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
        from buildrunner.build_run.builder_aliases import (
            image_advice,
            install_command,
            with_builder_images,
        )

        engine = self._opened.engine
        # The plan of a dead process comes from a note on disk: it grants nothing by itself.
        asked = Privilege(docker_socket=plan.docker_socket, privileged=plan.privileged)
        given = asked.within(self._grant)
        plan = replace(plan, docker_socket=given.docker_socket, privileged=given.privileged)
        self._planned = build
        self._opened.expect(plan)
        aliases = with_builder_images(self._settings.image_aliases, plan, engine)
        push = self._stored.push
        options = RunOptions(
            push=push,
            network=wiring.NETWORK,
            keep_network=True,
            image_aliases=aliases,
            public_images=self._public_images(aliases) if self._stored.untrusted else None,
            image_advice=image_advice(plan),
            install_command=install_command(plan),
            pause_image=wiring.pause_image(engine),
            home_files=wiring.home_files(plan, self._settings),
            labels=self._labels,
            keep_logs=True,
        )
        options = self._opened.options(options)
        publisher, attester = None, None
        if push:
            attester = wiring.attester(build, plan, self._settings)
            publisher = wiring.publisher(
                plan, self._settings, engine, self._opened, options.disk_bytes
            )
        return PlannedBuild(
            build=build, plan=plan, options=options, publisher=publisher, attester=attester
        )

    def _public_images(self, aliases: Mapping[str, str]) -> PublicImages:
        """Whose images a stranger's config may name: everyone's, and what the server serves."""
        from buildrunner.builders.catalog import BUILDERS
        from buildrunner.engine.step_images import PublicImages
        from buildrunner.sources.policy import registry_refusal

        builders = (builder.image for builder in BUILDERS)
        allowed = (*self._settings.untrusted_images, *aliases.values(), *builders)
        return PublicImages(allowed, lambda registry: registry_refusal(self._policy, registry))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the config asks for and does not get."""
        options = self._planned.options if self._planned else None
        refused = refusal(self._grant, options.docker_daemon) if options else ""
        missing = tuple(f"{binding} is not in the event: empty" for binding in self._missing)
        return (refused, *missing) if refused else missing

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
            grant=self._grant,
        )
        resolved = resolve(build, context=context)
        plan = plan_resolved(resolved, context=context)
        origin = origin_of(loaded, checkout, config_in_source=bool(file))
        plan = replace(plan, origin=self._with_trigger(origin))
        reused = reused_steps_of(self._stored.labels)
        if reused:
            plan = without_steps(plan, reused)
        if self._stored.untrusted:
            _refuse_what_needs_trust(resolved.build, plan, file)
        return resolved.build, plan

    def _with_trigger(self, origin: BuildOrigin) -> BuildOrigin:
        """The origin with what the server knows of the trigger and its event."""
        stored, trigger = self._stored, str(self._stored.document.get("buildTriggerId", ""))
        if not trigger:
            return replace(origin, untrusted=stored.untrusted)
        return replace(
            origin,
            ref=stored.labels.get(BUILT_REF, ""),
            trigger=trigger,
            trigger_name=stored.labels.get(TRIGGER_NAME, ""),
            untrusted=stored.untrusted,
        )

    def _with_config(self, checkout: GitCheckout | None) -> tuple[str, LoadedBuild, Build]:
        """The config: what was sent, or what is in the repository with what was sent over it."""
        name = self._stored.labels.get(CONFIG_LABEL, "")
        if not name or checkout is None:
            loaded = LoadedBuild(self._loaded.value, self._loaded.problems, self._loaded.root)
            return "", loaded, self.build
        file, loaded = load_repository_config(checkout.folder, name)
        loaded = replace(loaded, value=self._bound(loaded.build))
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

    def _bound(self, build: Build) -> Build:
        """The config with the bindings of its substitutions filled in from the event.

        Source: Cloud Build "Using payload bindings and bash parameter expansions".
        """
        if self._payload is None or not any("$(" in text for text in build.substitutions.values()):
            return build
        bound = bind(build.substitutions, self._payload())
        self._missing = bound.missing
        return replace(build, substitutions=bound.values)


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


def load_repository_config(folder: str, name: str) -> tuple[str, LoadedBuild]:
    """The config of a triggered build, and its path in the repository.

    Args:
        folder: the repository's files.
        name: path of the config; `AUTODETECT`: one of the usual names.

    Raises:
        ConfigError: there is no such file.
        SourceError: the path leads out of the folder, or the file can't be read.

    Source: ``BuildTrigger.filename`` and ``autodetect``: cloudbuild.yaml, .yml, .json, Dockerfile,
        in the repository's root, in whatever case.
    """
    from buildrunner.sources.git.files import read_file

    if name != AUTODETECT:
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
        from buildrunner.build_run.dockerfile import dockerfile_build

        text = read_file(folder, there["dockerfile"]) or b""
        build = dockerfile_build(_DOCKERFILE_IMAGE, cache=False)
        sha256 = hashlib.sha256(text).hexdigest()
        return "Dockerfile", LoadedBuild(build, (), file=there["dockerfile"], sha256=sha256)
    listed = ", ".join(_CONFIG_NAMES)
    raise ConfigError([Problem(f"the repository has neither {listed} nor a Dockerfile")])


def _fitted(plan: BuildPlan, engine: ContainerEngine) -> BuildPlan:
    """The plan with limits that the engine's machine can give."""
    if plan.limits == ResourceLimits():
        return plan
    info = engine.info()
    machine = ResourceLimits(cpus=info.cpus or None, memory_bytes=info.memory_bytes or None)
    return replace(plan, limits=fitted(plan.limits, machine)[0])


class PlannedNote(msgspec.Struct, frozen=True):
    """What was decided to run.

    Attributes:
        document: the Build with its substitutions made.
        plan: its plan, as JSON.
        checkout: folder of the Git checkout that the workspace stands on; empty for none.
        commit: its commit.
    """

    document: dict[str, Any]
    plan: msgspec.Raw
    checkout: str = ""
    commit: str = ""
