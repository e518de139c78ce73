"""``submit`` on a Git repository: fetched first, since the commit decides what the plan is."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.cli.submit_compile import compile_build

if TYPE_CHECKING:
    from contextlib import ExitStack

    from buildrunner.build_order import PlannedBuild
    from buildrunner.cli.head_start import HeadStart
    from buildrunner.cli.submit_compile import Submission
    from buildrunner.cli.submit_run import SubmittedBuild
    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.sources.git_source import GitCheckout
    from buildrunner.spec.model_source import Source


def run_on_git(submission: Submission, head_start: HeadStart | None) -> int:
    """Build, or (without a head start) show the plan. See `submit.run`.

    Raises:
        ConfigError: the config or a selection of steps is wrong.
        UsageError: there is no such config.
        SourceError: with ``--dry-run``, the source can't be fetched.
    """
    from contextlib import ExitStack

    from buildrunner.cli.submit import submitted_build
    from buildrunner.cli.submit_run import run_unplanned

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
    from buildrunner.cli.builder_aliases import with_builder_images
    from buildrunner.cli.submit import fitted, metadata_server
    from buildrunner.cli.submit_run import planned_build

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

    from buildrunner.cli.dry_run import show_plan

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
