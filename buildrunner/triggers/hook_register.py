"""Which repository of this machine has which name on a server: no two may have the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.errors import UsageError
from buildrunner.triggers.hook_installation import installed_settings

if TYPE_CHECKING:
    from pathlib import Path


class HookRegister:
    """A file a name, with the folder of the repository that has it.

    It only reminds: whether the repository still goes by that name is looked up there.

    Args:
        folder: of the files; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def other_repository(self, name: str, server: str, repository: Path) -> Path | None:
        """The folder of another repository that tells the server of its pushes under a name."""
        known = self._known(name)
        if known is None or known == repository:
            return None
        try:
            settings = installed_settings(str(known))
        except UsageError:  # it is gone
            return None
        is_same = settings is not None and (settings.name, settings.server) == (name, server)
        return known if is_same else None

    def note(self, name: str, repository: Path) -> None:
        """Remember whose name it is.

        Raises:
            UsageError: it can't be written down.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._folder / name).write_bytes(bytes(repository))
        except OSError as error:
            raise UsageError(f"{self._folder} can't be written to: {error.strerror}") from error

    def forget(self, name: str, repository: Path) -> None:
        """The repository does not have the name any more."""
        if self._known(name) == repository:
            (self._folder / name).unlink(missing_ok=True)

    def _known(self, name: str) -> Path | None:
        from pathlib import Path

        try:
            return Path((self._folder / name).read_bytes().decode("utf-8", "surrogateescape"))
        except OSError:
            return None
