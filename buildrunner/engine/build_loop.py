"""The loop that owns a running build: it decides, and threads do the work and report to it.

Threads (setup, one per running step, pulls, push) put their reports into the loop's inbox. The loop
wakes up for a report, a cancel, or a deadline. It never waits for the engine itself: to free a
blocked thread it kills the container that the thread waits for, or sets ``halt``.

`BuildSetup` acquires everything that a build needs before its first step, in parallel threads.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import TypeVar

from msgspec.structs import replace

from buildrunner.containers.protocol import LABEL_BUILD, LABEL_STEP, EngineInfo, FoundContainer
from buildrunner.engine import outcome as decisions
from buildrunner.engine import progress as phases
from buildrunner.engine.events import BuildStarted, SourceFetched
from buildrunner.engine.log.masking import Masker
from buildrunner.engine.outcome import BuildOutcome, Decision, build_finished
from buildrunner.engine.progress import FileTransferReport
from buildrunner.engine.publishing import Publishing
from buildrunner.engine.resources import BuildResources, CleanUpParts
from buildrunner.engine.resume import ResumeState
from buildrunner.engine.running_build import RunContext, RunningBuild
from buildrunner.engine.step_runs import StepRuns
from buildrunner.errors import SecretError
from buildrunner.plan.build_plan import BuildPlan, SecretReference, StepPlan
from buildrunner.plan.step_graph import StopReason
from buildrunner.spec.model.build import Status
from buildrunner.spec.model.results import SourceProvenance
from buildrunner.workspace.protocol import WORKSPACE, Preparation, PreparedWorkspace

_FROM_OUTSIDE = (decisions.CANCELLED, decisions.TIMED_OUT)
# seconds after the grace period of killed steps until the loop stops waiting for them
_GIVE_UP_S = 10.0

Got = TypeVar("Got")

_NEEDED_TO_CREATE = frozenset({"volumes", "workspace", "secrets"})
# "images": then it is known which of them are pulled
_NEEDED_TO_START = frozenset({"network", "volumes", "workspace", "secrets", "found", "images"})


def run_build(plan: BuildPlan, context: RunContext) -> BuildOutcome:
    """Run ``plan`` to its end, and remove its containers, volumes and network.

    Blocks until then. A failed build is an outcome, never an exception.

    Raises:
        Exception: an error of ``context.on_event``; the build is stopped and removed before.
    """
    return BuildLoop(plan, context).run()


class BuildLoop:
    """One run of one plan. `run` is called once."""

    def __init__(self, plan: BuildPlan, context: RunContext) -> None:
        self._build = build = RunningBuild(plan, context, self._decide)
        self._resume = resume = context.resume
        self._emit = build.emit
        self._cancel = context.cancel
        self._clock = clock = context.clock
        self._workspace = context.workspace
        self._inbox = build.inbox
        self._log = build.log
        self._phases = build.phases
        self._resources = BuildResources(plan, build.engine, build.options)
        self._setup = BuildSetup(build, self._resources, self._go_on)
        self._steps = StepRuns(build)
        self._publishing = Publishing(
            build, self._resources, so_far=partial(self._outcome, decisions.SUCCEEDED)
        )
        self._decision: Decision | None = None
        self._give_up_at = float("inf")
        self._created_first = False
        self._building = False
        begun = context.begun
        self._started_at = begun.at if begun else clock.now()
        started_s = begun.monotonic_s if begun else clock.monotonic()
        if resume is not None:
            self._started_at = resume.started_at
            started_s -= (clock.now() - resume.started_at).total_seconds()
        self._deadline = started_s + plan.timeout_s
        self._early: Decision | None = None

    def run(self) -> BuildOutcome:
        """Run the build to its end and clean up.

        Raises:
            Exception: an error of ``on_event``, or a bug. The clean-up happens before.
        """
        try:
            self._begin()
            while not self._is_over():
                self._wait_for_news()()
            outcome = self._concluded()
        except BaseException as error:
            if self._log.masker is not None:  # a crash report quotes the error
                self._log.masker.mask_error(error)
            self._build.halt.set()
            self._steps.stop(StopReason.INTERNAL_ERROR, Status.CANCELLED, 0.0)
            self._clean_up(successful=False)
            raise
        for warning in self._clean_up(successful=outcome.status is Status.SUCCESS):
            self._build.warn(warning)
        outcome = replace(outcome, warnings=tuple(self._build.warnings))
        self._emit(build_finished(outcome, self._clock.now()))
        return outcome

    # -- waiting ---------------------------------------------------------------------------------

    def _wait_for_news(self) -> Callable[[], None]:
        now = self._clock.monotonic()
        wake_at = self._give_up_at if self._decision else min(self._deadline, self._steps.deadline)
        if self._early is not None and self._decision is None and not self._building:
            wake_at = float("inf")
        return self._inbox.wait(wake_at - now) or self._on_deadline

    def _on_deadline(self) -> None:
        now = self._clock.monotonic()
        if self._decision is None and now >= self._deadline:
            self._decide(decisions.TIMED_OUT)
        self._steps.stop_overdue(now)
        if now >= self._give_up_at:
            self._inbox.pending.clear()
            self._steps.abandon()

    def _is_over(self) -> bool:
        return self._decision is not None and not self._inbox.pending and not self._steps.running

    # -- setup and steps -------------------------------------------------------------------------

    def _begin(self) -> None:
        self._cancel.listen(partial(self._inbox.tell, self._decide, decisions.CANCELLED))
        self._setup.announce(self._started_at)
        self._setup.begin()

    def _go_on(self) -> None:
        """Create or start the first steps as soon as the setup permits it."""
        if self._decision is not None:
            return
        if not self._created_first and self._setup.may_create:
            self._created_first = True
            if self._resume is None:
                self._steps.create_first()
        if not self._building and self._setup.may_start:
            self._building = True
            if self._resume is None:
                self._begin_steps()
            else:
                self._resume_steps(self._resume)

    def _begin_steps(self) -> None:
        self._phases.end(phases.SETUP)
        self._phases.begin(phases.BUILD)
        self._log.line("BUILD")
        self._steps.begin()
        self._setup.note_strangers()

    def _resume_steps(self, state: ResumeState) -> None:
        self._phases.end(phases.SETUP)
        if phases.BUILD not in self._phases.spans:
            self._phases.begin(phases.BUILD)
        self._log.line_once("BUILD")
        decision = self._steps.resume(state, self._setup.found) or self._early
        if decision is decisions.CANCELLED and self._clock.monotonic() >= self._deadline:
            decision = decisions.TIMED_OUT
        if decision is None:
            self._steps.begin()
        else:
            self._decide(decision)

    # -- push and end ----------------------------------------------------------------------------

    def _decide(self, decision: Decision | None) -> None:
        """End the build; the first decision counts. None: all steps have ended, start the push."""
        if self._decision is not None:
            return
        if decision is None:
            self._publishing.begin()
            return
        if self._resume is not None and not self._building and decision in _FROM_OUTSIDE:
            self._early = decision  # running steps must be adopted before they can be stopped
            return
        self._decision = self._without_secrets(decision)
        if decision.status is Status.SUCCESS:
            return
        self._setup.forget_secrets()
        self._build.halt.set()
        grace_s = self._build.options.grace_s(decision.status)
        self._give_up_at = self._clock.monotonic() + grace_s + _GIVE_UP_S
        self._steps.stop(StopReason(decision.status), Status.CANCELLED, grace_s)

    def _without_secrets(self, decision: Decision) -> Decision:
        """Mask secrets in messages of engine and registries, which may quote a step's arguments."""
        masked = self._log.masked_text
        return replace(decision, error=masked(decision.error), detail=masked(decision.detail))

    def _concluded(self) -> BuildOutcome:
        """Write the last lines of the log, and return the outcome."""
        decision = self._decision or decisions.SUCCEEDED
        self._phases.end_all()
        self._log.line_once(decision.word)
        if decision.error:
            self._log.line_once(f"ERROR: {decision.error}")
        return self._outcome(decision)

    def _outcome(self, decision: Decision) -> BuildOutcome:
        return BuildOutcome(
            status=decision.status,
            started_at=self._started_at,
            finished_at=self._clock.now(),
            error=decision.error,
            stopped_by=decisions.stopped_by(
                decision, self._cancel.reason, self._build.plan.timeout_s
            ),
            failure_type=decision.failure_type,
            failure_detail=decision.detail,
            failing_step=decision.failing_step,
            steps=tuple(self._steps.outcomes),
            phases=dict(self._phases.spans),
            images=tuple(self._publishing.pushed),
            packages=tuple(self._publishing.published),
            objects=self._publishing.uploaded,
            provenance=self._setup.provenance,
            attestations=self._publishing.attestations,
        )

    def _clean_up(self, *, successful: bool) -> list[str]:
        """Remove containers, volumes and network of the build, and close the log.

        The clean-up has its own time limit, apart from the build's timeout.

        Returns:
            Warnings for the user: leftovers, and changes of the source during the build.
        """
        parts = CleanUpParts()
        changed: list[str] = []
        allowed_s = self._build.options.cleanup_s
        thread = threading.Thread(
            target=self._remove_all,
            args=(parts, changed, successful),
            name="build-clean-up",
            daemon=True,
        )
        thread.start()
        thread.join(allowed_s)
        if thread.is_alive():
            doing = ", ".join(parts.under_way())
            parts.failures.append(
                f"cleaning up took longer than {allowed_s:g}s; it was still {doing}"
            )
        self._log.close()
        # An unavailable engine causes the same error for every container: report it once.
        left = dict.fromkeys([*parts.failures, *self._build.remover.failures])
        return [
            *(f"something of the build was left behind: {failure}" for failure in left),
            *_changed_text(changed),
        ]

    def _remove_all(self, parts: CleanUpParts, changed: list[str], successful: bool) -> None:
        build = self._build
        parts.do(
            "looking whether the source changed",
            lambda: changed.extend(self._workspace.changed_on_host()),
        )
        if self._building and build.plan.docker_socket and self._resume is None:
            parts.do("removing what steps left running", self._resources.remove_strays)
        # A build that deployed is cleaned up here: `Workspace.release` may keep its workspace.
        has_deployed = any(one.deployments for one in self._steps.outcomes)
        if successful and build.options.leave_cleanup_to_guardian and not has_deployed:
            return
        parts.do("removing containers that were not needed", self._steps.discard_rest)
        parts.do("removing the containers of steps", build.remover.finish)
        self._resources.remove(
            parts,
            self._workspace,
            sweep=not successful or self._resume is not None,
        )
        parts.do("taking private names off images", build.private_names.take_away)


