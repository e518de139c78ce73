"""The files of nested sandboxes on this machine, and the owner of each.

A sandbox is known by its *place*: the name of all that is made for it on the host engine. One that
is started for a build has the build's id as its place, and the folder ``run/BUILD/engine``. One
that was started ahead stands in ``spares/PLACE`` until a build takes it: its folder then becomes
``run/BUILD/PLACE``. That is one rename, which succeeds for one of all who try, and after a crash
tells what is whose. (In the folder itself nothing could tell: steps may write there.)
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress

import msgspec

from buildrunner.file_trees import remove_tree
from buildrunner.sandboxes.nested.container import MODES, SOCKET_NAME

_ENGINE = "engine"
_SPARE = "spare-"


class SandboxFolders:
    """See the module.

    Args:
        root: the folder of it all.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def modes(self) -> dict[str, str]:
        """How sandboxes were found to be isolated: ``ENGINE VERSION IMAGE`` to one of `MODES`."""
        with suppress(OSError, msgspec.DecodeError), open(self.modes_file, "rb") as file:
            return msgspec.json.decode(file.read(), type=dict[str, str])
        return {}

    @property
    def modes_file(self) -> str:
        """Path of the file with what `modes` returns."""
        return os.path.join(self.root, "nested.json")

    @property
    def pulled(self) -> str:
        """Path of the folder with notes of `HostPulls`."""
        return os.path.join(self.root, "pulled")

    def mode(self, engine: str) -> str:
        """The mode of the sandboxes on an engine (`HostFacts.identity`); empty if unknown."""
        found = (mode for way, mode in self.modes().items() if way.startswith(f"{engine} "))
        return next((mode for mode in found if mode in MODES), "")

    def notes(self, build_id: str) -> str:
        """The folder that a build's engine shares with us; of a spare, by its place."""
        for name in _names(self._of(build_id)):
            if name.startswith(_SPARE):
                return os.path.join(self._of(build_id), name)
        if build_id.startswith(_SPARE):
            return self._standing(build_id)
        return os.path.join(self._of(build_id), _ENGINE)

    def place(self, build_id: str) -> str:
        """The name of a build's sandbox on the host engine."""
        name = os.path.basename(self.notes(build_id))
        return build_id if name == _ENGINE else name

    def owners(self) -> dict[str, str]:
        """The build of each place that belongs to one."""
        found = {}
        for build_id in _names(os.path.join(self.root, "run")):
            if os.path.isdir(self.notes(build_id)):
                found[self.place(build_id)] = build_id
        return found

    def drop(self, build_id: str) -> str:
        """Remove the folder of a build. Idempotent. Returns why it is still there, or nothing."""
        notes = self.notes(build_id)
        problem = remove_tree(notes)
        with suppress(OSError):  # others keep things beside it
            os.rmdir(os.path.dirname(notes))
        return problem

    def socket(self, build_id: str) -> str:
        """Return the socket of a build's engine."""
        return os.path.join(self.notes(build_id), SOCKET_NAME)

    # -- those that are started ahead --------------------------------------------------------------

    def new_spare(self) -> str:
        """A new place for a sandbox without a build; its folder is made."""
        place = f"{_SPARE}{secrets.token_hex(6)}"
        os.makedirs(self._standing(place), mode=0o700)
        return place

    def spares(self) -> tuple[str, ...]:
        """The places of those that no build has."""
        return tuple(n for n in _names(os.path.join(self.root, "spares")) if n.startswith(_SPARE))

    def take(self, place: str, build_id: str) -> bool:
        """Give one that stands ahead to a build; False when it was given away meanwhile.

        Who wants to remove one takes it for a build of that name.
        """
        begun = False
        while os.path.isdir(self._standing(place)):
            begun = True
            os.makedirs(self._of(build_id), mode=0o700, exist_ok=True)
            try:
                os.rename(self._standing(place), os.path.join(self._of(build_id), place))
            except FileNotFoundError:
                continue  # it was given away, or a server that starts has cleared our folder away
            except OSError:
                break
            return True
        if begun:
            with suppress(OSError):  # others may keep things there
                os.rmdir(self._of(build_id))
        return False

    def is_taken(self, place: str) -> bool:
        """Whether a build has it, and not who is about to remove it.

        Raises:
            OSError: that can't be seen.
        """
        try:
            builds = os.listdir(os.path.join(self.root, "run"))
        except FileNotFoundError:  # with all of it gone, nobody goes on with anything
            return False
        for build_id in builds:
            if build_id == place:
                continue
            with suppress(FileNotFoundError):  # it went meanwhile
                os.stat(os.path.join(self._of(build_id), place))
                return True
        return False

    def _standing(self, place: str) -> str:
        return os.path.join(self.root, "spares", place)

    def _of(self, build_id: str) -> str:
        return os.path.join(self.root, "run", build_id)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
