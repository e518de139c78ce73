"""``buildrunner submit``: from a command line to a finished build.

Read the config, check it, compile it (all of it before anything but the network is made), then run
the plan or show it.
"""

from __future__ import annotations

import argparse
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.build_run.compile import Submission, compile_build
from buildrunner.build_run.head_start import HeadStart, NestedHeadStart
from buildrunner.build_run.order import PlannedBuild
from buildrunner.build_run.request import BuildRequest, find_request
from buildrunner.cli.server.choice import chosen_server
from buildrunner.cli.submit import flags as submit_flags
from buildrunner.cli.submit.run import SubmittedBuild
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.errors import UsageError
from buildrunner.metadata import MetadataServer
from buildrunner.plan.build_plan import BuildPlan, new_build_id
from buildrunner.settings import Settings
from buildrunner.settings.flag_values import parse_map
from buildrunner.spec.model.build import Build
from buildrunner.spec.model.source import Source

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout


_STEP_FLAGS = frozenset({"--step", "--from", "--until", "--skip"})


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
    server = None if args.dry_run else chosen_server(args)
    warnings = submit_flags.check_gcloud_flags(args, remote=server is not None)
    request = find_request(args)
    if request.note:
        warnings.append(request.note)
    if args.triggered or args.trigger:
        from buildrunner.build_run.request import ignore_file_of, trigger_values

        given = parse_map("--substitutions", args.substitutions)
        request = replace(request, triggered=trigger_values(request, request.trigger, given))
        warnings += request.triggered.warnings if request.triggered else ()
        args.ignore_file = ignore_file_of(request, args)
    settings = _effective_settings(request, args)
    if settings.secrets and request.folder is not None:
        from buildrunner.cli.submit.exposed_secrets import exposed_secrets

        warnings += exposed_secrets(request.folder, args.ignore_file, settings.secrets)
    if server is not None:
        from buildrunner.cli.submit.remote import submit_remote

        _warn(warnings)
        return submit_remote(server, request, settings, args)
    build_id = new_build_id()
    if args.dry_run:
        return _run(request, settings, args, warnings, build_id, None)
    with _head_start(build_id, settings, args) as head_start:
        return _run(request, settings, args, warnings, build_id, head_start)


def _head_start(build_id: str, settings: Settings, args: argparse.Namespace) -> HeadStart:
    if args.sandbox == "host":
        return HeadStart(build_id, metadata=args.metadata_server)
    if args.metadata_server:
        raise UsageError(
            "--metadata-server can't be had with --sandbox nested",
            hint="steps in a sandbox can't reach this machine: use --sandbox host",
        )
    return NestedHeadStart(build_id, settings)


def _run(
    request: BuildRequest,
    settings: Settings,
    args: argparse.Namespace,
    warnings: list[str],
    build_id: str,
    head_start: HeadStart | None,
) -> int:
    """Read and check the config, then run the build, or (without a head start) show the plan."""
    # Imported here and below, not at the top: `submit --help` needs none of it, and the engine
    # makes the network meanwhile.
    from buildrunner.build_run.compile import compile_build, read_submission
    from buildrunner.plan.compile import git_source_of
    from buildrunner.plan.privilege import granted

    if head_start is not None and head_start.waits_for_config:
        _check_config(request, settings, args, build_id)
        _open_place(head_start)
    place = head_start.place if head_start else None
    grant = granted(
        docker_socket=settings.docker_socket,
        privileged=settings.privileged,
        privileged_place=place is not None and place.privileged_steps,
    )
    submission = read_submission(request, settings, args, build_id, grant)
    if git_source_of(submission.build) is not None:
        _warn(warnings)
        return run_on_git(submission, head_start)
    settings, request = submission.settings, submission.request
    build, plan, found = compile_build(submission)
    _warn([*warnings, *found])
    if head_start is None:
        from buildrunner.cli.submit.dry_run import show_plan

        return show_plan(plan, request, settings, args.format)
    engine = head_start.engine()
    pause_image = wiring.pause_image(engine)  # the first question: does the engine answer at all
    plan = fitted(plan, engine)
    namespaces = None
    if not args.metadata_server:  # which may have to give the network other addresses first
        namespaces = head_start.open_namespaces(plan, pause_image)
    if args.gcs_source_staging_dir:
        request, build = _staged(request, build, settings, args)
    metadata = metadata_server(engine, build, args) if args.metadata_server else None
    try:
        from buildrunner.build_run.builder_aliases import with_builder_images
        from buildrunner.cli.submit.run import run_submitted

        aliases = with_builder_images(settings.image_aliases, plan, engine)
        submitted = submitted_build(
            build, request, replace(settings, image_aliases=aliases), args, pause_image
        )
        submitted = replace(
            submitted,
            place=head_start.place,
            git_folder=head_start.git_folder() if args.no_git_cache else "",
        )
        return run_submitted(submitted, plan, engine, namespaces)
    finally:
        if metadata:
            metadata.close()


