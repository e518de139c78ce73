"""What a build's process notes on this disk, so that the next one knows how far it came.

The database may be away when it matters; this folder is where the log is. Each note is there whole
or not at all, also after a power cut, before the process does what it is about.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from buildrunner.worker.data_folder import write_durably

if TYPE_CHECKING:
    from buildrunner.store.build_store import Document

_STEPS_BEGUN = "steps-begun"
_FINAL = "final.json"
_DEATH = "death"


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

    def final(self) -> Document | None:
        """The finished Build, when the work is done and its log complete."""
        try:
            with open(os.path.join(self._folder, _FINAL), "rb") as file:
                return msgspec.json.decode(file.read(), type=dict)
        except FileNotFoundError:
            return None

    def note_final(self, document: Document) -> None:
        """The work is done, the log complete; what is left is to store both."""
        write_durably(os.path.join(self._folder, _FINAL), msgspec.json.encode(document))

    def death(self) -> str:
        """How the process before ours ended, as far as somebody saw it; empty when nobody did."""
        try:
            with open(os.path.join(self._folder, _DEATH), encoding="utf-8") as file:
                return file.read()
        except FileNotFoundError:
            return ""

    def note_death(self, how: str) -> None:
        """Whoever saw the build's process end says how: ``it was killed by signal 9``."""
        write_durably(os.path.join(self._folder, _DEATH), how.encode())
