"""From a config and flags to a build and its plan. Nothing outside is touched."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from buildrunner.build_run.order import origin_of, with_commit
from buildrunner.build_run.request import BuildRequest, TriggerFile
from buildrunner.errors import ConfigError, UsageError
from buildrunner.plan.build_plan import BuildPlan, project_number
from buildrunner.plan.compile import plan_resolved
from buildrunner.plan.privilege import Privilege, refusal
from buildrunner.plan.resolve import PlanContext, resolve
from buildrunner.plan.selection import Selection, select_steps
from buildrunner.problem import Severity
from buildrunner.settings import Settings
from buildrunner.settings.flag_values import parse_duration, parse_map
from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import LoadedBuild
from buildrunner.spec.substitutions.templates import names_in
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.spec.validation.check import check_build

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout

_OF_REPOSITORY = (
    *("REPO_NAME", "REPO_FULL_NAME", "BRANCH_NAME", "TAG_NAME", "REF_NAME"),
    *("COMMIT_SHA", "REVISION_ID", "SHORT_SHA"),
)


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a build before its source is.

    Attributes:
        request: which config, on which source.
        loaded: the config; None where it comes with the source.
        build: the build with what the flags say, as far as it is known.
        built_ins: the built-in variables, but for those that the source decides.
        substitutions: ``--substitutions``.
        settings: settings and flags together.
        grant: what the place of the build lets steps do.
        args: the flags.
    """

    request: BuildRequest
    loaded: LoadedBuild | None
    build: Build
    built_ins: BuiltIns
    substitutions: dict[str, str]
    settings: Settings
    grant: Privilege
    args: argparse.Namespace


def read_submission(
    request: BuildRequest,
    settings: Settings,
    args: argparse.Namespace,
    build_id: str,
    grant: Privilege,
) -> Submission:
    """Read the config that is asked for, and apply the flags. Little is checked yet.

    Args:
        request: which config, on which source.
        settings: settings and flags together.
        args: the flags.
        build_id: the build's id.
        grant: what the place of the build lets steps do.

    Raises:
        ConfigError: the config can't be read as one, or holds a password of a Git repository.
        UsageError: the file can't be read, or a flag has no such value.
    """
    built_ins = BuiltIns(
        project_id=settings.project_id,
        project_number=project_number(settings.project_id),
        build_id=build_id,
        location=args.region or "global",
    )
    substitutions = parse_map("--substitutions", args.substitutions)
    loaded = None
    if not request.in_repository:
        file, loaded = _load(request, args)
        request = replace(request, config=file)
    if request.triggered is not None:
        built_ins = replace(built_ins, **request.triggered.facts)
        substitutions = {**request.triggered.substitutions, **substitutions}
    from buildrunner.spec.model.build import Build

    build = _overridden(loaded.build if loaded else Build(), request, args)
    if build.source is not None or build.dependencies:
        _refuse_passwords(build)
    return Submission(
        request=request,
        loaded=loaded,
        build=replace(build, id=built_ins.build_id, project_id=built_ins.project_id),
        built_ins=built_ins,
        substitutions=substitutions,
        settings=settings,
        grant=grant,
        args=args,
    )


def _refuse_passwords(build: Build) -> None:
    """Refuse a password in a repository's address before the source is fetched, or kept."""
    from buildrunner.spec.model.git_address import build_problems
    from buildrunner.spec.writing import encode_message

    problems = build_problems(encode_message(build))
    if problems:
        raise ConfigError(problems)


def compile_build(
    submission: Submission, checkout: GitCheckout | None = None
) -> tuple[Build, BuildPlan, list[str]]:
    """Check the build and plan it.

    Args:
        submission: what is asked for.
        checkout: its fetched source; None for any other kind.

    Returns:
        The build to keep (with its id, substitutions made, with the steps that run), its plan, and
        warnings about the config.

    Raises:
        ConfigError: the config or the selection of steps is wrong; holds all problems.
        UsageError: the repository has no such config.
    """
    args = submission.args
    file, loaded, build = submission.request.config, submission.loaded, submission.build
    built_ins = submission.built_ins
    if checkout is not None:
        built_ins = with_commit(built_ins, checkout)
    if loaded is None:
        file, loaded = _load_from(checkout, submission)
        build = replace(
            _overridden(loaded.build, submission.request, args), source=submission.build.source
        )
    values = submission.request.triggered
    unbound: tuple[str, ...] = ()
    if values is not None:
        from buildrunner.build_run.request import without_event

        _, unbound = without_event(loaded.build.substitutions, submission.substitutions)
    problems = check_build(
        replace(loaded, value=build),
        file=file,
        substitutions=submission.substitutions,
        built_ins=built_ins,
        triggered=values is not None,
    )
    errors = [p for p in problems if p.severity is Severity.ERROR or args.strict]
    if errors:
        raise ConfigError(problems)
    context = PlanContext(
        built_ins=built_ins,
        substitutions=submission.substitutions,
        triggered=values is not None,
        source_dir=values.source_dir if values else "",
        grant=submission.grant,
    )
    resolved = resolve(build, context=context)
    full_plan = plan_resolved(resolved, context=context)
    origin = origin_of(loaded, checkout, config_in_source=submission.loaded is None)
    full_plan = replace(full_plan, origin=origin)
    plan = select_steps(full_plan, _selection(args))
    warnings = [*unbound, *(problem.text() for problem in problems)]
    if values is None:
        known = {**built_ins.values(), **submission.substitutions}
        if empty := _without_value(build, known):
            names = ", ".join(f"${name}" for name in empty)
            warnings.append(
                f"{names}: no value in a build without a trigger; --triggered takes it from the "
                "repository"
            )
    options = resolved.build.options
    if options and (refused := refusal(submission.grant, options.docker_daemon)):
        warnings.append(f"{refused}; --privileged grants it")
    return _selected(resolved.build, full_plan, plan), plan, warnings


