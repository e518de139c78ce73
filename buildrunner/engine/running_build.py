"""The shared state of one running build, and its context."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial

import msgspec

from buildrunner.containers.image_name import PrivateNames
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.engine import outcome as decisions
from buildrunner.engine.cancellation import CancelToken, Clock
from buildrunner.engine.events import BuildEvent, Warned
from buildrunner.engine.image_pulls import ImagePulls, StepImages
from buildrunner.engine.inbox import Inbox
from buildrunner.engine.log.pipeline import LogPipeline, LogSink
from buildrunner.engine.outcome import Decision
from buildrunner.engine.progress import Phases
from buildrunner.engine.protocols import (
    Attester,
    ObjectUploader,
    PackagePublisher,
    SecretResolver,
)
from buildrunner.engine.resources import ContainerRemover
from buildrunner.engine.resume import ResumeState
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.source_phase import BegunBuild
from buildrunner.engine.step_container import HOME, build_labels, files_archive
from buildrunner.plan.build_plan import BuildPlan, SecretReference
from buildrunner.workspace.protocol import PreparedWorkspace, Workspace


class RunContext(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a run of a plan needs besides the plan.

    Attributes:
        engine: runs the containers. Not closed.
        workspace: fills ``/workspace``.
        secrets: turns the plan's references into values.
        sink: takes the log, already masked. Not closed. The build fails when the sink breaks.
        on_event: takes events, always in the thread that runs the build. An exception that it
            raises ends the build.
        cancel: ends the build as CANCELLED when it is set.
        options: choices of the machine and the user.
        clock: time and jitter.
        publisher: publishes the plan's packages; only needed for a plan with packages.
        uploader: uploads ``artifacts.objects``; only needed for a plan with objects.
        attester: attests what the build has published; None attests nothing.
        begun: the build began before it was planned (see `SourcePhase`). Its first lines and events
            are written.
        resume: an earlier process, which is dead, began the build; resume it. The workspace must be
            that process's (`ResumedWorkspace`), and it must have run with ``options.keep_logs``.
    """

    engine: ContainerEngine
    workspace: Workspace
    secrets: SecretResolver
    sink: LogSink
    on_event: Callable[[BuildEvent], None]
    cancel: CancelToken
    options: RunOptions = RunOptions()
    clock: Clock = msgspec.field(default_factory=Clock)
    publisher: PackagePublisher | None = None
    uploader: ObjectUploader | None = None
    attester: Attester | None = None
    begun: BegunBuild | None = None
    resume: ResumeState | None = None


class RunningBuild:
    """The state of a running build that its setup, steps and publishing share.

    The setup fills it before the first step starts.

    Args:
        plan: the plan that runs.
        context: everything else that the run needs.
        decide: ends the build. The first decision counts; None means that all steps have ended.

    Attributes:
        halt: set when the build ends early; releases threads that wait for a pull or a push.
        inbox: takes the reports of threads to the loop.
        workspace: mounted at ``/workspace``.
        secrets: values of all secrets of the build.
        warnings: the warnings for the user so far, with secrets masked.
        gate: path of the start gate's program in pre-started containers; empty if there is none.
    """

    workspace: PreparedWorkspace

    def __init__(
        self,
        plan: BuildPlan,
        context: RunContext,
        decide: Callable[[Decision | None], None],
    ) -> None:
        resume = context.resume
        options = context.options
        self.plan = plan
        self.context = context
        self.engine = context.engine
        self.options = options
        self.clock = context.clock
        self.resume = resume
        self.decide = decide
        self.emit = context.on_event
        self.halt = threading.Event()
        self.inbox = Inbox()
        self.report = partial(self.inbox.tell, self.emit)
        self.log = LogPipeline(
            context.sink,
            context.clock,
            partial(self.inbox.tell, self._log_broke),
            resume.log if resume else None,
        )
        self.phases = Phases(context.clock, self.emit)
        images = StepImages(self.engine, options.public_images)
        self.pulls = ImagePulls(
            plan,
            images,
            options.image_aliases,
            halt=self.halt,
            clock=self.clock,
            report=self.report,
        )
        self.secrets: Mapping[SecretReference, str] = {}
        self.remover = ContainerRemover(self.engine)
        self.private_names = PrivateNames(self.engine, plan.build_id)
        self.labels = build_labels(plan, options)
        self.warnings: list[str] = list(resume.warnings) if resume else []
        self.gate = ""
        self._home_files: dict[str, bytes] = {}
        self._home_lock = threading.Lock()

    def report_and_wait(self, event: BuildEvent) -> None:
        """Report an event, and return once the listener has handled it. Not for the loop's thread.

        If the loop ends before, this method never returns: the work behind it must not be done.
        """
        handled = threading.Event()

        def report() -> None:
            self.emit(event)
            handled.set()

        self.inbox.tell(report)
        handled.wait()

    def warn(self, text: str) -> None:
        """Warn the user, with secrets masked. For the loop's thread."""
        text = self.log.masked_text(text)
        self.warnings.append(text)
        self.emit(Warned(at=self.clock.now(), text=text))

    def leave_home_files(self, files: dict[str, bytes]) -> None:
        """Register files, by absolute path, that `fill_home` copies into the home volume."""
        self._home_files = files

    def fill_home(self, container: str) -> None:
        """Copy the registered files into the home volume through ``container``, once."""
        if not self._home_files:
            return
        with self._home_lock:
            if self._home_files:
                tar = files_archive(self._home_files, mode=0o600)
                self.engine.fill_mount(container, HOME, (tar,))
                self._home_files = {}

    def _log_broke(self, error: Exception) -> None:
        self.decide(decisions.log_broken(error))
