"""Turns the flags and the config of ``submit`` into a build request, without side effects."""

from __future__ import annotations

import argparse
import os
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from buildrunner.build_run.compile import CompiledRequest, compile_request, with_overrides
from buildrunner.build_run.request import (
    CONFIG_NAMES,
    BuildRequest,
    LocalSource,
    Overrides,
    RepositoryConfig,
    dockerfile_build,
    load_trigger_config,
)
from buildrunner.cli.arguments import parse_duration, parse_map
from buildrunner.cli.submit.build_input import (
    BuildInput,
    TriggerValues,
    no_event,
    source_of,
    unbound_warnings,
)
from buildrunner.errors import ConfigError, UsageError
from buildrunner.plan.build_plan import project_number
from buildrunner.plan.privilege import Privilege
from buildrunner.plan.resolve import PlanContext
from buildrunner.plan.selection import Selection
from buildrunner.settings import Settings
from buildrunner.spec.model.build import Build, MachineType
from buildrunner.spec.reading.decode import LoadedBuild, load_build
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.triggers.labels import AUTODETECT

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A build request, and the flags that say how it runs here and how it is shown.

    Attributes:
        request: the requested build.
        input: the config and source on the command line.
        settings: settings and flags together.
        args: the flags.
        warnings: about the command line, shown before those about the config.
    """

    request: BuildRequest
    input: BuildInput
    settings: Settings
    args: argparse.Namespace
    warnings: tuple[str, ...] = ()


def read_submission(
    input_: BuildInput,
    settings: Settings,
    args: argparse.Namespace,
    build_id: str,
    grant: Privilege,
) -> Submission:
    """Read the config, and apply the flags. Little is checked yet.

    Args:
        input_: the config and source on the command line.
        settings: settings and flags together.
        args: the flags.
        build_id: the build's id.
        grant: the rights that steps can get.

    Raises:
        ConfigError: the config is invalid, or holds a password of a Git repository.
        UsageError: the file can't be read, or a flag has an invalid value.
    """
    triggered = input_.triggered or TriggerValues()
    context = PlanContext(
        built_ins=replace(
            BuiltIns(
                project_id=settings.project_id,
                project_number=project_number(settings.project_id),
                build_id=build_id,
                location=args.region or "global",
            ),
            **triggered.facts,
        ),
        substitutions={
            **triggered.substitutions,
            **parse_map("--substitutions", args.substitutions),
        },
        triggered=input_.triggered is not None,
        source_dir=triggered.source_dir,
        grant=grant,
        selection=_selection(args),
        strict=args.strict,
    )
    if args.no_cache and not input_.tag:
        raise UsageError("--no-cache goes with --tag; a config says it in the args of its step")
    config = None
    if not input_.in_repository:
        file, config = _load(input_, args)
        input_ = replace(input_, config=file)
    request = BuildRequest(
        build=Build(id=build_id, project_id=settings.project_id),
        config=config,
        file=input_.config,
        repository=_repository_config(input_, args) if input_.in_repository else None,
        overrides=_overrides(input_, args),
        event=no_event if input_.triggered is not None else None,
        context=context,
        local=_local_source(input_, args),
    )
    build, _ = with_overrides(config.build if config else Build(), request)
    if build.source is not None or build.dependencies:
        _refuse_passwords(build)
    return Submission(
        request=replace(request, build=build), input=input_, settings=settings, args=args
    )


def compile_submission(
    submission: Submission, checkout: GitCheckout | None = None
) -> tuple[CompiledRequest, list[str]]:
    """Check the build and plan it. Returns it with warnings about its config.

    Args:
        submission: the requested build.
        checkout: its fetched repository; None for any other source.

    Raises:
        ConfigError: the config or the selection of steps is wrong; holds all problems.
        UsageError: the repository has no such config.
    """
    request = submission.request
    made = compile_request(request, checkout)
    warnings = [
        *unbound_warnings(made.unbound, request.context.substitutions),
        *(problem.text() for problem in made.compiled.problems),
    ]
    if made.empty:
        names = ", ".join(f"${name}" for name in made.empty)
        warnings.append(
            f"{names}: no value in a build without a trigger; --triggered takes it from the "
            "repository"
        )
    if made.refused:
        warnings.append(f"{made.refused}; --privileged grants it")
    return made, warnings


def _local_source(input_: BuildInput, args: argparse.Namespace) -> LocalSource | None:
    if input_.folder is None and not input_.archive:
        return None
    return LocalSource(folder=input_.folder, archive=input_.archive, ignore_file=args.ignore_file)


def _refuse_passwords(build: Build) -> None:
    """Refuse a password in a repository's address before the source is fetched, or kept."""
    from buildrunner.spec.model.git_address import build_problems
    from buildrunner.spec.writing import encode_message

    problems = build_problems(encode_message(build))
    if problems:
        raise ConfigError(problems)


