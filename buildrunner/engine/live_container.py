"""One step's container on the engine: made, perhaps ahead of its turn, started, read, removed."""

from __future__ import annotations

from collections.abc import Iterator

from buildrunner.containers.types import ContainerSpec, ImageInfo
from buildrunner.engine.running_build import RunningBuild
from buildrunner.engine.step_container import (
    SCRIPT,
    StepInputs,
    files_archive,
    outputs_volume,
    read_output,
    secrets_of,
    step_container,
    with_socket_below_run,
)
from buildrunner.errors import ContainerNameTaken, EngineError, GateRefused
from buildrunner.plan.build_plan import StepPlan

_CREATE_TRIES = 100
_CREATE_PAUSE_S = 0.1


class LiveContainer:
    """The container, and the volume of the step's output. Used by one thread at a time.

    Args:
        step: whose it is.
        build: what it works with.
    """

    def __init__(self, step: StepPlan, build: RunningBuild) -> None:
        self._step = step
        self._build = build
        self._image_id = ""
        self._folder: str | None = None
        self.id = ""
        """Its id; empty while there is none. Any thread may read it."""

    @property
    def is_made(self) -> bool:
        """Whether the container has been created."""
        return bool(self._image_id)

    def make(self, image: ImageInfo, *, start_ahead: bool = False) -> None:
        """Create it, with what has to be in it before it starts.

        Args:
            image: what it is made of.
            start_ahead: also start it, with its program waiting for the step's turn.

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
        build, script = self._build, self._step.script
        build.fill_home(self.id)
        if script is not None:
            tar = files_archive({SCRIPT: script.encode()}, mode=0o755)
            build.engine.put_archive(self.id, "/", (tar,))

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

    def start(self, image: ImageInfo) -> Iterator[bytes]:
        """Run the step's program, in a new container if this one does not run it.

        An earlier step may have removed the container (`docker system prune`) or killed it.

        Raises:
            EngineError: the engine can't start it; the iterator, too, may raise that.
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
        """Follow the output of a container that was taken over, from its first byte on.

        Args:
            image: what a new container is made of if this one did not run the step's program.
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
            EngineError: it can't be read.
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
        """Remove it now; another one can be made."""
        container, self.id, self._image_id = self.id, "", ""
        if container:
            self._build.engine.remove_container(container)

    def dispose(self) -> None:
        """Order its removal, and that of the volume; nobody waits for that."""
        self._build.remover.remove(self.id, "" if self._folder is None else self._volume)

    @property
    def _volume(self) -> str:
        return outputs_volume(self._build.plan.build_id, self._step.index)

    def _make_folder(self) -> str:
        return self._build.engine.create_volume(self._volume, self._build.labels)

    def _created(self, spec: ContainerSpec) -> str:
        """A new container; what stands in its way, a dead process of this build has asked for.

        It did so at its last moment, and the engine made it behind our look at what there is.
        """
        for left in range(_CREATE_TRIES, 0, -1):
            try:
                return self._build.engine.create_container(spec)
            except ContainerNameTaken:
                if left == 1 or not self._build.engine.remove_unstarted(spec.name):
                    raise
            self._build.halt.wait(_CREATE_PAUSE_S)  # it may be in the making still
        raise AssertionError("the last try returns or raises")


def _is_removed(error: EngineError) -> bool:
    return "no such container" in str(error).lower()
