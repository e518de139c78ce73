"""The run of one step: pull, create, start, follow the output, wait, read the result.

`StepRun` does this in a thread. `LiveContainer` is its container on the engine, perhaps
pre-started. `StepVerdict` makes the outcome of the step and writes its error: exit code, timeout,
lack of memory, or a failed pull.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial

from msgspec.structs import replace

from buildrunner.containers.image_name import is_image_id
from buildrunner.containers.protocol import ContainerExit, ContainerSpec, ImageInfo
from buildrunner.engine.deploy_commands import suggested
from buildrunner.engine.deployments import REPORT, Deployment, read_report
from buildrunner.engine.events import ImageReady
from buildrunner.engine.log.pipeline import StepLog
from buildrunner.engine.outcome import Span, StepOutcome
from buildrunner.engine.running_build import RunningBuild
from buildrunner.engine.step_container import (
    OUTPUT_LIMIT,
    SCRIPT,
    StepInputs,
    files_archive,
    outputs_volume,
    read_output,
    secrets_of,
    step_container,
    with_socket_below_run,
)
from buildrunner.errors import (
    ContainerNameTaken,
    ContainerStartError,
    EngineError,
    EngineUnavailable,
    GateRefused,
)
from buildrunner.plan.build_plan import StepPlan
from buildrunner.plan.pinned_images import is_other
from buildrunner.spec.model.build import Status

_KILL_AGAIN_S = 0.5
_KILL_TRIES = 40

_CREATE_TRIES = 100
_CREATE_PAUSE_S = 0.1


class StepRun:
    """Runs one step in a thread. It reports to the loop, which decides.

    The loop calls `create_ahead`, `begin` and `stop`, which return at once.

    Args:
        step: the step to run.
        build: the running build.
        on_running: called from the step's thread when its container has started.
        on_end: called once from the step's thread, last, with the outcome or the error.
    """

    def __init__(
        self,
        step: StepPlan,
        build: RunningBuild,
        *,
        on_running: Callable[[], None],
        on_end: Callable[[StepOutcome | BaseException], None],
    ) -> None:
        self._step = step
        self._build = build
        self._on_running = on_running
        self._on_end = on_end
        prefix = f"{step.label}: " if build.plan.names_steps else ""
        self._log = build.log.step(step.index, prefix)
        self._verdict = StepVerdict(step, build, self._log)
        self._container = LiveContainer(step, build)
        self._ahead: threading.Thread | None = None
        self._can_start_ahead = True
        self._ended = threading.Event()

    def create_ahead(self, *, start: bool) -> None:
        """Create the container while earlier steps still run, if its image is on the engine.

        Does nothing if the container exists or is being created. Call it again after a step has
        ended: that step may have built the image.

        Args:
            start: also start the container, whose program then waits at the gate. It is not started
                if a step may replace its image.
        """
        if self.is_being_made or self._container.is_made:
            return
        start = start and self._can_start_ahead and not self._build.pulls.may_be_built(self._step)
        self._ahead = threading.Thread(target=self._make_ahead, args=(start,), daemon=True)
        self._ahead.start()

    @property
    def is_being_made(self) -> bool:
        """Return whether `create_ahead` is creating or starting the container now."""
        return self._ahead is not None and self._ahead.is_alive()

    def begin(self, *, pulls: bool) -> None:
        """Run the step.

        Args:
            pulls: whether its event said that its image is being pulled.
        """
        threading.Thread(target=self._run, args=(partial(self._live, pulls),), daemon=True).start()

    def stop(self, why: Status, grace_s: float) -> None:
        """Stop the step: SIGTERM now, SIGKILL after ``grace_s``. An ended step does not change.

        Args:
            why: its status: CANCELLED or TIMEOUT. The first call decides.
            grace_s: seconds until SIGKILL. A second call can shorten them.
        """
        if self._ended.is_set():
            return
        if self._verdict.stopped_by is None:
            self._verdict.stopped_by = why
        threading.Thread(target=self._kill, args=(grace_s,), daemon=True).start()

    def resume(self, container: str, began: datetime, *, unwatched: bool) -> None:
        """Continue with the container that an earlier process of the build started.

        Args:
            container: id of the container.
            began: start of the step.
            unwatched: the container ended while no process of the build lived.
        """
        self._container.take_over(container)
        self._verdict.unwatched = unwatched
        threading.Thread(
            target=self._run, args=(partial(self._live_on, began),), daemon=True
        ).start()

    def dispose(self) -> None:
        """Queue the removal of the step's container; for `RunOptions.keep_logs` only.

        Without that option, the run does it itself.
        """
        self._container.dispose()

    def discard(self) -> None:
        """Remove the container of a step that will never start."""
        if self._ahead is not None:
            self._ahead.join()
        self._container.dispose()

    # -- in the step's own thread ----------------------------------------------------------------

    def _run(self, live: Callable[[], StepOutcome]) -> None:
        result: StepOutcome | BaseException
        try:
            result = self._confirmed(live())
            # The engine's message may quote the environment of the container.
            result = replace(result, error=self._build.log.masked_text(result.error))
        except BaseException as error:  # noqa: BLE001  (the loop raises it: a bug must not hang us)
            result = error
        self._ended.set()
        if not self._build.options.keep_logs:
            self._container.dispose()  # before `_on_end`, after which the loop may end the remover
        self._on_end(result)

    def _confirmed(self, outcome: StepOutcome) -> StepOutcome:
        """Return a failure as the engine's if the engine ends.

        The machine may end steps and engine together. Which of them ends first is up to chance.
        """
        if outcome.status is Status.FAILURE and not outcome.infrastructure:
            try:
                self._build.engine.ping(anew=True)
            except EngineUnavailable as error:
                return replace(
                    outcome, exit_code=None, infrastructure=True, forgiven=False, error=str(error)
                )
        return outcome

    def _live(self, pulls: bool) -> StepOutcome:
        clock = self._build.clock
        began = clock.now()
        try:
            image = self._build.pulls.obtain(self._step, self._log)
        except EngineError as error:
            return self._verdict.without_image(error, Span(began, clock.now()))
        if pulls:
            self._build.report_and_wait(ImageReady(at=clock.now(), step=self._step.index))
        base = StepOutcome(
            index=self._step.index,
            pull_timing=Span(began, clock.now()),
            image_digest=image.digest,
        )
        creating = started = clock.monotonic()
        exit_ = None
        try:
            self._prepare(image)
            if self._verdict.stopped_by is None:
                chunks = self._container.start(image)
                started = clock.monotonic()
                exit_ = self._followed(chunks)
        except ContainerStartError as error:
            self._log.line(f"{error}: {error.hint}" if error.hint else str(error))
            self._log.remember(str(error))
            exit_ = ContainerExit(error.container_code)
        except EngineError as error:
            return self._broken(base, began, error)
        self._ended.set()
        self._log.finish()
        base = replace(
            base,
            timing=Span(began, clock.now()),
            start_s=started - creating,
            run_s=clock.monotonic() - started,
        )
        return self._judged(base, exit_)

    def _live_on(self, began: datetime) -> StepOutcome:
        """Follow the container from its first byte to its end, and log the part not yet stored."""
        build = self._build
        base = StepOutcome(index=self._step.index, pull_timing=Span(began, began))
        try:
            image = build.pulls.local(self._step)
            base = replace(base, image_digest=image.digest if image else "")
            self._container.find_output()
            exit_ = self._followed(self._container.follow(image))
        except EngineError as error:
            return self._broken(base, began, error)
        self._ended.set()
        self._log.finish()
        now = build.clock.now()
        base = replace(base, timing=Span(began, now), run_s=(now - began).total_seconds())
        return self._judged(base, exit_)

    def _followed(self, chunks: Iterator[bytes]) -> ContainerExit:
        self._on_running()
        for chunk in chunks:
            self._log.write(chunk)
        return self._build.engine.wait_container(self._container.id)

    def _prepare(self, image: ImageInfo) -> None:
        """Make the container from exactly that image, unless the step was stopped."""
        if self._ahead is not None:
            self._ahead.join()
        if self._verdict.stopped_by is None:
            self._container.make_of(image)

    def _make_ahead(self, start: bool) -> None:
        try:
            image = self._build.pulls.local(self._step)
            if image is not None and not self._build.halt.is_set():
                served = self._build.pulls.served(self._step).serving
                if self._build.plan.docker_socket and not is_image_id(served):
                    self._build.private_names.give(image.id)
                self._container.make(image, start_ahead=start)
        except Exception:  # noqa: BLE001  (the step meets the same error when it starts)
            self._can_start_ahead = False
            with contextlib.suppress(EngineError):
                self._container.remove()

    def _broken(self, base: StepOutcome, began: datetime, error: EngineError) -> StepOutcome:
        self._ended.set()
        return self._verdict.broken(base, began, error)

    def _judged(self, base: StepOutcome, exit_: ContainerExit | None) -> StepOutcome:
        if exit_ is None:
            return self._verdict.never_started(base)
        outcome = self._verdict.ended(base, exit_, *self._output(exit_))
        deployments = self._deployments()
        if outcome.status is not Status.SUCCESS:
            return replace(outcome, deployments=deployments)
        deployments = deployments or suggested(self._step, self._build.plan.project_id)
        outcome = replace(outcome, deployments=deployments)
        error = _other_image(self._step.pinned_images, deployments)
        return replace(outcome, status=Status.FAILURE, error=error) if error else outcome

    def _deployments(self) -> tuple[Deployment, ...]:
        """Return what the step reported. A report that can't be read fails no step."""
        try:
            report = self._container.output(REPORT)
        except EngineError as error:
            self._log.line(f"$BUILDER_OUTPUT/{REPORT} can't be read: {error}")
            return ()
        masker = self._build.log.masker
        if masker:
            report = masker.mask(report, cut=len(report) == OUTPUT_LIMIT)
        found, problem = read_report(report)
        if problem:
            self._log.line(problem)
        return found

    def _output(self, exit_: ContainerExit) -> tuple[bytes, str]:
        """Return the step's output, and its problem, which fails a successful step."""
        try:
            output = self._container.output()
        except EngineError as error:
            return b"", "" if exit_.code else f"its output can't be read: {error}"
        masker = self._build.log.masker
        if masker:
            output = masker.mask(output, cut=len(output) == OUTPUT_LIMIT)
        return output, ""

    def _kill(self, grace_s: float) -> None:
        """Kill the container, in a thread: it may not exist yet, or may be starting."""
        signal, patience = "SIGTERM", grace_s
        for _ in range(_KILL_TRIES):
            if self._ended.is_set():
                return
            if self._container.id and (patience or signal == "SIGKILL"):
                with contextlib.suppress(EngineError):  # retried below
                    self._build.engine.kill_container(self._container.id, signal)
            if self._ended.wait(patience):
                return
            signal, patience = "SIGKILL", _KILL_AGAIN_S


