"""The loop that owns a running build: it decides, threads act and report back.

Threads (setup, one per running step, pulls, push) put what happened on the loop's queue; the loop
wakes for that, for a cancel, or for a deadline. It never waits for the engine itself: to free a
blocked thread it kills the container that the thread waits for, or sets ``halt``.
"""

from __future__ import annotations

import threading
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner.containers.engine_protocol import LABEL_BUILD, LABEL_STEP
from buildrunner.engine import decision as decisions
from buildrunner.engine import phases
from buildrunner.engine.build_resources import BuildResources, attempt
from buildrunner.engine.events import (
    BuildFinished,
    BuildStarted,
    SourceFetched,
    Warned,
)
from buildrunner.engine.image_pulls import ImagePulls
from buildrunner.engine.log_pipeline import LogPipeline
from buildrunner.engine.masking import Masker
from buildrunner.engine.namespaces import NamespacePool
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.engine.phases import Phases
from buildrunner.engine.publishing import Publishing
from buildrunner.engine.step_runs import StepRuns
from buildrunner.engine.transfer_report import FileTransferReport
from buildrunner.engine.workbench import Workbench
from buildrunner.errors import BuildrunnerError, SecretError
from buildrunner.plan.step_graph import StopReason
from buildrunner.spec.model import Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.containers.engine_protocol import ContainerEngine, FoundContainer
    from buildrunner.engine.cancel_token import CancelToken
    from buildrunner.engine.clock import Clock
    from buildrunner.engine.decision import Decision
    from buildrunner.engine.events import BuildEvent
    from buildrunner.engine.object_upload import ObjectUploader
    from buildrunner.engine.package_publishing import PackagePublisher
    from buildrunner.engine.resume import ResumeState
    from buildrunner.engine.run_options import RunOptions
    from buildrunner.engine.secret_resolver import SecretResolver
    from buildrunner.engine.source_phase import BegunBuild
    from buildrunner.engine.workspace_protocol import PreparedWorkspace, Workspace
    from buildrunner.logs.sink import LogSink
    from buildrunner.plan.build_plan import BuildPlan, SecretReference
    from buildrunner.spec.model_results import SourceProvenance