def _changed_text(paths: list[str]) -> list[str]:
    if not paths:
        return []
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return [
        f"the source changed while the build ran: {', '.join(paths[:3])}{more}; steps may have "
        "seen a mixture of old and new files"
    ]


class BuildSetup:
    """Fills the running build. Belongs to the loop's thread; only spawned work runs in others.

    Args:
        build: the build. It ends when a part of the setup fails.
        resources: network, volumes and home.
        on_part: called when a part is ready; see `may_create` and `may_start`.
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
        """The containers of begun steps without a stored end, if the build is resumed."""

    @property
    def may_create(self) -> bool:
        """Return whether everything exists that the first containers need at their creation."""
        return not self._inbox.pending & _NEEDED_TO_CREATE

    @property
    def may_start(self) -> bool:
        """Return whether everything exists that the first steps need to run."""
        return not self._inbox.pending & _NEEDED_TO_START

    def announce(self, started_at: datetime) -> None:
        """Report the start of the build, except for events that were reported before."""
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
        """Record which containers are on the network before the first steps may start others."""
        if self._build.plan.docker_socket:
            self._spawn("strangers", self._resources.note_strangers, self._on_made)

    def forget_secrets(self) -> None:
        """Stop waiting for secrets, since the build ends and secrets need no clean-up."""
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

        A pre-started container may run although its step has not begun: its program waits at a
        gate. The engine may handle the last request of a process after its death: a container that
        is not started at this check may start a moment later. So the engine removes the container
        only if it is still not started.
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
            # through the queue, so that it follows the log's first lines
            partial(tell, build.log.line),
            build.clock,
            partial(tell, self._emit),
        )
        return self._workspace.prepare(
            Preparation(build.engine, build.plan.build_id, build.labels, build.halt, report)
        )

    def _on_workspace(self, workspace: PreparedWorkspace) -> None:
        self._build.workspace = workspace
        self.provenance = workspace.provenance
        if self._resume is None:
            self._report_source(workspace)
            self._warn_of_mounts(workspace)
        self._on_part()

    def _warn_of_mounts(self, workspace: PreparedWorkspace) -> None:
        """Warn of ``docker run -v $PWD:/x`` if the engine has the workspace at another path."""
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

    def _report_source(self, workspace: PreparedWorkspace) -> None:
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
        # one error for all secrets, so that the user can correct all of them at once
        if errors:
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