def _other_image(pinned: Sequence[str], deployments: Sequence[Deployment]) -> str:
    """Return an error if a rollback deployed another image than the pinned one; else empty."""
    reported = [one for one in deployments if one.reported]
    for image in pinned:
        for one in reported:
            for other in one.images:
                if is_other(other, image):
                    return f"the rollback is to {image}, but {one.target} runs {other} now"
    return ""


_KILLED_CODES = (137, 143)  # by SIGKILL, by SIGTERM


class StepVerdict:
    """Makes the outcome of one step, and logs its end.

    Args:
        step: the step.
        build: the running build.
        log: the log of the step.
    """

    def __init__(self, step: StepPlan, build: RunningBuild, log: StepLog) -> None:
        self._step = step
        self._build = build
        self._log = log
        self.stopped_by: Status | None = None
        """CANCELLED or TIMEOUT if the loop stopped the step; else None."""
        self.unwatched = False
        """Whether the container ended while no process of the build lived."""

    def ended(
        self, base: StepOutcome, exit_: ContainerExit, output: bytes, trouble: str
    ) -> StepOutcome:
        """Return the outcome of a step whose container has ended.

        Args:
            base: the outcome so far.
            exit_: the end of the container.
            output: the step's output.
            trouble: error if the output can't be read, which fails a successful step.
        """
        self._say_finished(exit_)
        if self.stopped_by is not None:
            return replace(base, status=self.stopped_by, output=output, error=self._stop_text())
        if exit_.code == 0 and not trouble:
            return replace(base, status=Status.SUCCESS, exit_code=0, output=output)
        return replace(
            base,
            status=Status.FAILURE,
            exit_code=exit_.code,
            oom_killed=exit_.oom_killed,
            forgiven=bool(exit_.code) and self._step.forgives(exit_.code),
            error=trouble if exit_.code == 0 else self._exit_text(exit_),
            infrastructure=self._was_killed_unwatched(exit_),
            output=output,
            last_lines=self._log.last_lines(),
        )

    def never_started(self, base: StepOutcome) -> StepOutcome:
        """Return the outcome of a step that was stopped before its container started."""
        return replace(base, status=Status.CANCELLED, error="it was stopped before it started")

    def without_image(self, error: EngineError, pulling: Span) -> StepOutcome:
        """Return the outcome of a step whose image can't be pulled."""
        said = [f'error pulling build step {self._step.index} "{self._step.image}": {error}']
        if error.hint:
            said.append(error.hint)
        options, others = self._build.options, self._build.pulls.also_missing(self._step)
        is_gone = isinstance(error, EngineUnavailable)  # then nothing is known of any image
        if others and not is_gone:
            said.append(f"These images can't be pulled either: {', '.join(others)}")
        requested = () if is_gone else (self._step.image, *others)
        served = [one for one in requested if one in options.image_advice]
        if served and others:
            said.append(f"`{options.install_command}` makes images for {', '.join(served)}")
        elif served:
            said.append(options.image_advice[self._step.image])
        *first, last = said
        ended = [part if part.endswith((".", "?")) else f"{part}." for part in first]
        text = " ".join([*ended, last])
        self._say_forgiven(text)
        self._log.finish()
        return StepOutcome(
            index=self._step.index,
            status=self.stopped_by or Status.FAILURE,
            infrastructure=is_gone,
            forgiven=self._forgives_trouble(),
            error=text,
            timing=pulling,
            pull_timing=pulling,
        )

    def broken(self, base: StepOutcome, began: datetime, error: EngineError) -> StepOutcome:
        """Return the outcome of a step after an error of the engine."""
        self._say_forgiven(str(error))
        self._log.finish()
        return replace(
            base,
            status=self.stopped_by or Status.FAILURE,
            infrastructure=isinstance(error, EngineUnavailable),
            forgiven=self._forgives_trouble(),
            error=str(error),
            timing=Span(began, self._build.clock.now()),
            last_lines=self._log.last_lines(),
        )

    def _say_finished(self, exit_: ContainerExit) -> None:
        if exit_.code and self.stopped_by is None and self._step.forgives(exit_.code):
            self._log.line(f"{self._exit_text(exit_)} (allowed to fail)")
        if self.stopped_by is Status.TIMEOUT:
            self._say_forgiven(self._stop_text())
        if self._build.plan.names_steps:
            self._build.log.line_once(f"Finished {self._step.label}")

    def _say_forgiven(self, trouble: str) -> None:
        """Log a forgiven failure. Other failures fail the build, whose end names the step."""
        if self.stopped_by in (None, Status.TIMEOUT) and self._forgives_trouble():
            self._log.line(f"{trouble} (allowed to fail)")

    def _forgives_trouble(self) -> bool:
        """Return whether a failure without an exit code is forgiven: a failed pull, a timeout."""
        return self._step.allow_failure and not self._step.allow_exit_codes

    def _exit_text(self, exit_: ContainerExit) -> str:
        text = f"step exited with non-zero status: {exit_.code}"
        if exit_.oom_killed:
            limit = self._build.plan.limits.memory_bytes
            size = f" of {limit / 2**20:.0f} MiB" if limit else ""
            text += f" (killed for lack of memory: it went over its limit{size})"
        elif self._was_killed_unwatched(exit_):
            text += (
                " (killed while no process of the build watched it; did the container engine or "
                "the machine stop?)"
            )
        return text

    def _was_killed_unwatched(self, exit_: ContainerExit) -> bool:
        """Return whether the engine or machine most likely killed the step when it stopped."""
        return self.unwatched and not exit_.oom_killed and exit_.code in _KILLED_CODES

    def _stop_text(self) -> str:
        if self.stopped_by is Status.TIMEOUT:
            return f"step exceeded its timeout of {self._step.timeout_s:g}s"
        return "it was stopped"


