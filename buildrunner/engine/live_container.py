"""One step's container on the engine: made, perhaps ahead of its turn, started, read, removed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping

from buildrunner.containers.private_names import PrivateNames
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.containers.types import ContainerSpec, ImageInfo
from buildrunner.engine.cancellation import Clock
from buildrunner.engine.events import BuildEvent
from buildrunner.engine.image_pulls import ImagePulls
from buildrunner.engine.log.pipeline import LogPipeline, StoredLog
from buildrunner.engine.log.sink import LogSink
from buildrunner.engine.namespaces import Namespace
from buildrunner.engine.resources import Reaper
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.step_container import (
    HOME,
    SCRIPT,
    build_labels,
    outputs_volume,
    read_output,
    secrets_of,
    step_container,
    with_socket_below_run,
)
from buildrunner.engine.step_images import StepImages
from buildrunner.errors import ContainerNameTaken, EngineError
from buildrunner.plan.build_plan import BuildPlan, SecretReference, StepPlan
from buildrunner.workspace.protocol import PreparedWorkspace

_CREATE_TRIES = 100
_CREATE_PAUSE_S = 0.1


class LiveContainer:
    """The container, and the volume of the step's output. Used by one thread at a time.

    Args:
        step: whose it is.
        bench: what it works with.
        namespace: the network namespace to join; None sets up its own.
    """

    def __init__(self, step: StepPlan, bench: Workbench, namespace: Namespace | None) -> None:
        self._step = step
        self._bench = bench
        self._namespace = namespace
        self._image_id = ""
        self._folder: str | None = None
        self.id = ""
        """Its id; empty while there is none. Any thread may read it."""

    @property
    def is_made(self) -> bool:
        """Whether it can be started."""
        return bool(self._image_id)

    def make(self, image: ImageInfo) -> None:
        """Create it, with what has to be in it before it starts."""
        bench, step = self._bench, self._step
        network = bench.options.network
        if self._namespace is not None:
            self._namespace.named.wait()
            if self._namespace.container:
                network = f"container:{self._namespace.container}"
        if self._folder is None:
            self._folder = self._make_folder()
        spec = step_container(
            bench.plan,
            step,
            image=image.id,
            served=bench.pulls.served(step),
            workspace=bench.workspace,
            network=network,
            socket=bench.engine.info().socket_path if bench.plan.docker_socket else "",
            secrets=secrets_of(step, bench.secrets),
            options=bench.options,
        )
        self._make_filled(spec)
        bench.engine.prepare_start(self.id)
        self._image_id = image.id

    def _make_filled(self, spec: ContainerSpec) -> None:
        """Create it with its files; where need be, with the engine's socket at another name.

        Some releases of Docker (28.5.2 of Debian, 29.5.0, 29.5.1; moby#52653) copy nothing into a
        container that has a mount below an absolute link, as /var/run is in most images. Where it
        is one, it leads to /run.
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
        bench, script = self._bench, self._step.script
        bench.fill_home(self.id)
        if script is not None:
            tar = files_archive({SCRIPT: script.encode()}, mode=0o755)
            bench.engine.put_archive(self.id, "/", (tar,))

    def make_of(self, image: ImageInfo) -> None:
        """Have one of that very image: an earlier step may have rebuilt it since it was made."""
        if self._image_id != image.id:
            self.remove()
            self.make(image)

    def take_over(self, container: str) -> None:
        """Be the one of that id, which an earlier process has started."""
        self.id = container

    def find_output(self) -> None:
        """Know where the output of a container is that was taken over."""
        self._folder = self._make_folder()

    def wait_for_network(self) -> None:
        """Wait until the namespace that it joins is there."""
        if self._namespace is not None:
            self._namespace.opened.wait()

    def start(self, image: ImageInfo) -> Iterator[bytes]:
        """Start it, or another one should the container or its namespace be gone by now.

        An earlier step may have removed both: `docker system prune` does.
        """
        engine = self._bench.engine
        self._bench.reaper.hold_off()
        try:
            return engine.start_container(self.id, attach=True)
        except EngineError as error:
            if not _is_removed(error) and (
                self._namespace is None or not _is_lost_namespace(error)
            ):
                raise
        self._namespace = None
        self.remove()
        self.make(image)
        return engine.start_container(self.id, attach=True)

    def output(self) -> bytes:
        """What the step left as its output.

        Raises:
            EngineError: it can't be read.
        """
        if not self.id or self._folder is None:
            return b""
        return read_output(
            self._bench.engine,
            self.id,
            folder=self._folder,
            volume=self._volume,
            labels=self._bench.labels,
        )

    def remove(self) -> None:
        """Remove it now; another one can be made."""
        container, self.id, self._image_id = self.id, "", ""
        if container:
            self._bench.engine.remove_container(container)

    def dispose(self) -> None:
        """Order its removal, and that of the volume; nobody waits for that."""
        self._bench.reaper.remove(self.id, "" if self._folder is None else self._volume)

    @property
    def _volume(self) -> str:
        return outputs_volume(self._bench.plan.build_id, self._step.index)

    def _make_folder(self) -> str:
        return self._bench.engine.create_volume(self._volume, self._bench.labels)

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


def _is_removed(error: EngineError) -> bool:
    return "no such container" in str(error).lower()


def _is_lost_namespace(error: EngineError) -> bool:
    text = str(error).lower()
    words = ("join network", "no such container", "non running", "is not running")
    return any(word in text for word in words)


class Workbench:
    """The parts that the lives of steps share. Filled by the setup before the first step starts.

    Args:
        plan: what to run.
        engine: where.
        sink: takes the log.
        options: choices of the machine and the person.
        clock: time.
        report: takes events, from any thread.
        on_log_failure: called once, from any thread, when the sink breaks.
        stored: of a build that is resumed: what the log holds already.

    Attributes:
        halt: set when the build ends early; frees whoever waits for a pull or a push.
        workspace: what to mount at ``/workspace``.
        secrets: values of all secrets of the build.
    """

    workspace: PreparedWorkspace

    def __init__(
        self,
        plan: BuildPlan,
        *,
        engine: ContainerEngine,
        sink: LogSink,
        options: RunOptions,
        clock: Clock,
        report: Callable[[BuildEvent], None],
        on_log_failure: Callable[[Exception], None],
        stored: StoredLog | None = None,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.options = options
        self.clock = clock
        self.halt = threading.Event()
        self.log = LogPipeline(sink, clock, on_log_failure, stored)
        images = StepImages(engine, options.public_images)
        self.pulls = ImagePulls(
            plan, images, options.image_aliases, halt=self.halt, clock=clock, report=report
        )
        self.secrets: Mapping[SecretReference, str] = {}
        self.reaper = Reaper(engine)
        self.private_names = PrivateNames(engine, plan.build_id)
        self.labels = build_labels(plan, options)
        self._home_files: dict[str, bytes] = {}
        self._home_lock = threading.Lock()

    def leave_home_files(self, files: dict[str, bytes]) -> None:
        """Files (by absolute path) that the first container to be created has to take along."""
        self._home_files = files

    def fill_home(self, container: str) -> None:
        """Put them into the home volume through ``container``, unless that was done before."""
        if not self._home_files:
            return
        with self._home_lock:
            if self._home_files:
                tar = files_archive(self._home_files, mode=0o600)
                self.engine.fill_mount(container, HOME, (tar,))
                self._home_files = {}


def files_archive(files: Mapping[str, bytes], *, mode: int) -> bytes:
    """A tar archive of ``files`` by absolute path, owned by root, each with ``mode``."""
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, data in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size = len(data)
            member.mode = mode
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
