"""Everything that a build needs before its first step, acquired in parallel threads."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import TypeVar

from buildrunner.containers.types import LABEL_BUILD, LABEL_STEP, EngineInfo, FoundContainer
from buildrunner.engine import outcome as decisions
from buildrunner.engine import progress as phases
from buildrunner.engine.events import BuildStarted, SourceFetched
from buildrunner.engine.log.masking import Masker
from buildrunner.engine.progress import FileTransferReport
from buildrunner.engine.resources import BuildResources
from buildrunner.engine.resume import ResumeState
from buildrunner.engine.running_build import RunningBuild
from buildrunner.errors import SecretError
from buildrunner.plan.build_plan import BuildPlan, SecretReference, StepPlan
from buildrunner.spec.model.results import SourceProvenance
from buildrunner.workspace.protocol import WORKSPACE, PreparedWorkspace

Got = TypeVar("Got")

_NEEDED_TO_CREATE = frozenset({"volumes", "workspace", "secrets"})
_NEEDED_TO_START = frozenset({"network", "volumes", "workspace", "secrets", "found"})


class BuildSetup:
    """Fills the running build. Belongs to the loop's thread; only spawned work runs in others.

    Args:
        build: the build. It ends when a part of the setup fails.
        resources: network, volumes and home.
        on_part: called whenever a part is there; see `may_create` and `may_start`.
    """

    def __init__(
        self, build: RunningBuild, resources: BuildResources, on_part: Callable[[], None]
    ) -> None:
        self._build = build
        self._inbox = build.inbox
        self._resources = resources
        self._workspace = build.context.workspace
        self._secrets = build.context.secrets
        self._phases = build.phases
        self._begun = build.context.begun
        self._resume = build.resume
        self._emit = build.emit
        self._warn = build.warn
        self._decide = build.decide
        self._on_part = on_part
        self.provenance: SourceProvenance | None = None
        """The origin of the source; None until the source is fetched."""
        self.found: tuple[FoundContainer, ...] = ()
        """Of a resumed build: the containers of steps that still run."""

    @property
    def may_create(self) -> bool:
        """Whether everything exists that the first containers are created from."""
        return not self._inbox.pending & _NEEDED_TO_CREATE

    @property
    def may_start(self) -> bool:
        """Whether everything exists that the first steps need to run."""
        return not self._inbox.pending & _NEEDED_TO_START

    def announce(self, started_at: datetime) -> None:
        """Tell that the build begins, as far as that was not told before."""
        if self._resume is not None:
            self._phases.spans.update(self._resume.phases)
            return
        plan = self._build.plan
        if self._begun is None:
            self._emit(BuildStarted(at=started_at, build_id=plan.build_id, steps=len(plan.steps)))
        self._phases.begin(phases.SETUP)
        if self._begun is None:
            self._phases.begin(phases.FETCH)
        else:
            self._phases.resume(phases.FETCH, started_at)

    def begin(self) -> None:
        """Start all parts."""
        if self._build.plan.docker_socket:
            self._spawn("engine", self._build.engine.info, self._on_engine)
        if self._resume is not None:
            self._spawn("found", partial(self._sort_found, self._resume), self._on_found)
        self._spawn("network", self._resources.make_network, self._on_made)
        self._spawn("volumes", self._make_volumes, self._on_volumes)
        self._spawn("workspace", self._prepare_workspace, self._on_workspace)
        self._spawn("images", self._build.pulls.prefetch, self._on_made)
        plan = self._build.plan
        references = {one for step in plan.steps for one in step.secrets}
        if references:
            self._spawn("secrets", partial(self._resolve, references), self._on_secrets)
        if self._begun is None and self._resume is None:
            self._build.log.line(f'starting build "{plan.build_id}"\n\nFETCHSOURCE')

    def note_strangers(self) -> None:
        """The first steps begin: see who is on the network besides those they may start."""
        if self._build.plan.docker_socket:
            self._spawn("strangers", self._resources.note_strangers, self._on_made)

    def forget_secrets(self) -> None:
        """The build ends: nothing has to be undone of secrets, so that nobody waits for them."""
        self._inbox.pending.discard("secrets")

    def _spawn(self, part: str, work: Callable[[], Got], done: Callable[[Got], None]) -> None:
        self._inbox.spawn(part, work, done=done, failed=self._failed)

    def _failed(self, error: Exception) -> None:
        self._decide(decisions.failed_setup(error))

    def _on_made(self, _nothing: None) -> None:
        self._on_part()

    def _on_engine(self, info: EngineInfo) -> None:
        if info.no_socket:
            self._warn(f"Steps can't use the container engine: {info.no_socket}")
        self._on_part()

    # -- a resumed build's containers ------------------------------------------------------------

    def _sort_found(self, state: ResumeState) -> tuple[FoundContainer, ...]:
        """Return the containers to resume; remove those of other steps.

        A container may run although its step's turn has not come: its program waits behind a gate.
        What a process asked for at its last moment is done after its death: a container that was
        only created when we looked may be one whose step begins just then.
        """
        engine = self._build.engine
        mine = {LABEL_BUILD: self._build.plan.build_id, LABEL_STEP: ""}
        going_on = []
        for one in engine.find_containers(mine):
            if int(one.labels[LABEL_STEP]) not in state.begun:
                engine.remove_container(one.id)
            elif one.was_started or not engine.remove_unstarted(one.id):
                going_on.append(one)
        return tuple(going_on)

    def _on_found(self, found: tuple[FoundContainer, ...]) -> None:
        self.found = found
        self._on_part()

    # -- volumes ---------------------------------------------------------------------------------

    def _make_volumes(self) -> None:
        self._resources.make_volumes(with_files=self._resume is None)

    def _on_volumes(self, _nothing: None) -> None:
        self._build.leave_home_files(self._resources.home_missing)
        self._build.gate = self._resources.gate
        self._on_part()

    # -- workspace -------------------------------------------------------------------------------

    def _prepare_workspace(self) -> PreparedWorkspace:
        build = self._build
        tell = self._inbox.tell
        report = FileTransferReport(
            "fetch",
            partial(tell, build.log.line),  # by way of the queue: behind the log's first lines
            build.clock,
            partial(tell, self._emit),
        )
        return self._workspace.prepare(
            build.engine, build.plan.build_id, build.labels, build.halt, report
        )

    def _on_workspace(self, workspace: PreparedWorkspace) -> None:
        self._build.workspace = workspace
        self.provenance = workspace.provenance
        if self._resume is None:
            self._tell_of_source(workspace)
            self._warn_of_mounts(workspace)
        self._on_part()

    def _warn_of_mounts(self, workspace: PreparedWorkspace) -> None:
        """On an engine that has the workspace elsewhere, ``docker run -v $PWD:/x`` misses it."""
        plan = self._build.plan
        if not plan.docker_socket or (workspace.bind and workspace.volume == WORKSPACE):
            return
        steps = mounting_steps(plan)
        nested = (
            "--sandbox nested, or " if steps and self._build.engine.info().supports_nested else ""
        )
        for step in steps:
            self._warn(
                f"{step.label} mounts /workspace into a container of its own: that is an empty "
                f"folder of the engine's machine here. Use {nested}"
                '`docker run --volumes-from "$(hostname)"`'
            )

    def _tell_of_source(self, workspace: PreparedWorkspace) -> None:
        for line in workspace.log:
            self._build.log.line(line)
        self._emit(
            SourceFetched(
                at=self._build.clock.now(),
                files=workspace.files,
                size_bytes=workspace.size_bytes,
                way=workspace.way,
            )
        )
        self._phases.end(phases.FETCH)

    # -- secrets ---------------------------------------------------------------------------------

    def _resolve(self, references: set[SecretReference]) -> dict[SecretReference, str]:
        values = {}
        errors: list[SecretError] = []
        for reference in sorted(references, key=lambda one: one.env):
            try:
                values[reference] = self._secrets.resolve(reference, self._build.plan)
            except SecretError as error:
                errors.append(error)
        if errors:  # all of them at once: who sets one wants to know of the others
            raise SecretError("; ".join(decisions.text_of(error) for error in errors))
        return values

    def _on_secrets(self, values: dict[SecretReference, str]) -> None:
        self._build.secrets = values
        masker = Masker(values.values())
        if masker:
            self._build.log.masker = masker
        if masker.too_short:
            self._warn(
                f"{masker.too_short} secret value(s) are shorter than 4 characters and can't be "
                "hidden in the log"
            )
        self._on_part()


_PLACE = r"""["']?(?:/workspace\b|\$\{?PWD\b|\$\(pwd\)|`pwd`)"""
_MOUNT = re.compile(
    rf"(?:^|\s)(?:-v|--volume)[=\s]*{_PLACE}[^\s:]*:/"  # -v $PWD/sub:/target
    rf"|--mount[=\s]\S*\b(?:source|src)={_PLACE}"
)


def mounting_steps(plan: BuildPlan) -> tuple[StepPlan, ...]:
    """Return the steps whose arguments or script have the engine mount the workspace."""
    return tuple(step for step in plan.steps if any(map(_mounts, _texts(step))))


def _texts(step: StepPlan) -> Iterator[str]:
    yield "\n".join(step.args or ())
    yield step.script or ""


def _mounts(text: str) -> bool:
    return _MOUNT.search(text) is not None
