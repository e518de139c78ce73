"""Compiles a request, and its fetched source where one is needed, into a build that can run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.build_run.request import BuildRequest
from buildrunner.builders.catalog import (
    DEFAULT_ALIASES,
    advice,
    drop_in,
    installed_aliases,
    stand_in,
)
from buildrunner.containers.protocol import ContainerEngine, Images
from buildrunner.engine.image_pulls import PublicImages, serve_image, split_reference
from buildrunner.engine.protocols import Attester, PackagePublisher
from buildrunner.engine.run_options import RunOptions
from buildrunner.errors import ConfigError, SourceError, UsageError
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan, ResourceLimits
from buildrunner.plan.compile import CompiledBuild, compile_build, fitted
from buildrunner.plan.privilege import Privilege, refusal
from buildrunner.problem import Problem
from buildrunner.sandboxes.protocol import OpenSandbox
from buildrunner.settings import Settings
from buildrunner.sources.policy import SourcePolicy
from buildrunner.spec.lexical_path import clean_path
from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import LoadedBuild
from buildrunner.spec.substitutions.expressions import BadExpression
from buildrunner.spec.substitutions.templates import names_in
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.workspace.protocol import Workspace

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout


_OF_REPOSITORY = (
    *("REPO_NAME", "REPO_FULL_NAME", "BRANCH_NAME", "TAG_NAME", "REF_NAME"),
    *("COMMIT_SHA", "REVISION_ID", "SHORT_SHA"),
)


class CompiledRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request with its plan, and everything that the user should know about it.

    Attributes:
        compiled: the Build to keep, and its plan.
        unbound: bindings that the event has no value for, each with the variables that use it.
        empty: variables of the repository that steps use and that are empty.
        refused: a sentence about rights that the config requests and does not get; mostly empty.
    """

    compiled: CompiledBuild
    unbound: Mapping[str, tuple[str, ...]] = {}
    empty: tuple[str, ...] = ()
    refused: str = ""


def compile_request(request: BuildRequest, checkout: GitCheckout | None = None) -> CompiledRequest:
    """Check a requested build and plan it. Touches nothing outside.

    Args:
        request: the requested build.
        checkout: its fetched repository; None for any other source.

    Raises:
        ConfigError: the config or the selection of steps is wrong. Holds all problems.
        UsageError: the repository has no such config.
    """
    file, config = request.file, request.config
    unbound: dict[str, tuple[str, ...]] = {}
    if request.repository is not None and checkout is not None:
        file, config = request.repository.load(checkout.folder)
    if config is None:
        raise UsageError("there is no source that the config could be in")
    if isinstance(config, LoadedBuild):
        build, unbound = with_overrides(config.build, request)
        config = replace(config, value=build)
    else:
        build = config
    context = replace(request.context, built_ins=with_commit(request.context.built_ins, checkout))
    compiled = compile_build(config, context, file=file)
    plan = replace(compiled.plan, origin=_origin(request, config, checkout))
    compiled = replace(compiled, plan=plan)
    options = compiled.build.options
    known = {**context.built_ins.values(), **context.substitutions}
    return CompiledRequest(
        compiled=compiled,
        unbound=unbound,
        empty=() if context.triggered else _without_value(build, known),
        refused=refusal(context.grant, options.docker_daemon) if options else "",
    )


def with_overrides(build: Build, request: BuildRequest) -> tuple[Build, dict[str, tuple[str, ...]]]:
    """Return a config's Build with the values of the request, and `CompiledRequest.unbound`.

    Raises:
        ConfigError: the config's bindings take too much work, or make a value too long.

    Source: Cloud Build "Using payload bindings and bash parameter expansions".
    """
    unbound: dict[str, tuple[str, ...]] = {}
    values = build.substitutions
    if request.event is not None and any("$(" in text for text in values.values()):
        from buildrunner.spec.substitutions.payload import bind

        try:
            bound = bind(values, request.event())
        except BadExpression as error:
            raise ConfigError([Problem(str(error), rule="expression")]) from error
        for binding in bound.missing:
            unbound[binding] = tuple(name for name, text in values.items() if binding in text)
        build = replace(build, substitutions=bound.values)
    build = request.overrides.apply(build)
    return replace(build, id=request.build.id, project_id=request.build.project_id), unbound


