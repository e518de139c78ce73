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
from buildrunner.workspace.shared_files import lay_apart
from buildrunner.workspace.volume import create_carrier

_LOOKING = "looking for what else the build made"
_GIT_CONFIG = b"[safe]\n\tdirectory = /workspace\n"


class BuildResources:
    """Makes and removes them. Methods run in threads; each is called once."""

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
        """Files for the home folder that could not be written from here, by absolute path."""
        self.gate = ""
        """Path of the start gate's program in the containers that are started ahead."""

    def make_network(self) -> None:
        """The network that steps and their children share. It may serve other builds too."""
        self._engine.ensure_network(self._options.network, self._labels)

    def note_strangers(self) -> None:
        """Remember who is on the network before the first step, so that it is left alone."""
        members = self._engine.network_members(self._options.network)
        self._strangers = frozenset(member.id for member in members)

    def remove_strays(self) -> None:
        """Remove what the steps started on the network by themselves and left running.

        On the hosted service it would go with the build's machine. While another build uses the
        network too, nobody can tell whose they are, and they are left alone.
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
        """The home volume with its files, and all named volumes, empty; what is there stays.

        Git refuses a workspace that another user owns, so that ``safe.directory`` is set for all
        steps (semantics O-41).
        """
        folder = self.home_folder = self._make_volume("home")
        files = {".gitconfig": _GIT_CONFIG, **self._options.home_files} if with_files else {}
        try:
            for path, data in files.items():
                _write_below(folder, path, data, mode=0o644 if data is _GIT_CONFIG else 0o600)
        except OSError:  # the engine's files are not ours: a container's archive call will do it
            self.home_missing = {f"/builder/home/{path}": data for path, data in files.items()}
        for name in self._plan.volumes:
            self._make_volume(f"volume-{name}")
        if any(step.depends_on for step in self._plan.steps):
            self._make_gate()

    def _make_gate(self) -> None:
        """A volume with the program behind which containers wait that are started ahead."""
        info = self._engine.info()
        program = start_gate.gate_program(info.architecture) if info.needs_start_gate else None
        if program is None:
            return
        folder = self._make_volume(GATE_VOLUME)
        try:
            with suppress(FileExistsError):  # a build that is resumed has it
                _write_below(folder, start_gate.NAME, program, mode=0o755)
        except OSError:  # the engine's files are not ours
            volume = volume_name(self._plan.build_id, GATE_VOLUME)
            mount = Mount(source=volume, target=start_gate.FOLDER)
            carrier = create_carrier(self._engine, (mount,), self._labels)
            try:
                tar = files_archive({start_gate.PATH: program}, mode=0o755)
                self._engine.fill_mount(carrier, start_gate.FOLDER, (tar,))
            finally:
                self._engine.remove_container(carrier)
        self.gate = start_gate.PATH

    def _make_volume(self, name: str) -> str:
        full = volume_name(self._plan.build_id, name)
        self._volumes.append(full)
        mount_point = self._engine.create_volume(full, self._labels)
        lay_apart(mount_point)
        return mount_point

    def remove(self, parts: CleanUpParts, workspace: Workspace, *, sweep: bool) -> None:
        """Remove all of it, the network unless others are on it.

        Args:
            parts: does it, and takes what could not be removed.
            workspace: released once nothing mounts it.
            sweep: first look for whatever carries the build's label and remove that too;
                otherwise the steps' own containers are gone by now.
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
        """The workspace first: only it knows what there is besides a volume."""
        parts.do("letting go of the workspace", workspace.release)
        volumes = list(self._volumes)
        if sweep:
            parts.do(_LOOKING, lambda: volumes.extend(self._owned().volumes))
        for name in dict.fromkeys(volumes):
            parts.do(f"removing the volume {name}", partial(self._engine.remove_volume, name))

    def _owned(self) -> OwnedResources:
        return self._engine.list_owned({LABEL_BUILD: self._plan.build_id})


def _write_below(folder: str, path: str, data: bytes, *, mode: int) -> None:
    target = os.path.join(folder, path)
    if os.path.dirname(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
    private = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    file = os.open(target, private, mode)
    with open(file, "wb") as content:
        os.fchmod(file, mode)  # whatever the umask is
        content.write(data)


class CleanUpParts:
    """Does them, and knows which are under way. Thread-safe.

    Attributes:
        failures: what went wrong, a sentence each.
    """

    def __init__(self) -> None:
        self.failures: list[str] = []
        self._under_way: dict[str, None] = {}

    def do(self, what: str, job: Callable[[], object]) -> None:
        """Do one.

        Args:
            what: "removing the volume v", say. No two of the same text at the same time.
            job: what it does.
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
        """Do at least one, each in a thread (the last one here), and wait for all."""
        *others, last = jobs
        threads = [threading.Thread(target=self.do, args=job, daemon=True) for job in others]
        for thread in threads:
            thread.start()
        self.do(*last)
        for thread in threads:
            thread.join()

    def under_way(self) -> tuple[str, ...]:
        """The current work, each part behind the part that contains it."""
        return tuple(self._under_way)


_QUIET_S = 0.25  # behind a start or an end; a step that takes longer leaves room for removals
_BACKLOG = 32  # ended containers take disk space: more are never kept


class ContainerRemover:
    """Removes ended containers and their volumes in one thread, in quiet moments.

    A removal takes the engine as much work as an eighth of a start, and slows down a start or an
    end that it meets. So it waits until there was neither for a while, unless many are due.
    """

    def __init__(self, engine: ContainerEngine) -> None:
        self._engine = engine
        self._due: deque[tuple[str, str]] = deque()
        self._news = threading.Condition()
        self._quiet_at = 0.0
        self._finishing = False
        self._thread: threading.Thread | None = None
        self.failures: list[str] = []
        """Errors of removals."""

    def hold_off(self) -> None:
        """Postpone removals: a step starts or ends, and the engine has that to do."""
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
        """Remove all that is due now, and wait for it."""
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
