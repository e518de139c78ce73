"""Spare nested sandboxes, which are started before a build needs them.

A spare is equal to a sandbox just started for a build: empty, with the host's present images, and
with the same limits. It has no data of any project; the known origins of layers are added when a
build acquires the spare. An acquired spare belongs to one build, and ends with the build.

Before a build gets a spare, the spare must answer (the host's engine may have been restarted) and
equal a new sandbox (images, settings of the host's engine, limits). Otherwise the spare stays until
its keeper replaces it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

import msgspec
from msgspec.structs import replace

from buildrunner.containers.cleanup import owner_label
from buildrunner.containers.process_owner import this_process
from buildrunner.containers.protocol import ContainerEngine, OwnedResources
from buildrunner.errors import EngineError
from buildrunner.sandboxes.nested.container import HostFacts
from buildrunner.sandboxes.nested.engine import Running
from buildrunner.sandboxes.nested.folders import SandboxFolders
from buildrunner.sandboxes.nested.start import NestedStarter, write_whole

LABEL_SPARE = "buildrunner.spare"
"""Label on every resource of a spare. Value: owner process, a space, and the path of its folder
until a build acquires it. The label stays after that."""

_NOTE = "spare.json"


class _Note(msgspec.Struct, frozen=True):
    """The record of a ready spare, written when it answers, before any build."""

    keeper: str
    likeness: str
    mode: str
    data_folder: str


class TakenSpare(msgspec.Struct, frozen=True):
    """A spare that a build has acquired.

    Attributes:
        place: its name on the host engine.
        mode: one of `MODES`.
        running: the connected engine.
    """

    place: str
    mode: str
    running: Running


class NestedSpares:
    """The spare sandboxes of one folder. Only their keeper calls `keep` and `drop_all`.

    Args:
        starter: starts them.
        folders: the folders of sandboxes.
        remove: removes a spare that was acquired under its own name.
        prepare: creates, in a ready spare, the resources that each build needs first.
    """

    def __init__(
        self,
        starter: NestedStarter,
        folders: SandboxFolders,
        *,
        remove: Callable[[str], None],
        prepare: Callable[[ContainerEngine, dict[str, str]], None],
    ) -> None:
        self._starter = starter
        self._folders = folders
        self._remove = remove
        self._prepare = prepare

    def take(self, build_id: str, facts: HostFacts) -> TakenSpare | None:
        """Acquire a valid spare for a build. Returns None if there is none.

        Raises:
            EngineError: the host engine does not answer.
        """
        spares = self._folders.spares()
        if not spares:
            return None
        likeness, images = self._starter.likeness(facts)
        for place in spares:
            note = self._note(place)
            if note is None or note.likeness != likeness:
                continue
            state = self._starter.answers(place)
            if state is not None and self._folders.take(place, build_id):
                running = self._starter.connected(build_id, state, note.data_folder)
                return TakenSpare(place, note.mode, replace(running, images=images))
        return None

    def keep(
        self,
        count: int,
        facts: HostFacts,
        start: Callable[[str, dict[str, str]], tuple[str, Running]],
    ) -> None:
        """Keep ``count`` valid spares. Invalid spares are removed first.

        A spare of an earlier server is invalid: a sweep of dead servers' resources would remove it.

        Args:
            count: the number of spares.
            facts: facts about the host engine.
            start: starts a spare at a place, with labels; returns its mode, too.

        Raises:
            EngineError: a spare can't be started, or removed.
        """
        likeness, _ = self._starter.likeness(facts)
        for place in self._folders.spares():
            note = self._note(place)
            fit = note is not None and note.keeper == this_process() and note.likeness == likeness
            if not fit or self._starter.answers(place) is None:
                self._drop(place)
        for _ in range(count - len(self._folders.spares())):
            self._start(facts, start)

    def drop_all(self) -> None:
        """Remove all spares.

        Raises:
            EngineError: a spare can't be removed.
        """
        for place in self._folders.spares():
            self._drop(place)

    def _start(
        self, facts: HostFacts, start: Callable[[str, dict[str, str]], tuple[str, Running]]
    ) -> None:
        place = self._folders.new_spare()
        labels = {LABEL_SPARE: _label(self._folders, place)}
        try:
            likeness, _ = self._starter.likeness(facts)
            mode, running = start(place, labels)
            try:
                self._prepare(running.engine, labels)
            finally:
                running.engine.close()
            # The settings have changed meanwhile: it is unclear with which ones the spare started.
            if self._starter.likeness(facts)[0] != likeness:
                self._drop(place)
                return
        except EngineError:
            with suppress(EngineError):
                self._drop(place)
            raise
        note = _Note(this_process(), likeness, mode, running.data_folder)
        write_whole(self._note_path(place), msgspec.json.encode(note))

    def _drop(self, place: str) -> None:
        if self._folders.take(place, place):
            self._remove(place)

    def _note(self, place: str) -> _Note | None:
        """Return the record of a spare; None until it is ready, and after it was acquired."""
        try:
            with open(self._note_path(place), "rb") as file:
                return msgspec.json.decode(file.read(), type=_Note)
        except (OSError, msgspec.DecodeError):
            return None

    def _note_path(self, place: str) -> str:
        return os.path.join(self._folders.notes(place), _NOTE)


def _label(folders: SandboxFolders, place: str) -> str:
    return f"{owner_label(this_process())} {folders.notes(place)}"


# -- spares of a server that was killed ------------------------------------------------------------


def left_spares(engine: ContainerEngine, is_alive: Callable[[str], bool]) -> OwnedResources:
    """Return the resources of this machine's spares whose server has died, unless acquired.

    Args:
        engine: the engine to search.
        is_alive: see `cleanup.find_leftovers`.
    """
    found = [engine.list_owned({LABEL_SPARE: label}) for label in _left(engine, is_alive)]
    return OwnedResources(
        tuple(name for one in found for name in one.containers),
        tuple(name for one in found for name in one.volumes),
    )


def sweep_spares(
    engine: ContainerEngine, is_alive: Callable[[str], bool]
) -> tuple[tuple[str, ...], list[str]]:
    """Remove the spares of dead servers.

    Returns:
        The removed containers and volumes, and a sentence for each one that could not be removed.
    """
    removed: list[str] = []
    problems: list[str] = []
    for label in _left(engine, is_alive):
        folders, place = _place_of(label)
        folders.take(place, place)
        if folders.is_taken(place):
            continue  # a build has acquired it meanwhile
        owned = engine.list_owned({LABEL_SPARE: label})
        for remove, names in (
            (engine.remove_container, owned.containers),
            (engine.remove_volume, owned.volumes),
        ):
            for name in names:
                try:
                    remove(name)
                    removed.append(name)
                except EngineError as error:
                    problems.append(str(error))
        folders.drop(place)
    return tuple(removed), problems


def _left(engine: ContainerEngine, is_alive: Callable[[str], bool]) -> list[str]:
    here = owner_label("")
    left = []
    for label in engine.label_values(LABEL_SPARE):
        owner = label.partition(" ")[0]
        if not owner.startswith(here) or is_alive(owner.removeprefix(here)):
            continue
        folders, place = _place_of(label)
        with suppress(OSError):  # another user's folder can't be read
            if not folders.is_taken(place):
                left.append(label)
    return left


def _place_of(label: str) -> tuple[SandboxFolders, str]:
    path = label.partition(" ")[2]
    return SandboxFolders(os.path.dirname(os.path.dirname(path))), os.path.basename(path)
