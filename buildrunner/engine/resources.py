"""The resources of a build besides its steps: network, volumes and home.

`CleanUpParts` and `ContainerRemover` remove them, and the containers of steps.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from buildrunner.containers import start_gate
from buildrunner.containers.protocol import LABEL_BUILD, ContainerEngine, Mount, OwnedResources
from buildrunner.engine.run_options import RunOptions
from buildrunner.engine.step_container import GATE_VOLUME, build_labels, files_archive
from buildrunner.errors import BuildrunnerError, EngineError
from buildrunner.plan.build_plan import BuildPlan
from buildrunner.workspace.protocol import Workspace, volume_name
from buildrunner.workspace.shared_files import lay_apart, open_folder
from buildrunner.workspace.volume import create_copy_container

_LOOKING = "looking for what else the build made"
_GIT_CONFIG = b"[safe]\n\tdirectory = /workspace\n"


class BuildResources:
    """Makes and removes the resources. Methods run in threads; each is called once."""

    def __init__(self, plan: BuildPlan, engine: ContainerEngine, options: RunOptions) -> None:
        self._plan = plan
        self._engine = engine
        self._options = options
        self._labels = build_labels(plan, options)
        self._volumes: list[str] = []
        self._strangers: frozenset[str] = frozenset()
        self.home_folder = ""
        """Folder of the home volume on the engine's machine."""
        self.home_missing: dict[str, bytes] = {}
        """Files for the home folder that this process could not write, by absolute path."""
        self.gate = ""
        """Path of the start gate's program in pre-started containers."""

    def make_network(self) -> None:
        """Make the network of the steps and their child containers. Other builds may share it."""
        self._engine.ensure_network(self._options.network, self._labels)

    def note_strangers(self) -> None:
        """Record the containers on the network before the first step, which must stay."""
        members = self._engine.network_members(self._options.network)
        self._strangers = frozenset(member.id for member in members)

    def remove_strays(self) -> None:
        """Remove containers that steps started on the network and left running.

        On the hosted service, these containers end with the build's machine. If another build uses
        the network, too, their origin is unknown, and they stay.
        """
        strays = []
        for member in self._engine.network_members(self._options.network):
            build = member.labels.get(LABEL_BUILD)
            if build is None and member.id not in self._strangers:
                strays.append(member.id)
            elif build not in (None, self._plan.build_id):
                return
        for stray in strays:
            self._engine.remove_container(stray)

    def make_volumes(self, *, with_files: bool = True) -> None:
        """Make the home volume with its files, and an empty volume for each named volume.

        Existing volumes keep their files. Git refuses a workspace that another user owns, so
        ``safe.directory`` is set for all steps (semantics O-41).
        """
        folder = self.home_folder = self._make_volume("home")
        files = {".gitconfig": _GIT_CONFIG, **self._options.home_files} if with_files else {}
        try:
            for path, data in files.items():
                _write_below(folder, path, data, mode=0o644 if data is _GIT_CONFIG else 0o600)
        except OSError:  # no access to the engine's files: a container's archive call will do it
            self.home_missing = {f"/builder/home/{path}": data for path, data in files.items()}
        for name in self._plan.volumes:
            self._make_volume(f"volume-{name}")
        if any(step.depends_on for step in self._plan.steps):
            self._make_gate()

    def _make_gate(self) -> None:
        """Make a volume with the start gate's program, if the engine needs the gate."""
        info = self._engine.info()
        program = start_gate.gate_program(info.architecture) if info.needs_start_gate else None
        if program is None:
            return
        folder = self._make_volume(GATE_VOLUME)
        try:
            with suppress(FileExistsError):  # a resumed build has it
                _write_below(folder, start_gate.NAME, program, mode=0o755)
        except OSError:  # no access to the engine's files
            volume = volume_name(self._plan.build_id, GATE_VOLUME)
            mount = Mount(source=volume, target=start_gate.FOLDER)
            container = create_copy_container(self._engine, (mount,), self._labels)
            try:
                tar = files_archive({start_gate.PATH: program}, mode=0o755)
                self._engine.fill_mount(container, start_gate.FOLDER, (tar,))
            finally:
                self._engine.remove_container(container)
        self.gate = start_gate.PATH

    def _make_volume(self, name: str) -> str:
        full = volume_name(self._plan.build_id, name)
        self._volumes.append(full)
        mount_point = self._engine.create_volume(full, self._labels)
        lay_apart(mount_point)
        return mount_point

    def remove(self, parts: CleanUpParts, workspace: Workspace, *, sweep: bool) -> None:
        """Remove all resources; the network only if no other container is on it.

        `RunOptions.keep_network` keeps the network in any case.

        Args:
            parts: runs the removals, and records failures.
            workspace: released once no container mounts it.
            sweep: also find and remove all containers and volumes with the build's label;
                otherwise the steps' containers have been removed by now.
        """
        engine = self._engine
        containers: list[str] = []
        if sweep:
            parts.do(_LOOKING, lambda: containers.extend(self._owned().containers))
        if containers:
            parts.do_at_once(
                (f"removing the container {one}", partial(engine.remove_container, one))
                for one in containers
            )
        jobs: list[tuple[str, Callable[[], object]]] = [
            ("removing files", lambda: self._remove_volumes(parts, workspace, sweep=sweep))
        ]
        if not self._options.keep_network:
            network = self._options.network
            jobs.append((f"removing the network {network}", lambda: engine.remove_network(network)))
        parts.do_at_once(jobs)

    def _remove_volumes(self, parts: CleanUpParts, workspace: Workspace, *, sweep: bool) -> None:
        """Remove volumes, the workspace first: it may consist of more than a volume."""
        parts.do("letting go of the workspace", workspace.release)
        volumes = list(self._volumes)
        if sweep:
            parts.do(_LOOKING, lambda: volumes.extend(self._owned().volumes))
        for name in dict.fromkeys(volumes):
            parts.do(f"removing the volume {name}", partial(self._engine.remove_volume, name))

    def _owned(self) -> OwnedResources:
        return self._engine.list_owned({LABEL_BUILD: self._plan.build_id})


