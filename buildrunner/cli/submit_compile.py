"""From a config and flags to a build and its plan. Nothing outside is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from buildrunner.cli.build_id import new_build_id, project_number
from buildrunner.cli.flags import parse_duration, parse_map
from buildrunner.errors import ConfigError, UsageError
from buildrunner.plan.compile import plan_resolved
from buildrunner.plan.resolve import PlanContext, resolve
from buildrunner.plan.selection import Selection, select_steps
from buildrunner.spec.problem import Problem, Severity
from buildrunner.spec.validate import check_build
from buildrunner.spec.variables import BuiltIns

if TYPE_CHECKING:
    import argparse

    from buildrunner.cli.build_request import BuildRequest
    from buildrunner.plan.build_plan import BuildPlan
    from buildrunner.settings import Settings
    from buildrunner.spec.decode import LoadedBuild
    from buildrunner.spec.model import Build


def compile_build(
    request: BuildRequest, settings: Settings, args: argparse.Namespace
) -> tuple[Build, BuildPlan, list[str]]:
    """Read the config that is asked for, apply the flags, check it, plan it.

    Returns:
        The build to keep (with its id, substitutions made, with the steps that run), its plan, and
        warnings about the config.

    Raises:
        ConfigError: the config or the selection of steps is wrong; holds all problems.
        UsageError: the file can't be read, or a flag has no such value.
    """
    built_ins = BuiltIns(
        project_id=settings.project_id,
        project_number=project_number(settings.project_id),
        build_id=new_build_id(),
        location=args.region or "global",
    )
    substitutions = parse_map("--substitutions", args.substitutions)
    loaded = _load(request, args)
    overridden = _overridden(loaded.build, request, args)
    problems = check_build(
        replace(loaded, value=overridden),
        file=request.config,
        substitutions=substitutions,
        built_ins=built_ins,
    )
    problems += _unread_source(loaded, request)
    errors = [p for p in problems if p.severity is Severity.ERROR or args.strict]
    if errors:
        raise ConfigError(problems)
    context = PlanContext(
        built_ins=built_ins,
        substitutions=substitutions,
        docker_socket=settings.docker_socket,
        privileged=settings.privileged,
    )
    resolved = resolve(overridden, context=context)
    full_plan = plan_resolved(resolved, context=context)
    plan = select_steps(full_plan, _selection(args))
    warnings = [problem.text() for problem in problems]
    return _selected(resolved.build, full_plan, plan), plan, warnings


def _load(request: BuildRequest, args: argparse.Namespace) -> LoadedBuild:
    from buildrunner.spec.decode import LoadedBuild, load_build

    if request.tag:
        from buildrunner.cli.dockerfile_build import dockerfile_build

        build = dockerfile_build(request.tag, cache=not args.no_cache)
        return LoadedBuild(value=build, problems=())
    try:
        with open(request.config, "rb") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(f"{request.config} can't be read: {error.strerror}") from error
    loaded = load_build(text, file=request.config, allow_source=args.no_source)
    if args.no_cache:
        raise UsageError("--no-cache goes with --tag; a config says it in the args of its step")
    return loaded


def _unread_source(loaded: LoadedBuild, request: BuildRequest) -> list[Problem]:
    """A source that the config names: the workspace would be empty, which is not what it means."""
    source = loaded.build.source
    if source is None or source.storage_source or source.storage_source_manifest:
        return []
    line, column = loaded.locate("source")
    message = "a source in the config is not fetched by a local build yet"
    hint = "fetch it, take it out of the config, and submit the folder"
    return [Problem(message, "source", request.config, line, column, hint, "source-not-fetched")]


def _overridden(build: Build, request: BuildRequest, args: argparse.Namespace) -> Build:
    """The build with what the flags say in place of what the config says."""
    changes: dict[str, Any] = {}
    if args.timeout:
        from datetime import timedelta

        changes["timeout"] = timedelta(seconds=parse_duration("--timeout", args.timeout))
    if args.service_account:
        changes["service_account"] = args.service_account
    if args.gcs_log_dir:
        changes["logs_bucket"] = args.gcs_log_dir
    if request.object_url:
        from buildrunner.cli.remote_source import source_of

        changes["source"] = source_of(request.object_url)
    options = _overridden_options(args)
    if options:
        from buildrunner.spec.model import BuildOptions

        changes["options"] = replace(build.options or BuildOptions(), **options)
    return replace(build, **changes) if changes else build


def _overridden_options(args: argparse.Namespace) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if args.machine_type:
        from buildrunner.spec.model import MachineType

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
