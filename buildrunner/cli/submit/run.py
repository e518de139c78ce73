"""Running a submitted build in this process: planned before, or once its source is here."""

from __future__ import annotations

import os
from functools import partial

import msgspec
from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.build_run.builder_aliases import image_advice, install_command
from buildrunner.build_run.execution import BuildExecution, source_workspace
from buildrunner.build_run.order import BuildOrder, LocalSource, PlannedBuild, Planner
from buildrunner.build_run.request import BuildRequest
from buildrunner.cli.submit.session import BuildSession, JsonOutput, Output, TextOutput
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine.namespaces import NamespacePool
from buildrunner.engine.run_options import RunOptions
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.sandboxes.protocol import OpenSandbox
from buildrunner.settings import Settings
from buildrunner.spec.model.build import Build, LoggingMode
from buildrunner.workspace.export import ExportedWorkspace
from buildrunner.workspace.protocol import Workspace

# The workspace of --write-workspace may be large.
_COPY_LIMIT_S = 24 * 3600.0


class SubmittedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """What is to run, and how it is shown.

    Attributes:
        build: the build resource; with substitutions made and the steps that run, where it could
            be planned by now.
        request: which config, on which source.
        settings: settings and flags together.
        pause_image: image of containers that hold network namespaces; None makes none.
        extra_hosts: entries for the hosts file of every step.
        ignore_file: ``--ignore-file``.
        push: push images at the end.
        quiet: don't show the log.
        as_json: events as JSON lines instead of text.
        command: how to submit the same again, for hints.
        git_folder: see `BuildOrder`.
        place: the build's own sandbox; None: it runs on the engine at hand.
        write_workspace: ``--write-workspace``: where the workspace is copied to; empty: nowhere.
    """

    build: Build
    request: BuildRequest
    settings: Settings
    pause_image: str | None = None
    extra_hosts: tuple[str, ...] = ()
    ignore_file: str = ""
    push: bool = True
    quiet: bool = False
    as_json: bool = False
    command: str = "buildrunner submit"
    git_folder: str = ""
    place: OpenSandbox | None = None
    write_workspace: str = ""


def run_submitted(
    submitted: SubmittedBuild,
    plan: BuildPlan,
    engine: ContainerEngine,
    namespaces: NamespacePool | None,
) -> int:
    """Run a planned build to its end, keep it in the store, show it.

    Args:
        submitted: what to run.
        plan: its plan.
        engine: where; a guardian watches over the build by now. Not closed.
        namespaces: see `run_build`.

    Returns:
        The exit code of the command.
    """
    planned = planned_build(submitted, submitted.build, plan, engine)
    # Made here: what is wrong with a local source is said before anything is kept.
    workspace = source_workspace(_order(submitted), submitted.build, submitted.settings)
    planned = replace(planned, workspace=workspace, namespaces=namespaces)
    return _execute(submitted, plan, engine, lambda _: planned)


def run_unplanned(submitted: SubmittedBuild, planner: Planner, engine: ContainerEngine) -> int:
    """The same for a build that is planned once its source is here.

    A config that turns out wrong then is a failed build with the exit code of a bad config.
    """
    options = submitted.build.options
    plan = BuildPlan(
        build_id=submitted.build.id,
        project_id=submitted.build.project_id,
        steps=(),
        store_log=options is None or options.logging is not LoggingMode.NONE,
    )
    return _execute(submitted, plan, engine, planner)


def planned_build(
    submitted: SubmittedBuild, build: Build, plan: BuildPlan, engine: ContainerEngine
) -> PlannedBuild:
    """The build with all it needs to run.

    Raises:
        ConfigError: a package can't be published from here.
        EngineError: the engine does not tell what images it has.
    """
    settings = submitted.settings
    options = RunOptions(
        push=submitted.push,
        network=wiring.NETWORK,
        image_aliases=settings.image_aliases,
        image_advice=image_advice(plan),
        install_command=install_command(plan, _config_here(submitted.request)),
        pause_image=submitted.pause_image,
        leave_cleanup_to_guardian=True,
        home_files=wiring.home_files(plan, settings),
        labels=wiring.build_labels(plan.build_id),
        extra_hosts=submitted.extra_hosts,
    )
    if submitted.place is not None:
        submitted.place.expect(plan)
        options = submitted.place.options(options)
    if submitted.write_workspace:  # it is copied right before this process removes it
        options = replace(options, leave_cleanup_to_guardian=False, cleanup_s=_COPY_LIMIT_S)
    publisher, attester = None, None
    if submitted.push:
        attester = wiring.attester(build, plan, settings)
        publisher = wiring.publisher(plan, settings, engine, submitted.place, options.disk_bytes)
    return PlannedBuild(
        build=build, plan=plan, options=options, publisher=publisher, attester=attester
    )


def _execute(
    submitted: SubmittedBuild, plan: BuildPlan, engine: ContainerEngine, planner: Planner
) -> int:
    stores = wiring.stores(submitted.settings)
    output = partial(_output, submitted, plan)
    exported: list[ExportedWorkspace] = []

    def placed(workspace: Workspace) -> Workspace:
        if submitted.place is not None:
            workspace = submitted.place.workspace(workspace)
        if submitted.write_workspace:
            from buildrunner.workspace.export import ExportedWorkspace

            folder, cancel = submitted.write_workspace, session.cancel
            exported.append(ExportedWorkspace(workspace, folder, lambda: cancel.cancelled))
            return exported[0]
        return workspace

    with BuildSession(submitted.build, plan, stores, output) as session:
        execution = BuildExecution(
            settings=submitted.settings,
            engine=engine,
            sink=session.sink,
            on_event=session.on_event,
            on_planned=lambda planned: session.planned(planned.build, planned.plan),
            cancel=session.cancel,
            place_workspace=placed,
        )
        executed = execution.execute(_order(submitted), planner)
        exit_code = session.finish(executed.outcome)
    if executed.error is not None:  # the log and the summary have said what is wrong
        exit_code = executed.error.exit_code
    if submitted.write_workspace:
        from buildrunner.cli.submit.exposed_secrets import told

        exit_code = told(next(iter(exported), None), submitted.write_workspace, exit_code)
    return exit_code


def _config_here(request: BuildRequest) -> str:
    """The path of the config, if it is a file of this machine."""
    here = not request.in_repository and request.trigger is None and os.path.isfile(request.config)
    return request.config if here else ""


def _order(submitted: SubmittedBuild) -> BuildOrder:
    request = submitted.request
    is_local = request.folder is not None or bool(request.archive)
    local = LocalSource(
        folder=request.folder, archive=request.archive, ignore_file=submitted.ignore_file
    )
    return BuildOrder(
        build=submitted.build,
        local=local if is_local else None,
        git_folder=submitted.git_folder,
    )


def _output(submitted: SubmittedBuild, plan: BuildPlan, folder: str) -> Output:
    if submitted.as_json:
        return JsonOutput()
    return TextOutput(plan, folder, quiet=submitted.quiet, command=submitted.command)