_NEEDED_TO_CREATE = frozenset({"volumes", "workspace", "secrets"})
_NEEDED_TO_START = frozenset({"network", "volumes", "workspace", "secrets", "found"})
_STOP_REASONS = {
    Status.FAILURE: StopReason.FAILURE,
    Status.TIMEOUT: StopReason.TIMEOUT,
    Status.CANCELLED: StopReason.CANCELLED,
    Status.INTERNAL_ERROR: StopReason.INTERNAL_ERROR,
}
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
        self._plan = plan
        self._begun = begun
        self._engine = engine
        self._workspace = workspace
        self._secrets = secrets
        self._emit = on_event
        self._cancel = cancel
        self._options = options
        self._clock = clock
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._halt = threading.Event()
        self._log = LogPipeline(
            sink,
            clock,
            lambda error: self._tell(self._log_broke, error),
            resume.log if resume else None,
        )
        self._pulls = ImagePulls(
            plan,
            engine,
            options.image_aliases,
            halt=self._halt,
            clock=clock,
            report=self._report,
        )
        self._bench = Workbench(
            plan,
            engine=engine,
            pulls=self._pulls,
            log=self._log,
            options=options,
            clock=clock,
            halt=self._halt,
        )
        self._resources = BuildResources(plan, engine, options)
        self._publishing = Publishing(
            self._bench,
            uploader=uploader,
            publisher=publisher,
            report=self._report,
            warn=partial(self._tell, self._warn),
        )
        self._phases = Phases(clock, on_event)
        self._steps = StepRuns(
            self._bench,
            tell=self._tell,
            emit=on_event,
            warn=self._warn,
            decide=self._decide,
            pool=namespaces or NamespacePool(plan, engine, options),
        )
        self._pending: set[str] = set()
        self._decision: Decision | None = None
        self._give_up_at = float("inf")
        self._warnings: list[str] = list(resume.warnings) if resume else []
        self._provenance: SourceProvenance | None = None
        self._created_first = False
        self._building = False
        self._started_at = begun.at if begun else clock.now()
        started_s = begun.monotonic_s if begun else clock.monotonic()
        if resume is not None:
            self._started_at = resume.started_at
            started_s -= (clock.now() - resume.started_at).total_seconds()
        self._deadline = started_s + plan.timeout_s
        self._found: tuple[FoundContainer, ...] = ()
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
            self._halt.set()
            self._steps.stop(StopReason.INTERNAL_ERROR, Status.CANCELLED, 0.0)
            self._clean_up(successful=False)
            raise
        for warning in self._clean_up(successful=outcome.status is Status.SUCCESS):
            self._warn(warning)
        outcome = replace(outcome, warnings=tuple(self._warnings))
        self._emit(
            BuildFinished(
                at=self._clock.now(),
                status=outcome.status.name,
                error=outcome.error,
                failure_type=outcome.failure_type.name if outcome.failure_type else "",
                failing_step=outcome.failing_step,
            )
        )
        return outcome

    # -- the queue -------------------------------------------------------------------------------

    def _tell(self, handler: Callable[..., None], *arguments: object) -> None:
        """Let the loop's thread call ``handler``. Any thread, and a signal handler, may do this."""
        self._inbox.put(partial(handler, *arguments))

    def _report(self, event: BuildEvent) -> None:
        self._tell(self._emit, event)

    def _wait_for_news(self) -> Callable[[], None]:
        now = self._clock.monotonic()
        wake_at = self._give_up_at if self._decision else min(self._deadline, self._steps.deadline)
        if self._early is not None and self._decision is None and not self._building:
            wake_at = float("inf")
        try:
            if wake_at == float("inf"):
                return self._inbox.get()
            return self._inbox.get(timeout=max(0.0, min(wake_at - now, threading.TIMEOUT_MAX)))
        except Empty:
            return self._on_deadline

    def _on_deadline(self) -> None:
        now = self._clock.monotonic()
        if self._decision is None and now >= self._deadline:
            self._decide(decisions.TIMED_OUT)
        self._steps.stop_overdue(now)
        if now >= self._give_up_at:
            self._pending.clear()
            self._steps.abandon()

    def _is_over(self) -> bool:
        return self._decision is not None and not self._pending and not self._steps.running

    # -- setup and source ------------------------------------------------------------------------

    def _begin(self) -> None:
        self._cancel.listen(lambda: self._tell(self._decide, decisions.CANCELLED))
        if self._resume is None:
            self._announce()
            self._steps.open_namespaces()
        else:
            self._phases.spans.update(self._resume.phases)
            self._spawn("found", partial(self._sort_found, self._resume), self._on_found)
        self._spawn("network", self._resources.make_network, self._on_set_up)
        self._spawn("volumes", self._make_volumes, self._on_set_up)
        self._spawn("workspace", self._prepare_workspace, self._on_workspace)
        self._spawn("images", self._pulls.prefetch, self._on_set_up)
        references = {one for step in self._plan.steps for one in step.secrets}
        if references:
            self._spawn("secrets", partial(self._resolve, references), self._on_secrets)
        if self._begun is None and self._resume is None:
            self._log.line(f'starting build "{self._plan.build_id}"\n\nFETCHSOURCE')

    def _announce(self) -> None:
        if self._begun is None:
            self._emit(
                BuildStarted(
                    at=self._started_at, build_id=self._plan.build_id, steps=len(self._plan.steps)
                )
            )
        self._phases.begin(phases.SETUP)
        if self._begun is None:
            self._phases.begin(phases.FETCH)
        else:
            self._phases.go_on(phases.FETCH, self._started_at)

    def _make_volumes(self) -> None:
        self._resources.make_volumes(with_files=self._resume is None)

    def _sort_found(self, state: ResumeState) -> tuple[FoundContainer, ...]:
        """The containers to go on with; those that never started or have ended are removed.

        What a process asked for at its last moment is done after its death: a container that was
        only created when we looked may be one whose step begins just then.
        """
        mine = {LABEL_BUILD: self._plan.build_id, LABEL_STEP: ""}
        going_on = []
        for one in self._engine.find_containers(mine):
            if int(one.labels[LABEL_STEP]) in state.outcomes:
                self._engine.remove_container(one.id)
            elif one.was_started or not self._engine.remove_unstarted(one.id):
                going_on.append(one)
        return tuple(going_on)

    def _on_found(self, _name: str, found: object) -> None:
        self._found = found  # type: ignore[assignment]
        self._after_part()

    def _spawn(
        self, name: str, work: Callable[[], object], done: Callable[[str, object], None]
    ) -> None:
        """Do ``work`` in a thread; the loop is told its result, or its error."""

        def run() -> None:
            try:
                result = work()
            except Exception as error:  # noqa: BLE001  (the loop knows which are bugs)
                self._tell(self._on_failed_part, name, error)
            else:
                self._tell(self._on_part, name, done, result)

        self._pending.add(name)
        threading.Thread(target=run, name=f"build-{name}", daemon=True).start()

    def _on_part(self, name: str, done: Callable[[str, object], None], result: object) -> None:
        self._pending.discard(name)
        done(name, result)

    def _on_failed_part(self, name: str, error: Exception) -> None:
        self._pending.discard(name)
        if not isinstance(error, BuildrunnerError | OSError):
            raise error
        if name == "push":
            self._decide(decisions.failed_push(error))
        else:
            self._decide(decisions.failed_setup(error))

    def _prepare_workspace(self) -> PreparedWorkspace:
        labels = self._bench.labels
        # By way of the loop's queue: behind the log's first lines.
        report = FileTransferReport(
            "fetch", partial(self._tell, self._log.line), self._clock, self._report
        )
        return self._workspace.prepare(
            self._engine, self._plan.build_id, labels, self._halt, report
        )

    def _resolve(self, references: set[SecretReference]) -> dict[SecretReference, str]:
        values = {}
        errors: list[SecretError] = []
        for reference in sorted(references, key=lambda one: one.env):
            try:
                values[reference] = self._secrets.resolve(reference)
            except SecretError as error:
                errors.append(error)
        if errors:  # all of them at once: who sets one wants to know of the others
            raise SecretError("; ".join(decisions.text_of(error) for error in errors))
        return values

    def _on_set_up(self, name: str, _result: object) -> None:
        if name == "volumes":
            self._bench.leave_home_files(self._resources.home_missing)
        self._after_part()

    def _on_secrets(self, _name: str, values: object) -> None:
        self._bench.secrets = values  # type: ignore[assignment]
        masker = Masker(self._bench.secrets.values())
        if masker:
            self._log.masker = masker
        if masker.too_short:
            self._warn(
                f"{masker.too_short} secret value(s) are shorter than 4 characters and can't be "
                "hidden in the log"
            )
        self._after_part()

    def _on_workspace(self, _name: str, prepared: object) -> None:
        workspace: PreparedWorkspace = prepared  # type: ignore[assignment]
        self._bench.workspace = workspace
        self._provenance = workspace.provenance
        if self._resume is None:
            self._tell_of_source(workspace)
        self._after_part()

    def _tell_of_source(self, workspace: PreparedWorkspace) -> None:
        for line in workspace.log:
            self._log.line(line)
        self._emit(
            SourceFetched(
                at=self._clock.now(),
                files=workspace.files,
                size_bytes=workspace.size_bytes,
                way=workspace.way,
            )
        )
        self._phases.end(phases.FETCH)

    def _after_part(self) -> None:
        """Go on as soon as what comes next has all it needs."""
        if self._decision is not None:
            return
        if not self._created_first and not self._pending & _NEEDED_TO_CREATE:
            self._created_first = True
            if self._resume is None:
                self._steps.create_first()
        if not self._building and not self._pending & _NEEDED_TO_START:
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
        if self._plan.docker_socket:
            self._spawn("strangers", self._resources.note_strangers, self._on_set_up)

    def _resume_steps(self, state: ResumeState) -> None:
        self._phases.end(phases.SETUP)
        if phases.BUILD not in self._phases.spans:
            self._phases.begin(phases.BUILD)
        self._log.line_once("BUILD")
        decision = self._steps.resume(state, self._found) or self._early
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
            self._after_steps()
            return
        if self._resume is not None and not self._building and decision in _FROM_OUTSIDE:
            self._early = decision  # what runs must be taken over before it can be stopped
            return
        self._decision = self._without_secrets(decision)
        if decision.status is Status.SUCCESS:
            return
        # Nothing has to be undone of secrets that are still being asked for: nobody waits for them.
        self._pending.discard("secrets")
        self._halt.set()
        grace_s = self._grace_s(decision)
        self._give_up_at = self._clock.monotonic() + grace_s + _GIVE_UP_S
        self._steps.stop(_STOP_REASONS[decision.status], Status.CANCELLED, grace_s)

    def _without_secrets(self, decision: Decision) -> Decision:
        """What engine and registries say may quote what a step was given."""
        error, detail = (
            self._log.masked_text(decision.error),
            self._log.masked_text(decision.detail),
        )
        return replace(decision, error=error, detail=detail)

    def _grace_s(self, decision: Decision) -> float:
        match decision.status:
            case Status.CANCELLED:
                return self._options.cancel_grace_s
            case Status.TIMEOUT:
                return self._options.timeout_grace_s
            case _:
                return self._options.failure_grace_s

    def _after_steps(self) -> None:
        if self._publishing.is_needed():
            self._spawn("check", self._publishing.missing, self._on_checked)
        else:
            self._phases.end(phases.BUILD)
            self._log.line_once("PUSH")
            self._decide(decisions.SUCCEEDED)

    def _on_checked(self, _name: str, result: object) -> None:
        missing: list[str] = result  # type: ignore[assignment]
        if self._decision is not None:
            return
        if missing:
            self._decide(decisions.images_not_found(missing))
            return
        self._phases.end(phases.BUILD)
        if phases.PUSH not in self._phases.spans:
            self._phases.begin(phases.PUSH)
        self._log.line_once("PUSH")
        publish = partial(self._publishing.run, self._resources.home_folder)
        self._spawn("push", publish, self._on_pushed)

    def _on_pushed(self, _name: str, _result: object) -> None:
        self._phases.end(phases.PUSH)
        self._decide(decisions.SUCCEEDED)

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
            failure_type=decision.failure_type,
            failure_detail=decision.detail,
            failing_step=decision.failing_step,
            steps=tuple(self._steps.outcomes),
            phases=dict(self._phases.spans),
            images=tuple(self._publishing.pushed),
            packages=tuple(self._publishing.published),
            objects=self._publishing.uploaded,
            provenance=self._provenance,
        )

    def _clean_up(self, *, successful: bool) -> list[str]:
        """Remove what the build made, with time of its own whatever the build's clock says.

        Returns:
            What a person should know about it.
        """
        leave = successful and self._options.leave_cleanup_to_guardian
        failures: list[str] = []
        changed: list[str] = []

        def work() -> None:
            attempt(failures, lambda: changed.extend(self._workspace.changed_on_host()))
            if self._building and self._plan.docker_socket and self._resume is None:
                attempt(failures, self._resources.remove_strays)
            if leave:
                return
            attempt(failures, self._steps.discard_rest)
            attempt(failures, self._bench.reaper.finish)
            failures.extend(
                self._resources.remove(
                    self._workspace,
                    self._steps.pool.containers,
                    sweep=not successful or self._resume is not None,
                )
            )

        thread = threading.Thread(target=work, name="build-clean-up", daemon=True)
        thread.start()
        thread.join(self._options.cleanup_s)
        if thread.is_alive():
            failures.append(f"cleaning up took longer than {self._options.cleanup_s:g}s")
        self._log.close()
        left = [*failures, *self._bench.reaper.failures]
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