def _write_below(folder: str, path: str, data: bytes, *, mode: int) -> None:
    *above, name = path.split("/")
    directory = open_folder(folder)  # steps of earlier builds may control the engine
    try:
        for parent in above:
            with suppress(FileExistsError):
                os.mkdir(parent, dir_fd=directory)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
            below = os.open(parent, flags, dir_fd=directory)
            os.close(directory)
            directory = below
        private = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        file = os.open(name, private, mode, dir_fd=directory)
    finally:
        os.close(directory)
    with open(file, "wb") as content:
        os.fchmod(file, mode)  # regardless of the umask
        content.write(data)


class CleanUpParts:
    """Runs the parts of the clean-up, and knows which are running. Thread-safe.

    Attributes:
        failures: errors, one sentence each.
    """

    def __init__(self) -> None:
        self.failures: list[str] = []
        self._under_way: dict[str, None] = {}

    def do(self, what: str, job: Callable[[], object]) -> None:
        """Run one part.

        Args:
            what: a text such as "removing the volume v", unique among the running parts.
            job: does the part.
        """
        self._under_way[what] = None
        try:
            job()
        except BuildrunnerError as error:
            self.failures.append(str(error))
        except Exception as error:  # noqa: BLE001  (a bug in one must not leave the rest behind)
            self.failures.append(f"{type(error).__name__}: {error}")
        finally:
            self._under_way.pop(what, None)

    def do_at_once(self, jobs: Iterable[tuple[str, Callable[[], object]]]) -> None:
        """Run one part or more, each in a thread (the last one in this thread); wait for all."""
        *others, last = jobs
        threads = [threading.Thread(target=self.do, args=job, daemon=True) for job in others]
        for thread in threads:
            thread.start()
        self.do(*last)
        for thread in threads:
            thread.join()

    def under_way(self) -> tuple[str, ...]:
        """Return the running parts, each after the part that contains it."""
        return tuple(self._under_way)


_QUIET_S = 0.25  # after a start or an end; a step that takes longer leaves time for removals
_BACKLOG = 32  # ended containers take disk space: more are never kept


class ContainerRemover:
    """Removes ended containers and their volumes in one thread, in quiet moments.

    A removal costs the engine an eighth of a start, and slows down a start or an end at the same
    time. So removals wait until no container has started or ended for a while, unless many are due.
    """

    def __init__(self, engine: ContainerEngine) -> None:
        self._engine = engine
        self._due: deque[tuple[str, str]] = deque()
        self._news = threading.Condition()
        self._quiet_at = 0.0
        self._finishing = False
        self._thread: threading.Thread | None = None
        self.failures: list[str] = []
        """The errors of removals."""

    def hold_off(self) -> None:
        """Postpone removals while a step starts or ends."""
        self._quiet_at = time.monotonic() + _QUIET_S

    def remove(self, container: str, volume: str) -> None:
        """Remove an ended container, then the volume that only it used (either may be empty)."""
        self.hold_off()
        with self._news:
            self._due.append((container, volume))
            self._news.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def finish(self) -> None:
        """Remove everything that is due now, and wait for it."""
        with self._news:
            self._finishing = True
            self._news.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (due := self._next()) is not None:
            container, volume = due
            try:
                if container:
                    self._engine.remove_container(container)
                if volume:
                    self._engine.remove_volume(volume)
            except EngineError as error:
                self.failures.append(str(error))

    def _next(self) -> tuple[str, str] | None:
        """Wait for the next resource to remove. Returns None when all is done."""
        with self._news:
            while True:
                left_s = self._quiet_at - time.monotonic()
                if self._due and (self._finishing or left_s <= 0 or len(self._due) > _BACKLOG):
                    return self._due.popleft()
                if self._finishing:
                    return None
                self._news.wait(left_s if self._due else None)