def _origin(
    request: BuildRequest, config: LoadedBuild | Build, checkout: GitCheckout | None
) -> BuildOrigin:
    """Return the config and the commit of a build, as they were read and fetched."""
    origin = request.origin
    if isinstance(config, LoadedBuild):
        # An absolute path says nothing about the source, but much about the user's machine.
        file = os.path.basename(config.file) if os.path.isabs(config.file) else config.file
        if checkout is not None and ".." in file.split("/"):
            raise SourceError(
                f"the path of the config has a segment ..: {file}",
                hint="name the config by its path from the root of the repository",
            )
        file = clean_path(file) if file else file
        origin = replace(origin, config=file, config_sha256=config.sha256)
    if checkout is None:
        return origin
    found = checkout.resolved
    branch = found.branch and f"refs/heads/{found.branch}"
    tag = found.tag and f"refs/tags/{found.tag}"
    return replace(
        origin,
        repository=found.url,
        commit=found.commit_sha,
        ref=origin.ref if origin.trigger else branch or tag,
        config_in_source=request.repository is not None,
    )


def with_commit(built_ins: BuiltIns, checkout: GitCheckout | None) -> BuiltIns:
    """Return the built-in variables with those of the commit that a trigger has not set."""
    if checkout is None:
        return built_ins
    found = checkout.resolved
    named = built_ins.branch or built_ins.tag
    return replace(
        built_ins,
        commit_sha=found.commit_sha,
        branch=built_ins.branch if named else found.branch,
        tag=built_ins.tag if named else found.tag,
        repo_full_name=built_ins.repo_full_name or found.repo_full_name,
    )


def _without_value(build: Build, known: Mapping[str, str]) -> tuple[str, ...]:
    """Return the repository's variables that arguments and images use and that are empty."""
    names: dict[str, None] = {}
    for text in (
        *build.images,
        *(part for step in build.steps for part in (step.name, *step.args)),
    ):
        names |= dict.fromkeys(names_in(text))
    return tuple(name for name in names if name in _OF_REPOSITORY and not known.get(name))


class PlannedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build that can run.

    Attributes:
        build: the Build to keep: with its id, substitutions made.
        plan: its plan.
        options: how it runs.
        publisher: publishes its packages; None for a plan without any.
        attester: attests what the build publishes; None attests nothing.
        workspace: fills ``/workspace``; None if the request says how.
    """

    build: Build
    plan: BuildPlan
    options: RunOptions = RunOptions()
    publisher: PackagePublisher | None = None
    attester: Attester | None = None
    workspace: Workspace | None = None


Planner = Callable[["GitCheckout | None"], PlannedBuild]
"""Plans a build once its source is known: the fetched commit, or None for any other source. Raises
`ConfigError` or `UsageError` if the build can't be planned."""


class BuildPlace(msgspec.Struct, frozen=True, kw_only=True):
    """The place where a build runs, and the choices that hold for every build there.

    Attributes:
        engine: runs the containers.
        settings: those of the user, or of the build's project on a server.
        options: how builds run there, as far as that does not depend on their plans.
        sandbox: the build's own sandbox; None if it has none.
        policy: where builds may fetch from; None: anywhere.
        config: path of the config on this machine, for advice; empty for none.
        identity_token: returns a token for an audience, of the build that a plan's origin is about;
            None: builds have none.
        attester: returns what attests the published parts of a build and its plan; None: the
            settings decide, and the key is on this machine.
    """

    engine: ContainerEngine
    settings: Settings
    options: RunOptions
    sandbox: OpenSandbox | None = None
    policy: SourcePolicy | None = None
    config: str = ""
    identity_token: Callable[[BuildOrigin, str], str] | None = None
    attester: Callable[[Build, BuildPlan], Attester | None] | None = None


