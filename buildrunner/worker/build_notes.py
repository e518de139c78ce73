"""Notes of a build's process on this disk, with which a later process resumes.

The database may be away when it matters; this folder is where the log is. Each note is there whole
or not at all, also after a power cut, before the process does what it is about.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import msgspec

from buildrunner.store.build_store import Document
from buildrunner.worker.data_folder import write_durably

_STEPS_BEGUN = "steps-begun"
_FINAL = "final.json"
_DEATH = "death"
_PLANNED = "planned.json"
_WORKSPACE = "workspace.json"


class PlannedNote(msgspec.Struct, frozen=True):
    """The build that will run, as a later process needs it.

    Attributes:
        document: the Build with its substitutions made.
        plan: its plan, as JSON.
        checkout: folder of the Git checkout that the workspace stands on; empty for none.
        commit: its commit.
    """

    document: dict[str, Any]
    plan: msgspec.Raw
    checkout: str = ""
    commit: str = ""


class BuildNotes:
    """Notes in a build's run folder, which is there. Used by one process at a time."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @property
    def steps_begun(self) -> bool:
        """A step may have been started: beginning anew could run it twice."""
        return os.path.exists(os.path.join(self._folder, _STEPS_BEGUN))

    def note_steps_begun(self) -> None:
        """A step is about to be started."""
        if not self.steps_begun:
            write_durably(os.path.join(self._folder, _STEPS_BEGUN), b"")

    def planned(self) -> PlannedNote | None:
        """The plan, once it was decided."""
        data = self._read(_PLANNED)
        return None if data is None else msgspec.json.decode(data, type=PlannedNote)

    def note_planned(self, note: PlannedNote) -> None:
        """It is decided what is run; nothing of it was done yet."""
        write_durably(os.path.join(self._folder, _PLANNED), msgspec.json.encode(note))

    def workspace(self) -> bytes | None:
        """The filled workspace, as `workspace_resumed.encode_prepared` wrote it."""
        return self._read(_WORKSPACE)

    def note_workspace(self, prepared: bytes) -> None:
        """The workspace is filled; no step has seen it yet."""
        write_durably(os.path.join(self._folder, _WORKSPACE), prepared)

    def forget_all(self) -> None:
        """Nothing is known of the build: it is another run than the one of the notes."""
        for name in (_STEPS_BEGUN, _FINAL, _DEATH, _PLANNED, _WORKSPACE):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, name))

    def forget_run(self) -> None:
        """The build begins anew: what was decided and filled for it is gone."""
        for name in (_PLANNED, _WORKSPACE):
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(self._folder, name))

    def final(self) -> Document | None:
        """The finished Build, when the work is done and its log complete."""
        data = self._read(_FINAL)
        return None if data is None else msgspec.json.decode(data, type=dict)

    def note_final(self, document: Document) -> None:
        """The work is done, the log complete; what is left is to store both."""
        write_durably(os.path.join(self._folder, _FINAL), msgspec.json.encode(document))

    def death(self) -> str:
        """How the process before ours ended, as far as somebody saw it; empty when nobody did."""
        return (self._read(_DEATH) or b"").decode()

    def note_death(self, how: str) -> None:
        """Note how the build's process ended: ``it was killed by signal 9``."""
        write_durably(os.path.join(self._folder, _DEATH), how.encode())

    def _read(self, name: str) -> bytes | None:
        try:
            with open(os.path.join(self._folder, name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