def _repository_config(input_: BuildInput, args: argparse.Namespace) -> RepositoryConfig:
    if input_.trigger is not None:
        return RepositoryConfig(names=(input_.trigger.config or AUTODETECT,), of_trigger=True)
    if input_.config:
        return RepositoryConfig(names=(input_.config,), of_trigger=False)
    places = (args.git_source_dir, "") if args.git_source_dir else ("",)
    names = tuple(os.path.join(place, name) for place in places for name in CONFIG_NAMES)
    return RepositoryConfig(names=names, of_trigger=False)


def _load(input_: BuildInput, args: argparse.Namespace) -> tuple[str, LoadedBuild]:
    """Return the config of this machine, and its path for messages."""
    if input_.tag:
        build = dockerfile_build(input_.tag, cache=not args.no_cache)
        return "", LoadedBuild(value=build, problems=())
    if input_.trigger is not None:
        inline = input_.trigger.build
        if inline is None:
            return load_trigger_config(input_.folder or ".", input_.trigger.config or AUTODETECT)
        own = replace(inline.value, source=None) if _has_source(input_) else inline.value
        return input_.config, replace(inline, value=own)
    try:
        with open(input_.config, "rb") as file:
            text = file.read()
    except OSError as error:
        raise UsageError(f"{input_.config} can't be read: {error.strerror}") from error
    return input_.config, load_build(text, file=input_.config, allow_source=args.no_source)


def _has_source(input_: BuildInput) -> bool:
    """Return whether the command line names a source that replaces the build's own."""
    return input_.folder is not None or bool(input_.archive or input_.object_url or input_.git)


def _overrides(input_: BuildInput, args: argparse.Namespace) -> Overrides:
    triggered = input_.triggered or TriggerValues()
    source = source_of(input_.object_url) if input_.object_url else None
    return Overrides(
        source=input_.git or source,
        timeout=timedelta(seconds=parse_duration("--timeout", args.timeout))
        if args.timeout
        else None,
        service_account=args.service_account,
        default_service_account=triggered.service_account,
        logs_bucket=args.gcs_log_dir,
        machine_type=_machine_type(args.machine_type),
        disk_size_gb=_disk_size_gb(args.disk_size),
        pool=args.worker_pool,
        tags=triggered.tags,
    )


def _machine_type(flag: str) -> MachineType | None:
    if not flag:
        return None
    name = flag.upper().replace("-", "_")
    if name not in MachineType.__members__:
        known = ", ".join(m.name.lower().replace("_", "-") for m in MachineType)
        raise UsageError(f"there is no machine type {flag}", hint=known)
    return MachineType[name]


def _disk_size_gb(flag: str) -> int | None:
    if not flag:
        return None
    digits = flag.upper().removesuffix("GB")
    if not digits.isdecimal():
        raise UsageError(f"--disk-size takes e.g. 200 or 200GB, not {flag}")
    return int(digits)


def _selection(args: argparse.Namespace) -> Selection:
    return Selection(
        steps=tuple(args.step),
        first=args.from_ or "",
        last=args.until or "",
        skip=tuple(args.skip),
    )
