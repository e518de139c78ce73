"""What a build needs on the engine besides its steps: network, volumes, home; and their removal."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from buildrunner.containers.engine_types import LABEL_BUILD
from buildrunner.engine.shared_files import lay_apart
from buildrunner.engine.step_container import build_labels, volume_name
from buildrunner.errors import BuildrunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from buildrunner.containers.engine_protocol import ContainerEngine
    from buildrunner.containers.engine_types import OwnedResources
    from buildrunner.engine.run_options import RunOptions
    from buildrunner.engine.workspace_protocol import Workspace
    from buildrunner.plan.build_plan import BuildPlan

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
        """Where the home volume is on the engine's machine."""
        self.home_missing: dict[str, bytes] = {}
        """Files for the home folder that could not be written from here, by absolute path."""

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
                _write_below(folder, path, data)
        except OSError:  # the engine's files are not ours: a container's archive call will do it
            self.home_missing = {f"/builder/home/{path}": data for path, data in files.items()}
        for name in self._plan.volumes:
            self._make_volume(f"volume-{name}")

    def _make_volume(self, name: str) -> str:
        full = volume_name(self._plan.build_id, name)
        self._volumes.append(full)
        mount_point = self._engine.create_volume(full, self._labels)
        lay_apart(mount_point)
        return mount_point

    def remove(self, workspace: Workspace, pauses: Iterable[str], *, sweep: bool) -> list[str]:
        """Remove all of it, the network unless others are on it.

        Args:
            workspace: released once nothing mounts it.
            pauses: containers that hold namespaces.
            sweep: first look for whatever carries the build's label and remove that too;
                otherwise the steps' own containers are gone by now.

        Returns:
            What could not be removed, each as a sentence.
        """
        failures: list[str] = []
        engine = self._engine
        containers = list(pauses)
        if sweep:
            attempt(failures, lambda: containers.extend(self._owned().containers))
        _all_at_once(failures, [_remover(engine.remove_container, one) for one in containers])
        jobs: list[Callable[[], object]] = [
            lambda: self._remove_volumes(workspace, sweep, failures),
        ]
        if not self._options.keep_network:
            jobs.append(lambda: engine.remove_network(self._options.network))
        _all_at_once(failures, jobs)
        return failures

    def _remove_volumes(self, workspace: Workspace, sweep: bool, failures: list[str]) -> None:
        """The workspace first: only it knows what there is besides a volume."""
        attempt(failures, workspace.release)
        volumes = list(self._volumes)
        if sweep:
            attempt(failures, lambda: volumes.extend(self._owned().volumes))
        for name in dict.fromkeys(volumes):
            attempt(failures, _remover(self._engine.remove_volume, name))

    def _owned(self) -> OwnedResources:
        return self._engine.list_owned({LABEL_BUILD: self._plan.build_id})


def _remover(remove: Callable[[str], object], name: str) -> Callable[[], object]:
    return lambda: remove(name)


def attempt(failures: list[str], job: Callable[[], object]) -> None:
    """Do a part of cleaning up; whatever goes wrong, the other parts still have their turn."""
    try:
        job()
    except BuildrunnerError as error:
        failures.append(str(error))
    except Exception as error:  # noqa: BLE001  (a bug in one part must not leave the rest behind)
        failures.append(f"{type(error).__name__}: {error}")


def _all_at_once(failures: list[str], jobs: list[Callable[[], object]]) -> None:
    """Run the jobs in threads (the last one here), and wait for all."""
    threads = [
        threading.Thread(target=attempt, args=(failures, job), daemon=True) for job in jobs[:-1]
    ]
    for thread in threads:
        thread.start()
    for job in jobs[-1:]:
        attempt(failures, job)
    for thread in threads:
        thread.join()


def _write_below(folder: str, path: str, data: bytes) -> None:
    target = os.path.join(folder, path)
    if os.path.dirname(path):
        os.makedirs(os.path.dirname(target), exist_ok=True)
    private = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    file = os.open(target, private, 0o600 if data is not _GIT_CONFIG else 0o644)
    with open(file, "wb") as content:
        content.write(data)
