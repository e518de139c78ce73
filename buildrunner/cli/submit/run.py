"""Runs a submitted build in this process, planned before or after its source is fetched.

With ``--write-workspace``, the workspace is copied to a folder at the end.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.build_run.compile import (
    BuildPlace,
    PlannedBuild,
    Planner,
    fitted_to_engine,
    planned_build,
)
from buildrunner.build_run.execution import BuildExecution, source_workspace
from buildrunner.build_run.request import BuildRequest
from buildrunner.cli.submit.build_input import BuildInput
from buildrunner.cli.submit.engine_setup import EngineSetup
from buildrunner.cli.submit.request import Submission, compile_submission
from buildrunner.cli.submit.session import BuildSession, JsonOutput, Output, TextOutput, say
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine.run_options import RunOptions
from buildrunner.errors import EXIT_INFRASTRUCTURE, EXIT_SUCCESS, UsageError
from buildrunner.logs.console.wording import count, size
from buildrunner.plan.build_plan import BuildPlan, project_number
from buildrunner.spec.model.build import Build, LoggingMode
from buildrunner.workspace.protocol import Workspace

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout
    from buildrunner.workspace.export import ExportedWorkspace

_FLAG = "--write-workspace"
_COPY_LIMIT_S = 24 * 3600.0  # seconds for the copy of a workspace, which may be large
_SHOWN = 3


def warn(texts: list[str]) -> None:
    """Show warnings about the build."""
    for text in texts:
        sys.stderr.write(f"warning: {text}\n")


class LocalRun:
    """Runs one submission on an engine that is set up.

    Args:
        submission: the requested build.
        engine_setup: its engine; a guardian watches over the build by now.
        stack: closes everything that the run opens.
    """

    def __init__(self, submission: Submission, engine_setup: EngineSetup, stack: ExitStack) -> None:
        self._submission = submission
        self._args = submission.args
        self._settings = submission.settings
        self._engine_setup = engine_setup
        self._stack = stack
        self._engine: ContainerEngine
        self._write_workspace = ""

    def run(self) -> int:
        """Run the build to its end, store it, show it; return the exit code.

        Raises:
            ConfigError, UsageError, EngineError: the build can't be planned, and nothing has begun.
        """
        if self._submission.request.git_source is None:
            return self._run_planned()
        return self._run_on_git()

    def _open_engine(self) -> None:
        self._engine = self._engine_setup.engine()
        self._engine.ping()

    def _run_planned(self) -> int:
        made, warnings = compile_submission(self._submission)
        warn([*self._submission.warnings, *warnings])
        self._open_engine()
        build, plan = made.compiled.build, self._fitted(made.compiled.plan)
        request = self._submission.request
        if self._args.gcs_source_staging_dir and request.local is not None:
            build = self._staged(build)
            request = replace(request, local=None)
        self._start_metadata_server(build)
        request = self._prepared(replace(request, build=build))
        planned = planned_build(request, build, plan, self._place())
        # Made here, so that errors of a local source are reported before anything is stored.
        workspace = source_workspace(request, build, self._settings)
        planned = replace(self._exported(planned), workspace=workspace)
        return self._execute(request, plan, lambda _: planned)

    def _run_on_git(self) -> int:
        """Run a build whose config is in Git. A config that turns out invalid fails the build."""
        warn(list(self._submission.warnings))
        if self._args.gcs_source_staging_dir:
            warn(["--gcs-source-staging-dir has no effect on a Git source"])
        self._open_engine()
        request = self._prepared(self._submission.request)
        options = request.build.options
        plan = BuildPlan(
            build_id=request.build.id,
            project_id=request.build.project_id,
            steps=(),
            store_log=options is None or options.logging is not LoggingMode.NONE,
        )
        return self._execute(request, plan, self._planned)

    def _planned(self, checkout: GitCheckout | None) -> PlannedBuild:
        made, warnings = compile_submission(self._submission, checkout)
        warn(warnings)
        build, plan = made.compiled.build, self._fitted(made.compiled.plan)
        self._start_metadata_server(build)
        return self._exported(planned_build(self._submission.request, build, plan, self._place()))

    def _fitted(self, plan: BuildPlan) -> BuildPlan:
        plan, warning = fitted_to_engine(plan, self._engine)
        if warning:
            warn([warning])
        return plan

    def _staged(self, build: Build) -> Build:
        """Return the build on its uploaded source."""
        from buildrunner.cli.submit.remote import staged

        return staged(self._submission, build)

    def _start_metadata_server(self, build: Build) -> None:
        """Start the server that ``--metadata-server`` requests.

        Raises:
            EngineError: the network or the address is unavailable.
            SecretError: the credentials can't be used.
        """
        args = self._args
        if not args.metadata_server:
            return
        from buildrunner.metadata import MetadataServer, ProjectFacts

        facts = ProjectFacts(
            project_id=build.project_id,
            project_number=project_number(build.project_id),
            # On the hosted service it is a resource name; the metadata server returns the address
            # in it.
            service_account=build.service_account.rpartition("/")[2],
            location=args.region or "global",
        )
        place = self._engine_setup.place
        listener = place.metadata_listener() if place is not None else None
        if listener is None:
            start = partial(wiring.shared_metadata_server, self._engine, build.id, facts)
        else:
            start = partial(MetadataServer, self._stack.enter_context(listener), facts)
        server = start(credentials=wiring.google_credentials(args.metadata_credentials))
        self._stack.callback(server.close)

    def _prepared(self, request: BuildRequest) -> BuildRequest:
        """Return the request with the folders that the flags require."""
        args = self._args
        if args.write_workspace:
            folder = request.local.folder if request.local else None
            self._write_workspace = prepare_folder(args.write_workspace, folder, args.ignore_file)
        git_folder = self._engine_setup.git_folder() if args.no_git_cache else ""
        return replace(request, git_folder=git_folder)

    def _place(self) -> BuildPlace:
        build_id = self._submission.request.build.id
        options = RunOptions(
            push=not self._args.no_push,
            network=wiring.NETWORK,
            leave_cleanup_to_guardian=True,
            labels=wiring.build_labels(build_id),
            extra_hosts=wiring.metadata_hosts() if self._args.metadata_server else (),
        )
        return BuildPlace(
            engine=self._engine,
            settings=self._settings,
            options=options,
            sandbox=self._engine_setup.place,
            config=_config_here(self._submission.input),
        )

    def _exported(self, planned: PlannedBuild) -> PlannedBuild:
        """Return the build, with time to copy its workspace before this process removes it."""
        if not self._write_workspace:
            return planned
        options = replace(planned.options, leave_cleanup_to_guardian=False, cleanup_s=_COPY_LIMIT_S)
        return replace(planned, options=options)

    def _execute(self, request: BuildRequest, plan: BuildPlan, planner: Planner) -> int:
        stores = wiring.stores(self._settings)
        exported: list[ExportedWorkspace] = []
        with BuildSession(request.build, plan, stores, partial(self._output, plan)) as session:
            execution = BuildExecution(
                settings=self._settings,
                engine=self._engine,
                sink=session.sink,
                on_event=session.on_event,
                on_planned=lambda planned: session.planned(planned.build, planned.plan),
                cancel=session.cancel,
                place_workspace=partial(self._placed, exported, lambda: session.cancel.cancelled),
            )
            executed = execution.execute(request, planner)
            exit_code = session.finish(executed.outcome)
        if executed.error is not None:  # the log and the summary have reported the error
            exit_code = executed.error.exit_code
        if self._write_workspace:
            exit_code = report_export(next(iter(exported), None), self._write_workspace, exit_code)
        return exit_code

    def _placed(
        self,
        exported: list[ExportedWorkspace],
        is_cancelled: Callable[[], bool],
        workspace: Workspace,
    ) -> Workspace:
        """Return the workspace for the place of the build, copied at the end if a flag says so."""
        if self._engine_setup.place is not None:
            workspace = self._engine_setup.place.workspace(workspace)
        if not self._write_workspace:
            return workspace
        from buildrunner.workspace.export import ExportedWorkspace

        exported.append(ExportedWorkspace(workspace, self._write_workspace, is_cancelled))
        return exported[0]

    def _output(self, plan: BuildPlan, folder: str) -> Output:
        if self._args.output == "json":
            return JsonOutput()
        command = _command_again(sys.argv)
        return TextOutput(plan, folder, quiet=self._args.quiet, command=command)


def _config_here(input_: BuildInput) -> str:
    """Return the path of the config, if it is a file of this machine."""
    here = not input_.in_repository and input_.trigger is None and os.path.isfile(input_.config)
    return input_.config if here else ""


def _command_again(argv: list[str]) -> str:
    """Return the command that submits the same build again, with the same selection of steps."""
    # A password in a URL is for the source's host only.
    return re.sub(r"(://[^/@:\s]*):[^/@\s]*@", r"\1@", shlex.join(["buildrunner", *argv[1:]]))


def prepare_folder(folder: str, source: str | None, ignore_file: str) -> str:
    """Create the folder if it does not exist; return its absolute path.

    Args:
        folder: as given.
        source: the folder that is built; None for a source of another kind.
        ignore_file: ``--ignore-file``.

    Raises:
        UsageError: the folder is not empty, can't be written, or would become part of the source.
        SourceError: the ignore rules can't be read.
    """
    path = os.path.abspath(folder)
    if source is not None:
        _refuse_source(path, folder, source, ignore_file)
    try:
        os.makedirs(path, exist_ok=True)
        is_empty = not os.listdir(path)
    except OSError as error:
        raise UsageError(f"{_FLAG} {folder} can't be made: {error.strerror}") from error
    if not is_empty:
        raise UsageError(
            f"{_FLAG} {folder} is not empty",
            hint="name a new or empty folder: the copy never mixes with other files",
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{_FLAG} {folder} can't be written to: Permission denied")
    return path


def _refuse_source(path: str, folder: str, source: str, ignore_file: str) -> None:
    root = os.path.realpath(source)
    inside = os.path.relpath(os.path.realpath(path), root)
    if inside.split(os.sep, 1)[0] == os.pardir:
        return
    if inside == os.curdir:
        raise UsageError(f"{_FLAG} {folder} is the source itself", hint="name another folder")
    from buildrunner.sources.ignore_rules import is_left_out, load_ignore_rules

    rules = load_ignore_rules(root, ignore_file=ignore_file)
    if not is_left_out(inside, rules, is_directory=True):
        raise UsageError(
            f"{_FLAG} {folder} lies in the source, and the next build would have it as a part",
            hint=f"name a folder outside of it, or leave it out: /{inside}/ in .gcloudignore",
        )


def report_export(exported: ExportedWorkspace | None, folder: str, exit_code: int) -> int:
    """Report the copy of the workspace; return the exit code of the command.

    Args:
        exported: the workspace, released; None for a build that never had one.
        folder: the target of the copy.
        exit_code: that of the build.
    """
    from buildrunner.workspace.export import NO_WORKSPACE

    if exported is None or exported.error:
        why = exported.error if exported else NO_WORKSPACE
        say(f"error: the workspace is not in {folder}: {why}\n")
        return EXIT_INFRASTRUCTURE if exit_code == EXIT_SUCCESS else exit_code
    if exported.left_out:
        names = ", ".join(exported.left_out[:_SHOWN])
        more = len(exported.left_out) - _SHOWN
        names += f" and {more} more" if more > 0 else ""
        say(f"warning: {names} can't be copied: neither file, folder nor link\n")
    said = f"{count(exported.files, 'file')}, {size(exported.size_bytes)}"
    say(f"Workspace written to {folder}: {said}\n")
    return exit_code
