"""The files of nested sandboxes on this machine, and the owner of each.

A sandbox is identified by its *place*: the name of all its resources on the host engine. A sandbox
that is started for a build has the build's id as its place, and the folder ``run/BUILD/engine``. A
spare sandbox has ``spares/PLACE`` until a build acquires it: its folder then becomes
``run/BUILD/PLACE``. That is one rename, which succeeds for only one of several builds, and which
shows the owner after a crash. (No file in the folder could show it: steps may write there.)
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
    """The folders of nested sandboxes; see the module.

    Args:
        root: the folder of all sandboxes.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.abspath(root)

    def modes(self) -> dict[str, str]:
        """Return the known modes of sandboxes: ``ENGINE VERSION IMAGE`` -> one of `MODES`."""
        with suppress(OSError, msgspec.DecodeError), open(self.modes_file, "rb") as file:
            return msgspec.json.decode(file.read(), type=dict[str, str])
        return {}

    @property
    def modes_file(self) -> str:
        """Return the path of the file with the result of `modes`."""
        return os.path.join(self.root, "nested.json")

    @property
    def pulled(self) -> str:
        """Return the path of the folder with records of `HostPulls`."""
        return os.path.join(self.root, "pulled")

    def mode(self, engine: str) -> str:
        """Return the mode of sandboxes on an engine (`HostFacts.identity`); empty if unknown."""
        found = (mode for way, mode in self.modes().items() if way.startswith(f"{engine} "))
        return next((mode for mode in found if mode in MODES), "")

    def notes(self, build_id: str) -> str:
        """Return the folder that an engine shares with this process, by build or spare place."""
        for name in _names(self._of(build_id)):
            if name.startswith(_SPARE):
                return os.path.join(self._of(build_id), name)
        if build_id.startswith(_SPARE):
            return self._standing(build_id)
        return os.path.join(self._of(build_id), _ENGINE)

    def place(self, build_id: str) -> str:
        """Return the name of a build's sandbox on the host engine."""
        name = os.path.basename(self.notes(build_id))
        return build_id if name == _ENGINE else name

    def owners(self) -> dict[str, str]:
        """Return the build of each place that belongs to one."""
        found = {}
        for build_id in _names(os.path.join(self.root, "run")):
            if os.path.isdir(self.notes(build_id)):
                found[self.place(build_id)] = build_id
        return found

    def drop(self, build_id: str) -> str:
        """Remove the folder of a build. Idempotent. Returns the error, or an empty string."""
        notes = self.notes(build_id)
        problem = remove_tree(notes)
        with suppress(OSError):  # the folder has other content
            os.rmdir(os.path.dirname(notes))
        return problem

    def socket(self, build_id: str) -> str:
        """Return the socket of a build's engine."""
        return os.path.join(self.notes(build_id), SOCKET_NAME)

    # -- spare sandboxes ---------------------------------------------------------------------------

    def new_spare(self) -> str:
        """Return a new place for a sandbox without a build, and create its folder."""
        place = f"{_SPARE}{secrets.token_hex(6)}"
        os.makedirs(self._standing(place), mode=0o700)
        return place

    def spares(self) -> tuple[str, ...]:
        """Return the places of spare sandboxes."""
        return tuple(n for n in _names(os.path.join(self.root, "spares")) if n.startswith(_SPARE))

    def take(self, place: str, build_id: str) -> bool:
        """Acquire a spare sandbox for a build. Returns False if another build has acquired it.

        To remove a spare, acquire it first under a build id equal to its place.
        """
        begun = False
        while os.path.isdir(self._standing(place)):
            begun = True
            os.makedirs(self._of(build_id), mode=0o700, exist_ok=True)
            try:
                os.rename(self._standing(place), os.path.join(self._of(build_id), place))
            except FileNotFoundError:
                continue  # another build has it, or a starting server has cleared the folder
            except OSError:
                break
            return True
        if begun:
            with suppress(OSError):  # the folder may have other content
                os.rmdir(self._of(build_id))
        return False

    def is_taken(self, place: str) -> bool:
        """Return whether a build has acquired a spare, other than for its removal.

        Raises:
            OSError: the folder can't be read.
        """
        try:
            builds = os.listdir(os.path.join(self.root, "run"))
        except FileNotFoundError:  # without any folder, no build can resume
            return False
        for build_id in builds:
            if build_id == place:
                continue
            with suppress(FileNotFoundError):  # removed meanwhile
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
