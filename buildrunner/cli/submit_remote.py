"""``buildrunner submit`` to a server: upload the source, post the Build, follow it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner.errors import EXIT_SUCCESS, UsageError

if TYPE_CHECKING:
    import argparse

    from buildrunner.cli.build_request import BuildRequest
    from buildrunner.cli.server_choice import ChosenServer
    from buildrunner.cli.submit_compile import Submission
    from buildrunner.client import Document, ServerClient
    from buildrunner.plan.build_plan import BuildPlan
    from buildrunner.settings import Settings

# What only a build in this process can do. The server decides how it runs builds.
_LOCAL_ONLY = {
    "step": "--step",
    "from_": "--from",
    "until": "--until",
    "skip": "--skip",
    "secret": "--secret",
    "google_secrets": "--google-secrets",
    "storage": "--storage",
    "image_alias": "--image-alias",
    "no_docker_socket": "--no-docker-socket",
    "privileged": "--privileged",
    "share_registry_logins": "--share-registry-logins",
    "metadata_server": "--metadata-server",
    "metadata_credentials": "--metadata-credentials",
    "git_submodules": "--git-submodules",
    "git_lfs": "--git-lfs",
    "no_git_cache": "--no-git-cache",
    "sandbox": "--sandbox",
    "write_workspace": "--write-workspace",
}


def submit_remote(
    server: ChosenServer, request: BuildRequest, settings: Settings, args: argparse.Namespace
) -> int:
    """Build on a server.

    Everything that can be checked here is checked before anything is uploaded.

    Returns:
        The exit code that a build on this machine would have.

    Raises:
        ConfigError: the config is wrong; holds all problems.
        UsageError: the flags ask for something impossible, or the server refuses the build.
        SourceError: the source can't be read or uploaded.
        ServerUnavailable: the server does not answer.
    """
    from buildrunner.cli.submit_compile import read_submission
    from buildrunner.plan.identity import new_build_id
    from buildrunner.plan.privilege import Privilege

    _refuse_local_flags(args)
    project = args.project or server.project or settings.project_id
    settings = replace(settings, project_id=project)
    anything = Privilege(docker_socket=True, privileged=True)  # the server decides, not we
    submission = read_submission(request, settings, args, new_build_id(), anything)
    _refuse_what_stays_here(submission, settings)
    plan = _checked_plan(submission)
    client = server.connect(project)
    try:
        client.whoami()  # who may not build should not wait for an upload first
        body = _body(client, submission)
        build = client.create_build(
            body,
            request_id=submission.build.id,
            location=args.region,
            push=not args.no_push,
            priority=args.priority,
            group=args.group,
            supersede=args.supersede,
        )
        return _after_creation(client, build, submission, plan)
    finally:
        client.close()


def _after_creation(
    client: ServerClient, build: Document, submission: Submission, plan: BuildPlan | None
) -> int:
    args = submission.args
    _say(f"Created [{client.build_url(build['id'], args.region)}].")
    _say(f"Logs are available at [ {build.get('logUrl') or client.log_url(build['id'])} ].")
    if getattr(args, "async"):
        print_created(build, as_json=args.output == "json")
        return EXIT_SUCCESS
    from buildrunner.cli.remote_session import RemoteSession
    from buildrunner.plan.build_plan import BuildPlan

    # Where ours can't be the server's plan, the server is asked for it.
    ours = plan if plan and len(plan.steps) == len(build.get("steps", ())) else None
    session = RemoteSession(
        client,
        build,
        plan=replace(ours, build_id=build["id"])
        if ours is not None
        else BuildPlan(build_id=build["id"], project_id=client.project, steps=()),
        planned=ours is not None,
        quiet=args.quiet,
        as_json=args.output == "json",
    )
    return session.run()


def print_created(build: Document, *, as_json: bool) -> None:
    """The id of a build that nobody waits for, or all of it as JSON."""
    if as_json:
        from buildrunner.cli.listing import formatted

        sys.stdout.write(formatted(build, "json"))
    else:
        sys.stdout.write(f"{build['id']}\n")


def _refuse_local_flags(args: argparse.Namespace) -> None:
    for name, flag in _LOCAL_ONLY.items():
        if getattr(args, name) not in (None, False, "", "host", []):
            raise UsageError(
                f"{flag} is for builds on this machine: the server decides how it runs builds",
                hint="--local builds here",
            )


def _refuse_what_stays_here(submission: Submission, settings: Settings) -> None:
    if submission.request.in_repository:
        raise UsageError(
            "a server reads the config of a repository only when a trigger says so",
            hint="name a config of this machine with --config FILE",
        )
    triggered = submission.request.triggered
    if triggered is not None and triggered.source_dir:
        raise UsageError(
            "triggerTemplate.dir can't be had with an uploaded folder",
            hint="--local builds here, or import the trigger and run it there (triggers run)",
        )
    if submission.settings.git.tokens != settings.git.tokens:
        raise UsageError(
            "the password in the repository's URL does not go to the server",
            hint="leave it out, and give the server a token for that host",
        )


def _checked_plan(submission: Submission) -> BuildPlan | None:
    """What will run, as far as that is known here: None where the commit decides.

    Raises:
        ConfigError: the config is wrong.
    """
    from buildrunner.cli.submit_compile import compile_build
    from buildrunner.plan.compile import git_source_of

    if git_source_of(submission.build) is not None:
        return None
    _, plan, found = compile_build(submission)
    for text in found:
        _say(f"warning: {text}")
    return plan


def _body(client: ServerClient, submission: Submission) -> Document:
    """The Build as Cloud Build takes it, with its source uploaded."""
    from buildrunner.spec.encode import encode_message

    build, request = submission.build, submission.request
    substitutions = {**build.substitutions, **submission.substitutions}
    if request.triggered is not None:
        from buildrunner.cli.submit_trigger import substitutions_of
        from buildrunner.spec.effective_options import effective_options

        substitutions = {**substitutions_of(submission.built_ins), **substitutions}
        build = replace(build, options=effective_options(build.options, triggered=True))
    body = encode_message(replace(build, id="", project_id="", substitutions=substitutions))
    source = _uploaded(client, submission) if request.folder or request.archive else None
    if source is not None:
        body["source"] = source
    return body


def _uploaded(client: ServerClient, submission: Submission) -> Document:
    args, request = submission.args, submission.request
    if args.gcs_source_staging_dir:
        from buildrunner import wiring
        from buildrunner.cli.remote_source import staged
        from buildrunner.spec.encode import encode_message

        stores = wiring.stores(submission.settings)
        build = staged(
            submission.build,
            request,
            args.gcs_source_staging_dir,
            stores,
            ignore_file=args.ignore_file,
        )
        staged_source: Document = encode_message(build)["source"]
        return staged_source
    from buildrunner.cli.source_upload import upload_archive, upload_folder

    if request.archive:
        return upload_archive(client, request.archive, say=_say)
    return upload_folder(client, request.folder or ".", ignore_file=args.ignore_file, say=_say)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