class LiveContainer:
    """The container, and the volume of the step's output. Used by one thread at a time.

    Args:
        step: the step of the container.
        build: the running build.
    """

    def __init__(self, step: StepPlan, build: RunningBuild) -> None:
        self._step = step
        self._build = build
        self._image_id = ""
        self._folder: str | None = None
        self.id = ""
        """The container's id; empty while there is none. Any thread may read it."""

    @property
    def is_made(self) -> bool:
        """Return whether the container has been created."""
        return bool(self._image_id)

    def make(self, image: ImageInfo, *, start_ahead: bool = False) -> None:
        """Create the container with the files that it needs before its start.

        Args:
            image: its image.
            start_ahead: also start the container, with its program waiting at the gate.

        Raises:
            EngineError: the engine refused.
        """
        build, step = self._build, self._step
        if self._folder is None:
            self._folder = self._make_folder()
        inputs = StepInputs(
            image=image,
            served=build.pulls.served(step),
            workspace=build.workspace,
            gate=build.gate if start_ahead else "",
            socket=build.engine.info().socket_path if build.plan.docker_socket else "",
            secrets=secrets_of(step, build.secrets),
        )
        spec = step_container(build.plan, step, inputs, build.options)
        self._make_filled(spec)
        if start_ahead:
            build.engine.start_ahead(self.id)
        else:
            build.engine.prepare_start(self.id)
        self._image_id = image.id

    def _make_filled(self, spec: ContainerSpec) -> None:
        """Create the container with its files; if necessary, with the socket at another path.

        Some releases of Docker (28.5.2 of Debian, 29.5.0, 29.5.1; moby#52653) can't copy files
        into a container with a mount below an absolute link, as /var/run is in most images. There,
        /var/run links to /run, so the engine's socket is mounted below /run.
        """
        self.id = self._created(spec)
        try:
            self._fill()
        except EngineError as error:
            moved = with_socket_below_run(spec)
            if "var/run" not in str(error) or moved == spec:
                raise
            self.remove()
            self.id = self._created(moved)
            self._fill()

    def _fill(self) -> None:
        build, script = self._build, self._step.script
        build.fill_home(self.id)
        if script is not None:
            tar = files_archive({SCRIPT: script.encode()}, mode=0o755)
            build.engine.put_archive(self.id, "/", (tar,))

    def make_of(self, image: ImageInfo) -> None:
        """Make the container from ``image``, unless the existing one is of this very image.

        A step may have rebuilt the image since the container was created.
        """
        if self._image_id != image.id:
            self.remove()
            self.make(image)

    def take_over(self, container: str) -> None:
        """Adopt the container with that id, which an earlier process has started."""
        self.id = container

    def find_output(self) -> None:
        """Look up the folder of the output volume of an adopted container."""
        self._folder = self._make_folder()

    def start(self, image: ImageInfo) -> Iterator[bytes]:
        """Run the step's program, in a new container if this one does not run it.

        An earlier step may have removed the container (`docker system prune`) or killed it.

        Raises:
            EngineError: the engine can't start the container. The iterator may also raise this.
        """
        self._build.remover.hold_off()
        try:
            output = self._build.engine.start_container(self.id, attach=True)
        except GateRefused:
            return self._start_anew(image)
        except EngineError as error:
            if not _is_removed(error):
                raise
            return self._start_anew(image)
        return self._or_anew(output, image)

    def follow(self, image: ImageInfo | None) -> Iterator[bytes]:
        """Follow the output of an adopted container from its first byte.

        Args:
            image: the image of a new container, if this one did not run the step's program.
        """
        return self._or_anew(self._build.engine.follow_container(self.id), image)

    def _or_anew(self, output: Iterator[bytes], image: ImageInfo | None) -> Iterator[bytes]:
        try:
            yield from output
        except GateRefused:
            if image is None:
                raise
            yield from self._start_anew(image)

    def _start_anew(self, image: ImageInfo) -> Iterator[bytes]:
        self.remove()
        self.make(image)
        return self._build.engine.start_container(self.id, attach=True)

    def output(self, name: str = "output") -> bytes:
        """Return a file that the step wrote to ``$BUILDER_OUTPUT``.

        Raises:
            EngineError: the file can't be read.
        """
        if not self.id or self._folder is None:
            return b""
        return read_output(
            self._build.engine,
            self.id,
            folder=self._folder,
            volume=self._volume,
            labels=self._build.labels,
            name=name,
        )

    def remove(self) -> None:
        """Remove the container now. A new one can be made afterwards."""
        container, self.id, self._image_id = self.id, "", ""
        if container:
            self._build.engine.remove_container(container)

    def dispose(self) -> None:
        """Queue the removal of container and volume, without waiting."""
        self._build.remover.remove(self.id, "" if self._folder is None else self._volume)

    @property
    def _volume(self) -> str:
        return outputs_volume(self._build.plan.build_id, self._step.index)

    def _make_folder(self) -> str:
        return self._build.engine.create_volume(self._volume, self._build.labels)

    def _created(self, spec: ContainerSpec) -> str:
        """Create a container. An unstarted container of the same name is removed first.

        A dead process of this build has requested that container. The engine may have created it
        after this process listed the containers.
        """
        for left in range(_CREATE_TRIES, 0, -1):
            try:
                return self._build.engine.create_container(spec)
            except ContainerNameTaken:
                if left == 1 or not self._build.engine.remove_unstarted(spec.name):
                    raise
            self._build.halt.wait(_CREATE_PAUSE_S)  # the engine may still be creating it
        raise AssertionError("the last try returns or raises")


def _is_removed(error: EngineError) -> bool:
    return "no such container" in str(error).lower()