def _without_value(build: Build, known: Mapping[str, str]) -> list[str]:
    """The variables of the repository that arguments and images use and that are empty."""
    names: dict[str, None] = {}
    for text in (
        *build.images,
        *(part for step in build.steps for part in (step.name, *step.args)),
    ):
        names |= dict.fromkeys(names_in(text))
    return [name for name in names if name in _OF_REPOSITORY and not known.get(name)]


def _load_from(checkout: GitCheckout | None, submission: Submission) -> tuple[str, LoadedBuild]:
    """The config that came with the source, and its path there."""
    from buildrunner.build_run.request import CONFIG_NAMES
    from buildrunner.sources.git.files import read_file
    from buildrunner.spec.reading.decode import load_build

    if checkout is None:
        raise UsageError("there is no source that the config could be in")
    if submission.request.trigger is not None:
        return _triggers_config(checkout.folder, submission.request.trigger)
    named = submission.request.config
    folder = submission.args.git_source_dir
    places = (folder, "") if folder else ("",)
    names = [named] if named else [os.path.join(at, name) for at in places for name in CONFIG_NAMES]
    for name in names:
        text = read_file(checkout.folder, name)
        if text is not None:
            _refuse_no_cache(submission.args)
            return name, load_build(text, file=name)
    raise UsageError(
        f"there is no {named or CONFIG_NAMES[0]} in the repository, and none in this folder",
        hint="name a config with --config FILE",
    )


def _triggers_config(folder: str, found: TriggerFile) -> tuple[str, LoadedBuild]:
    """The config that a trigger names, from the source that it is built on."""
    from buildrunner.build_run.requested import load_repository_config
    from buildrunner.triggers.labels import AUTODETECT

    return load_repository_config(folder, found.config or AUTODETECT)


def _load(request: BuildRequest, args: argparse.Namespace) -> tuple[str, LoadedBuild]:
    """The config of this machine, and its path as messages name it."""
    from buildrunner.spec.reading.decode import LoadedBuild, load_build

    if request.tag:
        from buildrunner.build_run.dockerfile import dockerfile_build

        build = dockerfile_build(request.tag, cache=not args.no_cache)
        return "", LoadedBuild(value=build, problems=())
    if request.trigger is not None:
        _refuse_no_cache(args)
        inline = request.trigger.build
        if inline is not None:
            own = replace(inline.value, source=None) if _has_source(request) else inline.value
            return request.config, replace(inline, value=own)
        return _triggers_config(request.folder or ".", request.trigger)
    try:
        with open(request.config, "rb") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(f"{request.config} can't be read: {error.strerror}") from error
    _refuse_no_cache(args)
    return request.config, load_build(text, file=request.config, allow_source=args.no_source)


def _has_source(request: BuildRequest) -> bool:
    """Whether the request names a source, in place of what the build itself names."""
    return request.folder is not None or bool(request.archive or request.object_url or request.git)


def _refuse_no_cache(args: argparse.Namespace) -> None:
    if args.no_cache:
        raise UsageError("--no-cache goes with --tag; a config says it in the args of its step")


def _overridden(build: Build, request: BuildRequest, args: argparse.Namespace) -> Build:
    """The build with what the flags say in place of what the config says."""
    if request.triggered is not None:
        build = request.triggered.apply(build)
    changes: dict[str, Any] = {}
    if args.timeout:
        from datetime import timedelta

        changes["timeout"] = timedelta(seconds=parse_duration("--timeout", args.timeout))
    if args.service_account:
        changes["service_account"] = args.service_account
    if args.gcs_log_dir:
        changes["logs_bucket"] = args.gcs_log_dir
    if request.object_url:
        from buildrunner.build_run.request import source_of

        changes["source"] = source_of(request.object_url)
    if request.git is not None:
        changes["source"] = request.git
    options = _overridden_options(args)
    if options:
        from buildrunner.spec.model.build import BuildOptions

        changes["options"] = replace(build.options or BuildOptions(), **options)
    return replace(build, **changes) if changes else build


def _overridden_options(args: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if args.machine_type:
        from buildrunner.spec.model.build import MachineType

        name = args.machine_type.upper().replace("-", "_")
        if name not in MachineType.__members__:
            known = ", ".join(m.name.lower().replace("_", "-") for m in MachineType)
            raise UsageError(f"there is no machine type {args.machine_type}", hint=known)
        changes["machine_type"] = MachineType[name]
    if args.disk_size:
        digits = args.disk_size.upper().removesuffix("GB")
        if not digits.isdecimal():
            raise UsageError(f"--disk-size takes e.g. 200 or 200GB, not {args.disk_size}")
        changes["disk_size_gb"] = int(digits)
    return changes


def _selected(build: Build, full_plan: BuildPlan, plan: BuildPlan) -> Build:
    """The build that is kept: with its id, and with the steps that run."""
    steps = tuple(
        step
        for step, step_plan in zip(build.steps, full_plan.steps, strict=True)
        if step_plan.label not in plan.left_out
    )
    return replace(build, id=plan.build_id, project_id=plan.project_id, steps=steps)


def _selection(args: argparse.Namespace) -> Selection:
    return Selection(
        steps=tuple(args.step),
        first=args.from_ or "",
        last=args.until or "",
        skip=tuple(args.skip),
    )
