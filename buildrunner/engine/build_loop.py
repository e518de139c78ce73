"""The loop that owns a running build: it decides, threads act and report back.

Threads (setup, one per running step, pulls, push) put what happened into the loop's inbox; the loop
wakes for that, for a cancel, or for a deadline. It never waits for the engine itself: to free a
blocked thread it kills the container that the thread waits for, or sets ``halt``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from msgspec.structs import replace

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine import outcome as decisions
from buildrunner.engine import progress as phases
from buildrunner.engine.build_setup import BuildSetup
from buildrunner.engine.cancellation import CancelToken, Clock
from buildrunner.engine.events import BuildEvent, Warned
from buildrunner.engine.inbox import Inbox
from buildrunner.engine.live_container import Workbench
from buildrunner.engine.log.sink import LogSink
from buildrunner.engine.namespaces import NamespacePool
from buildrunner.engine.outcome import BuildOutcome, Decision, build_finished
from buildrunner.engine.progress import Phases
from buildrunner.engine.protocols import ObjectUploader, PackagePublisher, SecretResolver
from buildrunner.engine.publishing import Publishing
from buildrunner.engine.resources import BuildResources, CleanUpParts
from buildrunner.engine.resume import ResumeState
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.source_phase import BegunBuild
from buildrunner.engine.step_runs import StepRuns
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.plan.step_graph import StopReason
from buildrunner.spec.model.build import Status
from buildrunner.workspace.protocol import Workspace

_FROM_OUTSIDE = (decisions.CANCELLED, decisions.TIMED_OUT)
_GIVE_UP_S = 10.0  # behind the grace of killed steps: then their threads are left alone


class BuildLoop:
    """One run of one plan. `run` is called once."""

    def __init__(
        self,
        plan: BuildPlan,
        *,
        engine: ContainerEngine,
        workspace: Workspace,
        secrets: SecretResolver,
        sink: LogSink,
        on_event: Callable[[BuildEvent], None],
        cancel: CancelToken,
        options: RunOptions,
        clock: Clock,
        publisher: PackagePublisher | None = None,
        uploader: ObjectUploader | None = None,
        begun: BegunBuild | None = None,
        resume: ResumeState | None = None,
        namespaces: NamespacePool | None = None,
    ) -> None:
        if resume is not None:  # the namespaces' first owner is gone; steps set up their own
            options = replace(options, pause_image=None)
        self._resume = resume
        self._emit = on_event
        self._cancel = cancel
        self._clock = clock
        self._workspace = workspace
        self._inbox = inbox = Inbox()
        self._bench = bench = Workbench(
            plan,
            engine=engine,
            sink=sink,
            options=options,
            clock=clock,
            report=partial(inbox.tell, on_event),
            on_log_failure=partial(inbox.tell, self._log_broke),
            stored=resume.log if resume else None,
        )
        self._log = bench.log
        self._resources = BuildResources(plan, engine, options)
        self._phases = Phases(clock, on_event)
        self._setup = BuildSetup(
            bench,
            inbox=inbox,
            resources=self._resources,
            workspace=workspace,
            secrets=secrets,
            phases=self._phases,
            begun=begun,
            resume=resume,
            emit=on_event,
            warn=self._warn,
            decide=self._decide,
            on_part=self._go_on,
        )
        self._steps = StepRuns(
            bench,
            tell=inbox.tell,
            emit=on_event,
            warn=self._warn,
            decide=self._decide,
            pool=namespaces or NamespacePool(plan, engine, options),
        )
        self._publishing = Publishing(
            bench,
            inbox=inbox,
            phases=self._phases,
            resources=self._resources,
            uploader=uploader,
            publisher=publisher,
            emit=on_event,
            warn=self._warn,
            decide=self._decide,
        )
        self._decision: Decision | None = None
        self._give_up_at = float("inf")
        self._warnings: list[str] = list(resume.warnings) if resume else []
        self._created_first = False
        self._building = False
        self._started_at = begun.at if begun else clock.now()
        started_s = begun.monotonic_s if begun else clock.monotonic()
        if resume is not None:
            self._started_at = resume.started_at
            started_s -= (clock.now() - resume.started_at).total_seconds()
        self._deadline = started_s + plan.timeout_s
        self._early: Decision | None = None

    def run(self) -> BuildOutcome:
        """Run the build to its end, whatever that is, and clean up.

        Raises:
            Exception: what ``on_event`` raised, or a bug; everything is removed all the same.
        """
        try:
            self._begin()
            while not self._is_over():
                self._wait_for_news()()
            outcome = self._concluded()
        except BaseException as error:
            if self._log.masker is not None:  # a report of the bug quotes it
                self._log.masker.mask_error(error)
            self._bench.halt.set()
            self._steps.stop(StopReason.INTERNAL_ERROR, Status.CANCELLED, 0.0)
            self._clean_up(successful=False)
            raise
        for warning in self._clean_up(successful=outcome.status is Status.SUCCESS):
            self._warn(warning)
        outcome = replace(outcome, warnings=tuple(self._warnings))
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
        if self._resume is None:
            self._steps.open_namespaces()
        self._setup.begin()

    def _go_on(self) -> None:
        """Go on as soon as what comes next has all it needs."""
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
        """The build ends so; the first word counts. None: all steps are through, go on to push."""
        if self._decision is not None:
            return
        if decision is None:
            self._publishing.begin()
            return
        if self._resume is not None and not self._building and decision in _FROM_OUTSIDE:
            self._early = decision  # what runs must be taken over before it can be stopped
            return
        self._decision = self._without_secrets(decision)
        if decision.status is Status.SUCCESS:
            return
        self._setup.forget_secrets()
        self._bench.halt.set()
        grace_s = self._bench.options.grace_s(decision.status)
        self._give_up_at = self._clock.monotonic() + grace_s + _GIVE_UP_S
        self._steps.stop(StopReason(decision.status), Status.CANCELLED, grace_s)

    def _without_secrets(self, decision: Decision) -> Decision:
        """What engine and registries say may quote what a step was given."""
        masked = self._log.masked_text
        return replace(decision, error=masked(decision.error), detail=masked(decision.detail))

    def _log_broke(self, error: Exception) -> None:
        self._decide(decisions.log_broken(error))

    def _warn(self, text: str) -> None:
        text = self._log.masked_text(text)
        self._warnings.append(text)
        self._emit(Warned(at=self._clock.now(), text=text))

    def _concluded(self) -> BuildOutcome:
        """The outcome, after its last lines went to the log."""
        decision = self._decision or decisions.SUCCEEDED
        self._phases.end_all()
        self._log.line_once(decision.word)
        if decision.error:
            self._log.line_once(f"ERROR: {decision.error}")
        return BuildOutcome(
            status=decision.status,
            started_at=self._started_at,
            finished_at=self._clock.now(),
            error=decision.error,
            stopped_by=decisions.stopped_by(
                decision, self._cancel.reason, self._bench.plan.timeout_s
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
        )

    def _clean_up(self, *, successful: bool) -> list[str]:
        """Remove what the build made; what a person should know about it."""
        strays = self._building and self._bench.plan.docker_socket and self._resume is None
        return clean_up(
            self._bench,
            self._steps,
            self._resources,
            self._workspace,
            strays=strays,
            sweep=not successful or self._resume is not None,
            leave=successful and self._bench.options.leave_cleanup_to_guardian,
        )


def clean_up(
    bench: Workbench,
    steps: StepRuns,
    resources: BuildResources,
    workspace: Workspace,
    *,
    strays: bool,
    sweep: bool,
    leave: bool,
) -> list[str]:
    """Remove what the build made, with time of its own whatever the build's clock says.

    Closes the log, too.

    Args:
        bench: what the steps worked with.
        steps: none of them runs any more.
        resources: network, volumes and home.
        workspace: released.
        strays: remove what the steps themselves left running on the network.
        sweep: look for whatever carries the build's label.
        leave: what the build itself made is removed by somebody else.

    Returns:
        What a person should know about it.
    """
    parts = CleanUpParts()
    changed: list[str] = []

    def work() -> None:
        parts.do(
            "looking whether the source changed",
            lambda: changed.extend(workspace.changed_on_host()),
        )
        if strays:
            parts.do("removing what steps left running", resources.remove_strays)
        if leave:
            return
        parts.do("removing containers that were not needed", steps.discard_rest)
        parts.do("removing the containers of steps", bench.reaper.finish)
        resources.remove(parts, workspace, steps.pool.containers, sweep=sweep)
        parts.do("taking private names off images", bench.private_names.take_away)

    allowed_s = bench.options.cleanup_s
    thread = threading.Thread(target=work, name="build-clean-up", daemon=True)
    thread.start()
    thread.join(allowed_s)
    if thread.is_alive():
        doing = ", ".join(parts.under_way())
        parts.failures.append(f"cleaning up took longer than {allowed_s:g}s; it was still {doing}")
    bench.log.close()
    # An engine that is gone says so of every container and volume: once is enough.
    left = dict.fromkeys([*parts.failures, *bench.reaper.failures])
    return [
        *(f"something of the build was left behind: {failure}" for failure in left),
        *_changed_text(changed),
    ]


def _changed_text(paths: list[str]) -> list[str]:
    if not paths:
        return []
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return [
        f"the source changed while the build ran: {', '.join(paths[:3])}{more}; steps may have "
        "seen a mixture of old and new files"
    ]
