"""``buildrunner submit``: from a command line to a finished build.

Parse, validate and compile the config, then run the plan or print it. Nothing is created before the
config is valid, except the network, which is created in parallel.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.cli.server.choice import chosen_server
from buildrunner.cli.submit import flags as submit_flags

if TYPE_CHECKING:  # the network is requested before other modules are imported
    from buildrunner.cli.submit.build_input import BuildInput
    from buildrunner.cli.submit.engine_setup import EngineSetup
    from buildrunner.cli.submit.request import Submission
    from buildrunner.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``submit``."""
    submit_flags.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Build, or show the plan.

    Returns:
        0 success, 1 build failed, 3 infrastructure, 4 timeout, 130 interrupted.

    Raises:
        ConfigError: the config, a settings file or a selection of steps is wrong.
        UsageError: the flags request something impossible.
    """
    server = None if args.dry_run else chosen_server(args)
    warnings = submit_flags.check_gcloud_flags(args, remote=server is not None)
    if server is not None:
        from buildrunner.cli.submit.remote import submit_remote

        input_, settings = _read_flags(args, warnings)
        for text in warnings:
            sys.stderr.write(f"warning: {text}\n")
        return submit_remote(server, input_, settings, args)
    from buildrunner.plan.build_plan import new_build_id

    build_id = new_build_id()
    if args.dry_run:
        return _show_plan(_read(*_read_flags(args, warnings), args, build_id, warnings, None))
    with ExitStack() as stack:
        if args.sandbox == "host":
            from buildrunner.cli.submit.engine_setup import EngineSetup

            engine_setup = EngineSetup(build_id, metadata=args.metadata_server)
            stack.enter_context(engine_setup)
            input_, settings = _read_flags(args, warnings)
        else:
            input_, settings = _read_flags(args, warnings)
            engine_setup = stack.enter_context(_nested_engine_setup(build_id, settings))
        from buildrunner.cli.submit.run import LocalRun

        submission = _read(input_, settings, args, build_id, warnings, engine_setup)
        return LocalRun(submission, engine_setup, stack).run()


def _read_flags(args: argparse.Namespace, warnings: list[str]) -> tuple[BuildInput, Settings]:
    """Return the config and the source that the flags name, and the settings that hold there.

    Args:
        args: the flags. ``--trigger`` may set the name of the ignore file.
        warnings: receives warnings for the user.
    """
    from buildrunner.cli.submit.build_input import find_input

    input_ = find_input(args)
    if input_.note:
        warnings.append(input_.note)
    if args.triggered or args.trigger:
        from buildrunner.cli.arguments import parse_map
        from buildrunner.cli.submit.build_input import ignore_file_of, trigger_values

        given = parse_map("--substitutions", args.substitutions)
        input_ = replace(input_, triggered=trigger_values(input_, input_.trigger, given))
        warnings += input_.triggered.warnings if input_.triggered else ()
        args.ignore_file = ignore_file_of(input_, args)
    settings = _effective_settings(input_, args)
    if settings.secrets and input_.folder is not None:
        from buildrunner.sources.ignore_rules import exposed_secrets

        warnings += exposed_secrets(input_.folder, args.ignore_file, settings.secrets)
    return input_, settings


def _nested_engine_setup(build_id: str, settings: Settings) -> EngineSetup:
    from buildrunner.cli.submit.engine_setup import NestedEngineSetup

    return NestedEngineSetup(build_id, settings)


def _read(
    input_: BuildInput,
    settings: Settings,
    args: argparse.Namespace,
    build_id: str,
    warnings: list[str],
    engine_setup: EngineSetup | None,
) -> Submission:
    """Read the config, with the rights that the settings and the build's sandbox grant."""
    from buildrunner.cli.submit.request import read_submission
    from buildrunner.plan.privilege import granted

    if engine_setup is not None and engine_setup.waits_for_config:
        _check_config(input_, settings, args, build_id)
        _open_place(engine_setup)
    place = engine_setup.place if engine_setup else None
    grant = granted(
        docker_socket=settings.docker_socket,
        privileged=settings.privileged,
        privileged_place=place is not None and place.privileged_steps,
    )
    submission = read_submission(input_, settings, args, build_id, grant)
    return replace(submission, warnings=tuple(warnings))


def _check_config(
    input_: BuildInput, settings: Settings, args: argparse.Namespace, build_id: str
) -> None:
    """Check the config before work that takes a minute, unless the config is in Git.

    Raises:
        ConfigError, UsageError: as `run`.
    """
    from buildrunner.cli.submit.request import compile_submission, read_submission
    from buildrunner.plan.privilege import NO_PRIVILEGE

    submission = read_submission(input_, settings, args, build_id, NO_PRIVILEGE)
    if submission.request.git_source is None:
        compile_submission(submission)


def _open_place(engine_setup: EngineSetup) -> None:
    """Open the first nested sandbox of this machine, for which an engine image is made."""
    from buildrunner.builders.installer import with_parents
    from buildrunner.cli.terminal.installation_progress import InstallationProgress

    sys.stderr.write(
        "Making the image buildrunner/engine for nested sandboxes. This happens once on this "
        "machine and takes 20 to 60 s.\n"
    )
    engine_setup.open_place(InstallationProgress(with_parents(["engine"]), output=sys.stderr))


def _effective_settings(input_: BuildInput, args: argparse.Namespace) -> Settings:
    """Return the settings of the source folder, overridden by the flags."""
    from buildrunner.cli.arguments import parse_map
    from buildrunner.cli.trust import folder_settings

    settings = folder_settings(input_.folder or ".")
    settings = settings.of_project(args.project or settings.project_id)
    aliases = parse_map("--image-alias", args.image_alias)
    folders = parse_map("--storage", args.storage)
    docker_socket = settings.docker_socket and not args.no_docker_socket
    # Steps with the socket of this machine's engine can write to any folder anyway. The socket
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


def _show_plan(submission: Submission) -> int:
    """Show the plan, on the commit that would be built.

    Raises:
        ConfigError: the config or a selection of steps is wrong.
        UsageError: the repository has no such config.
        SourceError: the source can't be fetched.
    """
    import threading

    from buildrunner.cli.submit.dry_run import show_plan
    from buildrunner.cli.submit.request import compile_submission
    from buildrunner.cli.submit.run import warn

    settings, args = submission.settings, submission.args
    source = submission.request.git_source
    with ExitStack() as stack:
        checkout = None
        if source is not None:
            warn(list(submission.warnings))
            folder = ""
            if args.no_git_cache:
                from tempfile import TemporaryDirectory

                folder = stack.enter_context(TemporaryDirectory(prefix="buildrunner-git-"))
            place = wiring.git_place(settings, folder=folder)
            checkout = wiring.fetch_git_source(source, settings, place, cancel=threading.Event())
            stack.callback(checkout.release)
        made, warnings = compile_submission(submission, checkout)
    warn([*(submission.warnings if source is None else ()), *warnings])
    return show_plan(made.compiled.plan, submission.input, settings, args.format)