def planned_build(
    request: BuildRequest, build: Build, plan: BuildPlan, place: BuildPlace
) -> PlannedBuild:
    """Return a build with everything that it needs to run in a place.

    The result is the same for the process that begins the build and one that resumes it.

    Args:
        request: the requested build. Its rights limit those of the plan.
        build: the Build to keep.
        plan: its plan.
        place: where it runs.

    Raises:
        ConfigError: a package can't be published from here.
        EngineError: the engine can't list its images.
    """
    context, engine, settings = request.context, place.engine, place.settings
    # The plan of a dead process comes from a note on disk: it grants nothing by itself.
    requested = Privilege(docker_socket=plan.docker_socket, privileged=plan.privileged)
    given = requested.within(context.grant)
    plan = replace(plan, docker_socket=given.docker_socket, privileged=given.privileged)
    if place.sandbox is not None:
        place.sandbox.expect(plan)
    aliases = with_builder_images(settings.image_aliases, plan, engine)
    options = replace(
        place.options,
        image_aliases=aliases,
        public_images=None if context.trusted else _public_images(aliases, place),
        image_advice=image_advice(plan),
        install_command=install_command(plan, place.config),
        home_files=wiring.home_files(plan, settings),
    )
    if place.sandbox is not None:
        options = place.sandbox.options(options)
    publisher, attester = None, None
    if options.push:
        token = partial(place.identity_token, plan.origin) if place.identity_token else None
        attester = (
            place.attester(build, plan)
            if place.attester is not None
            else wiring.attester(build, plan, settings, options.disk_bytes, token)
        )
        publisher = wiring.publisher(plan, settings, engine, place.sandbox, options.disk_bytes)
    return PlannedBuild(
        build=build, plan=plan, options=options, publisher=publisher, attester=attester
    )


def _public_images(aliases: Mapping[str, str], place: BuildPlace) -> PublicImages:
    """Return the images that an untrusted config may name: public ones, and the server's own."""
    from buildrunner.builders.catalog import BUILDERS
    from buildrunner.sources.policy import registry_refusal

    builders = (builder.image for builder in BUILDERS)
    allowed = (*place.settings.untrusted_images, *aliases.values(), *builders)
    return PublicImages(allowed, lambda registry: registry_refusal(place.policy, registry))


def fitted_to_engine(plan: BuildPlan, engine: ContainerEngine) -> tuple[BuildPlan, str]:
    """Return the plan with limits that the engine's machine can give, and a warning if less."""
    if plan.limits == ResourceLimits():
        return plan, ""
    info = engine.info()
    machine = ResourceLimits(cpus=info.cpus or None, memory_bytes=info.memory_bytes or None)
    limits, warning = fitted(plan.limits, machine)
    return replace(plan, limits=limits), warning


def with_builder_images(
    aliases: Mapping[str, str], plan: BuildPlan, engine: Images
) -> dict[str, str]:
    """Return the user's aliases, which always win, and aliases to installed builder images.

    Raises:
        EngineError: the engine can't list its images.
    """
    images = {step.image for step in plan.steps if not serve_image(step.image, aliases).note}
    public = [image for image in images if split_reference(image)[0] in DEFAULT_ALIASES]

    def find_image(name: str) -> str | None:
        found = engine.find_image(name)
        return found.id if found else None

    return {**installed_aliases(public, find_image), **aliases}


def image_advice(plan: BuildPlan) -> dict[str, str]:
    """Return one sentence of advice for each step image that a builder image could serve."""
    images = {step.image for step in plan.steps}
    return {image: said for image in images if (said := advice(image))}


def install_command(plan: BuildPlan, config: str = "") -> str:
    """Return the command that makes every builder image that could serve a step.

    Args:
        plan: the build.
        config: path of its config on this machine; empty where there is none.
    """
    if config:
        replaced = any(stand_in(step.image) and not drop_in(step.image) for step in plan.steps)
        flag = " --stand-ins" if replaced else ""
        return f"buildrunner builders install --for {shlex.quote(config)}{flag}"
    found = (drop_in(step.image) or stand_in(step.image) for step in plan.steps)
    names = dict.fromkeys(builder.name for builder in found if builder)
    return f"buildrunner builders install {' '.join(names)}"