def _check_config(
    request: BuildRequest, settings: Settings, args: argparse.Namespace, build_id: str
) -> None:
    """Check the config ahead of work that takes a minute; not one that needs its Git source.

    Raises:
        ConfigError, UsageError: as `run`.
    """
    from buildrunner.build_run.compile import compile_build, read_submission
    from buildrunner.plan.compile import git_source_of
    from buildrunner.plan.privilege import NO_PRIVILEGE

    submission = read_submission(request, settings, args, build_id, NO_PRIVILEGE)
    if git_source_of(submission.build) is None:
        compile_build(submission)


def _open_place(head_start: HeadStart) -> None:
    """Open the first nested sandbox of this machine: the image of its engine is made now."""
    from buildrunner.builders.installer import with_parents
    from buildrunner.cli.terminal.installation_progress import InstallationProgress

    sys.stderr.write(
        "Making the image buildrunner/engine for nested sandboxes. This happens once on this "
        "machine and takes 20 to 60 s.\n"
    )
    head_start.open_place(InstallationProgress(with_parents(["engine"]), output=sys.stderr))


def _staged(
    request: BuildRequest, build: Build, settings: Settings, args: argparse.Namespace
) -> tuple[BuildRequest, Build]:
    """The request and build for the uploaded source; the same where there is none to upload."""
    if request.folder is None and not request.archive:
        return request, build
    from buildrunner.cli.submit.remote import staged

    build = staged(
        build,
        request,
        args.gcs_source_staging_dir,
        wiring.stores(settings),
        ignore_file=args.ignore_file,
    )
    return replace(request, folder=None, archive=""), build


def metadata_server(
    engine: ContainerEngine, build: Build, args: argparse.Namespace
) -> MetadataServer:
    """Start what ``--metadata-server`` asks for.

    Raises:
        EngineError: the network or the address is not to be had.
        SecretError: the credentials are not.
    """
    from buildrunner.metadata import ProjectFacts
    from buildrunner.plan.build_plan import project_number

    facts = ProjectFacts(
        project_id=build.project_id,
        project_number=project_number(build.project_id),
        # Hosted it is a resource name; the metadata server tells the address in it.
        service_account=build.service_account.rpartition("/")[2],
        location=args.region or "global",
    )
    return wiring.metadata_server(engine, build.id, facts, key_file=args.metadata_credentials)


def fitted(plan: BuildPlan, engine: ContainerEngine) -> BuildPlan:
    """The plan with limits that the engine's machine can give; says so when that is less."""
    from buildrunner.plan.build_plan import ResourceLimits
    from buildrunner.plan.compile import fitted

    if plan.limits == ResourceLimits():
        return plan

    info = engine.info()
    machine = ResourceLimits(cpus=info.cpus or None, memory_bytes=info.memory_bytes or None)
    limits, warning = fitted(plan.limits, machine)
    if warning:
        sys.stderr.write(f"warning: {warning}\n")
    return replace(plan, limits=limits)


def submitted_build(
    build: Build,
    request: BuildRequest,
    settings: Settings,
    args: argparse.Namespace,
    pause_image: str | None,
) -> SubmittedBuild:
    """What the flags say about running and showing a build."""
    from buildrunner.cli.submit.run import SubmittedBuild

    write_workspace = ""
    if args.write_workspace:
        from buildrunner.cli.submit.exposed_secrets import prepare_folder

        write_workspace = prepare_folder(args.write_workspace, request.folder, args.ignore_file)
    return SubmittedBuild(
        build=build,
        request=request,
        settings=settings,
        pause_image=pause_image,
        extra_hosts=wiring.metadata_hosts() if args.metadata_server else (),
        ignore_file=args.ignore_file,
        push=not args.no_push,
        quiet=args.quiet,
        as_json=args.output == "json",
        command=_command_again(sys.argv),
        write_workspace=write_workspace,
    )


def _warn(texts: list[str]) -> None:
    for text in texts:
        sys.stderr.write(f"warning: {text}\n")


