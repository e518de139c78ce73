"""``buildrunner submit``: from a command line to a finished build.

Read the config, check it, compile it (all of it before anything is touched), then run the plan or
show it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.cli import submit_flags
from buildrunner.cli.build_id import new_build_id, project_number
from buildrunner.cli.build_request import find_request
from buildrunner.cli.flags import parse_duration, parse_map
from buildrunner.errors import ConfigError, UsageError
from buildrunner.plan.compile import plan_resolved
from buildrunner.plan.resolve import PlanContext, resolve
from buildrunner.plan.selection import Selection, select_steps
from buildrunner.settings import load_settings
from buildrunner.spec.problem import Severity
from buildrunner.spec.validate import check_build
from buildrunner.spec.variables import BuiltIns

if TYPE_CHECKING:
    import argparse

    from buildrunner.cli.build_request import BuildRequest
    from buildrunner.plan.build_plan import BuildPlan
    from buildrunner.settings import Settings
    from buildrunner.spec.decode import LoadedBuild
    from buildrunner.spec.model import Build


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``submit``."""
    submit_flags.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Build, or show the plan.

    Returns:
        0 success, 1 build failed, 3 infrastructure, 4 timeout, 130 interrupted.

    Raises:
        ConfigError: the config, a settings file or a selection of steps is wrong.
        UsageError: the flags ask for something impossible.
    """
    warnings = submit_flags.check_gcloud_flags(args)
    request = find_request(args)
    if request.note:
        warnings.append(request.note)
    settings = _effective_settings(load_settings(request.folder or "."), args)
    build, full_plan = _compile(request, settings, args, warnings)
    plan = select_steps(full_plan, _selection(args))
    for text in warnings:
        sys.stderr.write(f"warning: {text}\n")
    if args.dry_run:
        from buildrunner.cli.dry_run import show_plan

        return show_plan(plan, request, settings, args.format)
    engine = wiring.container_engine()
    pause_image = wiring.pause_image(engine)  # the first question: does the engine answer at all
    guardian = wiring.guardian(engine, plan.build_id)
    try:
        # Imported only now: the engine makes the network meanwhile.
        from buildrunner.cli.builder_aliases import with_builder_images
        from buildrunner.cli.submit_run import SubmittedBuild, run_submitted

        aliases = with_builder_images(settings.image_aliases, plan, engine)
        submitted = SubmittedBuild(
            build=_selected(build, full_plan, plan),
            plan=plan,
            request=request,
            settings=replace(settings, image_aliases=aliases),
            pause_image=pause_image,
            ignore_file=args.ignore_file,
            push=not args.no_push,
            quiet=args.quiet,
            as_json=args.output == "json",
            command=f"buildrunner submit {args.subject or ''}".rstrip(),
        )
        return run_submitted(submitted, engine)
    finally:
        guardian.finish(wait=False)
        engine.close()


def _selected(build: Build, full_plan: BuildPlan, plan: BuildPlan) -> Build:
    """The build that is kept: with its id, and with the steps that run."""
    steps = tuple(
        step
        for step, step_plan in zip(build.steps, full_plan.steps, strict=True)
        if step_plan.label not in plan.left_out
    )
    return replace(build, id=plan.build_id, project_id=plan.project_id, steps=steps)


def _effective_settings(settings: Settings, args: argparse.Namespace) -> Settings:
    from buildrunner.secrets.mapped import parse_mapping

    aliases = parse_map("--image-alias", args.image_alias)
    secrets = parse_mapping(parse_map("--secret", args.secret)) if args.secret else {}
    return replace(
        settings,
        project_id=args.project or settings.project_id,
        image_aliases={**settings.image_aliases, **aliases},
        docker_socket=settings.docker_socket and not args.no_docker_socket,
        privileged=settings.privileged or args.privileged,
        secrets={**settings.secrets, **secrets},
    )


def _compile(
    request: BuildRequest, settings: Settings, args: argparse.Namespace, warnings: list[str]
) -> tuple[Build, BuildPlan]:
    built_ins = BuiltIns(
        project_id=settings.project_id,
        project_number=project_number(settings.project_id),
        build_id=new_build_id(),
        location=args.region or "global",
    )
    substitutions = parse_map("--substitutions", args.substitutions)
    loaded = _load(request, args)
    overridden = _overridden(loaded.build, args)
    problems = check_build(
        replace(loaded, value=overridden),
        file=request.config,
        substitutions=substitutions,
        built_ins=built_ins,
    )
    errors = [p for p in problems if p.severity is Severity.ERROR or args.strict]
    if errors:
        raise ConfigError(problems)
    warnings.extend(problem.text() for problem in problems)
    context = PlanContext(
        built_ins=built_ins,
        substitutions=substitutions,
        docker_socket=settings.docker_socket,
        privileged=settings.privileged,
    )
    resolved = resolve(overridden, context=context)
    return resolved.build, plan_resolved(resolved, context=context)


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


def _overridden(build: Build, args: argparse.Namespace) -> Build:
    """The build with what the flags say in place of what the config says."""
    changes: dict[str, Any] = {}
    if args.timeout:
        from datetime import timedelta

        changes["timeout"] = timedelta(seconds=parse_duration("--timeout", args.timeout))
    if args.service_account:
        changes["service_account"] = args.service_account
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


def _selection(args: argparse.Namespace) -> Selection:
    return Selection(
        steps=tuple(args.step),
        first=args.from_ or "",
        last=args.until or "",
        skip=tuple(args.skip),
    )
