"""The life of one step: get the image, create, start, follow the output, wait, read the result."""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from buildrunner.containers.engine_types import ContainerExit
from buildrunner.engine.outcome import Span, StepOutcome
from buildrunner.engine.step_container import (
    SCRIPT,
    outputs_volume,
    secrets_of,
    step_container,
)
from buildrunner.engine.step_output import OUTPUT_LIMIT, read_output
from buildrunner.engine.workbench import files_archive
from buildrunner.errors import (
    ContainerNameTaken,
    ContainerStartError,
    EngineError,
    EngineUnavailable,
)
from buildrunner.spec.model import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from buildrunner.containers.engine_types import ContainerSpec, ImageInfo
    from buildrunner.engine.namespaces import Namespace
    from buildrunner.engine.workbench import Workbench
    from buildrunner.plan.build_plan import StepPlan

_CREATE_TRIES = 100
_CREATE_PAUSE_S = 0.1
_KILL_AGAIN_S = 0.5
_KILL_TRIES = 40
_KILLED_CODES = (137, 143)  # by SIGKILL, by SIGTERM


class StepLife:
    """One step, in a thread of its own. It tells the loop what happens and decides nothing.

    `create_ahead`, `begin` and `stop` are called by the loop and return at once.

    Args:
        step: what to run.
        bench: what it works with.
        namespace: the network namespace to join; None sets up its own.
        on_running: called from the step's thread when its container has started.
        on_end: called from the step's thread with what came of it, once, last.
    """

    def __init__(
        self,
        step: StepPlan,
        bench: Workbench,
        *,
        namespace: Namespace | None,
        on_running: Callable[[], None],
        on_end: Callable[[StepOutcome | BaseException], None],
    ) -> None:
        self._step = step
        self._bench = bench
        self._namespace = namespace
        self._on_running = on_running
        self._on_end = on_end
        several = len(bench.plan.steps) > 1
        self._log = bench.log.step(step.index, f"{step.label}: " if several else "")
        self._several = several
        self._ahead: threading.Thread | None = None
        self._container = ""
        self._image_id = ""
        self._folder: str | None = None
        self._ended = threading.Event()
        self._stopped_by: Status | None = None
        self._unwatched = False
        self.deadline: float | None = None
        """When the step has run for too long (monotonic); the loop's."""

    @property
    def step(self) -> StepPlan:
        """What it runs."""
        return self._step

    def create_ahead(self) -> None:
        """Create the container while earlier steps still run, if its image is here.

        Does nothing when that was done, or is being done; when its image was missing then, an
        earlier step may have built it since.
        """
        if self._ahead is not None and (self._ahead.is_alive() or self._image_id):
            return
        self._ahead = threading.Thread(target=self._make_ahead, daemon=True)
        self._ahead.start()

    def begin(self) -> None:
        """Run it."""
        threading.Thread(target=self._run, args=(self._live,), daemon=True).start()

    def stop(self, why: Status, grace_s: float) -> None:
        """End it: SIGTERM now, SIGKILL after ``grace_s`` seconds. Nothing happens if it has ended.

        Args:
            why: what it becomes: CANCELLED or TIMEOUT. The first reason stays.
            grace_s: a second call with a shorter grace shortens it.
        """
        if self._ended.is_set():
            return
        if self._stopped_by is None:
            self._stopped_by = why
        threading.Thread(target=self._kill, args=(grace_s,), daemon=True).start()

    def go_on(self, container: str, began: datetime, *, unwatched: bool) -> None:
        """Take over the container that an earlier process started when the step's turn came.

        Args:
            container: its id.
            began: when that was.
            unwatched: it has ended while no process of the build lived.
        """
        self._container = container
        self._unwatched = unwatched
        threading.Thread(
            target=self._run, args=(partial(self._live_on, began),), daemon=True
        ).start()

    def dispose(self) -> None:
        """Order the removal of what an ended step leaves; for `RunOptions.keep_logs` only.

        Without, it happens by itself.
        """
        self._dispose()

    def discard(self) -> None:
        """It will never begin: remove what was made ahead."""
        if self._ahead is not None:
            self._ahead.join()
        self._dispose()

    # -- in the step's own thread ----------------------------------------------------------------

    def _run(self, live: Callable[[], StepOutcome]) -> None:
        result: StepOutcome | BaseException
        try:
            result = live()
            # What the engine says of a container may quote its environment.
            result = replace(result, error=self._bench.log.masked_text(result.error))
        except BaseException as error:  # noqa: BLE001  (the loop raises it: a bug must not hang us)
            result = error
        self._ended.set()
        if not self._bench.options.keep_logs:
            self._dispose()  # an order only, given before the loop may end the reaper
        self._on_end(result)

    def _live(self) -> StepOutcome:
        clock = self._bench.clock
        began = clock.now()
        try:
            image = self._bench.pulls.obtain(self._step, self._log)
        except EngineError as error:
            return self._without_image(error, Span(began, clock.now()))
        base = StepOutcome(
            index=self._step.index,
            pull_timing=Span(began, clock.now()),
            image_digest=image.digest,
        )
        creating = started = clock.monotonic()
        exit_ = None
        try:
            self._prepare(image)
            if self._namespace is not None:
                self._namespace.opened.wait()
            if self._stopped_by is None:
                chunks = self._start(image)
                started = clock.monotonic()
                exit_ = self._followed(chunks)
        except ContainerStartError as error:
            self._log.line(f"{error} {error.hint}".rstrip())
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
        """From the first byte of what the container wrote, less what is stored, to its end."""
        bench = self._bench
        base = StepOutcome(index=self._step.index, pull_timing=Span(began, began))
        try:
            image = bench.pulls.local(self._step)
            base = replace(base, image_digest=image.digest if image else "")
            self._folder = bench.engine.create_volume(
                outputs_volume(bench.plan.build_id, self._step.index), bench.labels
            )
            exit_ = self._followed(bench.engine.follow_container(self._container))
        except EngineError as error:
            return self._broken(base, began, error)
        self._ended.set()
        self._log.finish()
        now = bench.clock.now()
        base = replace(base, timing=Span(began, now), run_s=(now - began).total_seconds())
        return self._judged(base, exit_)

    def _followed(self, chunks: Iterator[bytes]) -> ContainerExit:
        self._on_running()
        for chunk in chunks:
            self._log.write(chunk)
        return self._bench.engine.wait_container(self._container)

    def _prepare(self, image: ImageInfo) -> None:
        """Have a container of that very image, unless the step is not to run any more."""
        if self._ahead is not None:
            self._ahead.join()
        if self._image_id != image.id and self._stopped_by is None:
            self._remove()  # made ahead, and an earlier step has rebuilt the image since
            self._make(image)

    def _start(self, image: ImageInfo) -> Iterator[bytes]:
        """Start the container; on its own network should the namespace have died meanwhile."""
        engine = self._bench.engine
        self._bench.reaper.hold_off()
        try:
            return engine.start_container(self._container, attach=True)
        except EngineError as error:
            if self._namespace is None or not _is_lost_namespace(error):
                raise
        self._namespace = None
        self._remove()
        self._make(image)
        return engine.start_container(self._container, attach=True)

    def _make_ahead(self) -> None:
        try:
            image = self._bench.pulls.local(self._step)
            if image is not None and not self._bench.halt.is_set():
                self._make(image)
        except Exception:  # noqa: BLE001  (whatever it is, the step meets it again in its turn)
            with contextlib.suppress(EngineError):
                self._remove()

    def _make(self, image: ImageInfo) -> None:
        bench, step = self._bench, self._step
        network = bench.options.network
        if self._namespace is not None:
            self._namespace.named.wait()
            if self._namespace.container:
                network = f"container:{self._namespace.container}"
        if self._folder is None:
            self._folder = bench.engine.create_volume(
                outputs_volume(bench.plan.build_id, step.index),
                bench.labels,
            )
        spec = step_container(
            bench.plan,
            step,
            image=image.id,
            served=bench.pulls.served(step),
            workspace=bench.workspace,
            network=network,
            secrets=secrets_of(step, bench.secrets),
            options=bench.options,
        )
        self._container = self._created(spec)
        bench.fill_home(self._container)
        if step.script is not None:
            tar = files_archive({SCRIPT: step.script.encode()}, mode=0o755)
            bench.engine.put_archive(self._container, "/", (tar,))
        bench.engine.prepare_start(self._container)
        self._image_id = image.id

    def _created(self, spec: ContainerSpec) -> str:
        """A new container; what stands in its way, a dead process of this build has asked for.

        It did so at its last moment, and the engine made it behind our look at what there is.
        """
        for left in range(_CREATE_TRIES, 0, -1):
            try:
                return self._bench.engine.create_container(spec)
            except ContainerNameTaken:
                if left == 1 or not self._bench.engine.remove_unstarted(spec.name):
                    raise
            self._bench.halt.wait(_CREATE_PAUSE_S)  # it may be in the making still
        raise AssertionError("the last try returns or raises")

    def _remove(self) -> None:
        container, self._container, self._image_id = self._container, "", ""
        if container:
            self._bench.engine.remove_container(container)

    def _dispose(self) -> None:
        volume = (
            ""
            if self._folder is None
            else outputs_volume(self._bench.plan.build_id, self._step.index)
        )
        self._bench.reaper.remove(self._container, volume)

    # -- what came of it -------------------------------------------------------------------------

    def _judged(self, base: StepOutcome, exit_: ContainerExit | None) -> StepOutcome:
        """The outcome of a step whose container has ended, or was never started."""
        if exit_ is None:
            return replace(base, status=Status.CANCELLED, error="it was stopped before it started")
        output, trouble = self._output(exit_)
        self._say_finished(exit_)
        if self._stopped_by is not None:
            return replace(base, status=self._stopped_by, output=output, error=self._stop_text())
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

    def _output(self, exit_: ContainerExit) -> tuple[bytes, str]:
        """The step's output, and what is wrong with it (which fails a successful step)."""
        if not self._container or self._folder is None:
            return b"", ""
        try:
            output = read_output(self._bench.engine, self._container, self._folder)
        except EngineError as error:
            return b"", "" if exit_.code else f"its output can't be read: {error}"
        masker = self._bench.log.masker
        if masker:
            output = masker.mask(output, cut=len(output) == OUTPUT_LIMIT)
        return output, ""

    def _say_finished(self, exit_: ContainerExit) -> None:
        if exit_.code and self._stopped_by is None and self._step.forgives(exit_.code):
            self._log.line(f"{self._exit_text(exit_)} (allowed to fail)")
        if self._several:
            self._bench.log.line_once(f"Finished {self._step.label}")

    def _exit_text(self, exit_: ContainerExit) -> str:
        text = f"step exited with non-zero status: {exit_.code}"
        if exit_.oom_killed:
            limit = self._bench.plan.limits.memory_bytes
            size = f" of {limit / 2**20:.0f} MiB" if limit else ""
            text += f" (killed for lack of memory: it went over its limit{size})"
        elif self._was_killed_unwatched(exit_):
            text += (
                " (killed while no process of the build watched it; did the container engine or "
                "the machine stop?)"
            )
        return text

    def _was_killed_unwatched(self, exit_: ContainerExit) -> bool:
        """An engine that stops kills what runs: that is no failure of the step."""
        return self._unwatched and not exit_.oom_killed and exit_.code in _KILLED_CODES

    def _stop_text(self) -> str:
        if self._stopped_by is Status.TIMEOUT:
            return f"step exceeded its timeout of {self._step.timeout_s:g}s"
        return "it was stopped"

    def _without_image(self, error: EngineError, pulling: Span) -> StepOutcome:
        self._log.finish()
        return StepOutcome(
            index=self._step.index,
            status=self._stopped_by or Status.FAILURE,
            infrastructure=isinstance(error, EngineUnavailable),
            forgiven=self._step.allow_failure and not self._step.allow_exit_codes,
            error=f'error pulling build step {self._step.index} "{self._step.image}": {error}',
            timing=pulling,
            pull_timing=pulling,
        )

    def _broken(self, base: StepOutcome, began: datetime, error: EngineError) -> StepOutcome:
        self._ended.set()
        self._log.finish()
        return replace(
            base,
            status=self._stopped_by or Status.FAILURE,
            infrastructure=isinstance(error, EngineUnavailable),
            forgiven=self._step.allow_failure and not self._step.allow_exit_codes,
            error=str(error),
            timing=Span(began, self._bench.clock.now()),
            last_lines=self._log.last_lines(),
        )

    def _kill(self, grace_s: float) -> None:
        """In a thread of its own: the container may not exist yet, or be starting right now."""
        signal, patience = "SIGTERM", grace_s
        for _ in range(_KILL_TRIES):
            if self._ended.is_set():
                return
            if self._container and (patience or signal == "SIGKILL"):
                with contextlib.suppress(EngineError):  # tried again below
                    self._bench.engine.kill_container(self._container, signal)
            if self._ended.wait(patience):
                return
            signal, patience = "SIGKILL", _KILL_AGAIN_S


def _is_lost_namespace(error: EngineError) -> bool:
    text = str(error).lower()
    words = ("join network", "no such container", "non running", "is not running")
    return any(word in text for word in words)
