"""Nested sandboxes that are started before a build needs them.

A spare one is as if it had just been started for a build: blank, with the host's images as they
are now, and limited as a build's is. Nothing of any project is in it; what its build may know of
registries is told when it is handed over. It goes to one build, and with that build.

Who hands one over sees first that it is well (the host's engine may have been restarted) and like
one that would be started now (images, settings of the host's engine, limits). One that is not stays
where it is; whoever keeps them replaces it.
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
"""On all that is made for one: the process that keeps it, a space, and where its folder is until it
is taken. It stays there after that."""

_NOTE = "spare.json"


class _Note(msgspec.Struct, frozen=True):
    """Written when it answers; nothing of a build has run there by then."""

    keeper: str
    likeness: str
    mode: str
    data_folder: str


class TakenSpare(msgspec.Struct, frozen=True):
    """One that is a build's now.

    Attributes:
        place: its name on the host engine.
        mode: one of `MODES`.
        running: connected.
    """

    place: str
    mode: str
    running: Running


class NestedSpares:
    """The spare sandboxes of one folder. Only their keeper calls `keep` and `drop_all`.

    Args:
        starter: starts them.
        folders: where they stand.
        remove: removes one that was taken for a build of its own name.
        prepare: makes, in one that answers, what each build needs first.
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
        """Give one to a build; None when there is none that is fit.

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
        """Have ``count`` of them that are fit; what is not fit goes first.

        One of an earlier server is not: whoever looks for what dead servers left would remove it.

        Args:
            count: how many.
            facts: of the host engine.
            start: starts one at a place, with labels; its mode besides.

        Raises:
            EngineError: one can't be started, or removed.
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
        """Remove all that no build has.

        Raises:
            EngineError: one can't be removed.
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
            if self._starter.likeness(facts)[0] != likeness:  # with which of both images?
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
        """None while it is being started, and once it was taken."""
        try:
            with open(self._note_path(place), "rb") as file:
                return msgspec.json.decode(file.read(), type=_Note)
        except (OSError, msgspec.DecodeError):
            return None

    def _note_path(self, place: str) -> str:
        return os.path.join(self._folders.notes(place), _NOTE)


def _label(folders: SandboxFolders, place: str) -> str:
    return f"{owner_label(this_process())} {folders.notes(place)}"


# -- what a server that was killed leaves ----------------------------------------------------------


def left_spares(engine: ContainerEngine, is_alive: Callable[[str], bool]) -> OwnedResources:
    """Spare sandboxes of this machine that no build has, and whose server is gone.

    Args:
        engine: where to look.
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
    """Remove those.

    Returns:
        What was removed, and what could not be, one sentence each.
    """
    removed: list[str] = []
    problems: list[str] = []
    for label in _left(engine, is_alive):
        folders, place = _place_of(label)
        folders.take(place, place)
        if folders.is_taken(place):
            continue  # a build was quicker
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
        with suppress(OSError):  # another user's: whose it is can't be seen
            if not folders.is_taken(place):
                left.append(label)
    return left


def _place_of(label: str) -> tuple[SandboxFolders, str]:
    path = label.partition(" ")[2]
    return SandboxFolders(os.path.dirname(os.path.dirname(path))), os.path.basename(path)