def _command_again(argv: list[str]) -> str:
    """What to type to submit the same build again, without the choice of steps."""
    import re
    import shlex

    kept: list[str] = []
    arguments = iter(argv[1:])
    for argument in arguments:
        flag, equals, _ = argument.partition("=")
        if flag in _STEP_FLAGS:
            if not equals:
                next(arguments, None)
        else:
            kept.append(argument)
    # A password in a URL is for the source's host only.
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1@", shlex.join(["buildrunner", *kept]))


def _effective_settings(request: BuildRequest, args: argparse.Namespace) -> Settings:
    """The settings that hold in the source folder, with the flags in their place."""
    from buildrunner.cli.folder_settings import folder_settings

    settings = folder_settings(request.folder or ".")
    settings = settings.of_project(args.project or settings.project_id)
    aliases = parse_map("--image-alias", args.image_alias)
    folders = parse_map("--storage", args.storage)
    docker_socket = settings.docker_socket and not args.no_docker_socket
    # Steps with the socket of this machine's engine can write to any folder in any case. The socket
    # in a nested sandbox leads to the sandbox only.
    if docker_socket and args.sandbox == "host":
        folders = {"file:///": "file:///", **folders}
    secrets = {}
    if args.secret:
        from buildrunner.secrets.provider import parse_mapping

        secrets = parse_mapping(parse_map("--secret", args.secret))
    return replace(
        settings,
        project_id=args.project or settings.project_id,
        image_aliases={**settings.image_aliases, **aliases},
        docker_socket=docker_socket,
        privileged=args.privileged or settings.privileged,
        secrets={**settings.secrets, **secrets},
        storage_folders={**settings.storage_folders, **folders},
        git=replace(
            settings.git,
            submodules=settings.git.submodules or args.git_submodules,
            lfs=settings.git.lfs or args.git_lfs,
        ),
        google_secrets=settings.google_secrets or args.google_secrets,
        share_registry_logins=settings.share_registry_logins or args.share_registry_logins,
    )


def run_on_git(submission: Submission, head_start: HeadStart | None) -> int:
    """Build, or (without a head start) show the plan. See `submit.run`.

    Raises:
        ConfigError: the config or a selection of steps is wrong.
        UsageError: there is no such config.
        SourceError: with ``--dry-run``, the source can't be fetched.
    """
    from contextlib import ExitStack

    from buildrunner.cli.submit.run import run_unplanned

    if head_start is None:
        return _show_plan(submission)
    args = submission.args
    if args.gcs_source_staging_dir:
        sys.stderr.write("warning: --gcs-source-staging-dir has no effect on a Git source\n")
    engine = head_start.engine()
    pause_image = wiring.pause_image(engine)
    with ExitStack() as stack:
        submitted = submitted_build(
            submission.build, submission.request, submission.settings, args, pause_image
        )
        submitted = replace(
            submitted,
            place=head_start.place,
            git_folder=head_start.git_folder() if args.no_git_cache else "",
        )

        def plan(checkout: GitCheckout | None) -> PlannedBuild:
            return _planned(submission, submitted, checkout, engine, stack)

        return run_unplanned(submitted, plan, engine)


def _planned(
    submission: Submission,
    submitted: SubmittedBuild,
    checkout: GitCheckout | None,
    engine: ContainerEngine,
    stack: ExitStack,
) -> PlannedBuild:
    from buildrunner.build_run.builder_aliases import with_builder_images
    from buildrunner.cli.submit.run import planned_build

    build, plan, found = compile_build(submission, checkout)
    for text in found:
        sys.stderr.write(f"warning: {text}\n")
    plan = fitted(plan, engine)
    if submission.args.metadata_server:
        stack.callback(metadata_server(engine, build, submission.args).close)
    aliases = with_builder_images(submission.settings.image_aliases, plan, engine)
    settings = replace(submission.settings, image_aliases=aliases)
    return planned_build(replace(submitted, settings=settings), build, plan, engine)


def _show_plan(submission: Submission) -> int:
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    from buildrunner.cli.submit.dry_run import show_plan

    source: Source = submission.build.source  # type: ignore[assignment]  # run_on_git has asked
    settings, args = submission.settings, submission.args
    with ExitStack() as stack:
        folder = ""
        if args.no_git_cache:
            folder = stack.enter_context(TemporaryDirectory(prefix="buildrunner-git-"))
        place = wiring.git_place(settings, folder=folder)
        checkout = wiring.fetch_git_source(source, settings, place, cancel=threading.Event())
        stack.callback(checkout.release)
        _, plan, found = compile_build(submission, checkout)
    for text in found:
        sys.stderr.write(f"warning: {text}\n")
    return show_plan(plan, submission.request, settings, args.format)
