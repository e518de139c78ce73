"""The settings that hold in a folder, for commands: who is at a terminal is asked about trust."""

from __future__ import annotations

import os
import sys

from buildrunner.logs.console.wording import printable
from buildrunner.settings import ProjectFile, Settings, TrustedFiles, load_settings


def folder_settings(folder: str = ".") -> Settings:
    """Return the settings that hold in ``folder``.

    Raises:
        ConfigError: a settings file is wrong, or the project's needs trust that it does not get.
        StoreError: the user's trust can't be noted.
    """
    return load_settings(folder, confirm=_confirm)


def needs_text(file: ProjectFile) -> str:
    """Return what a project's file asks for, a line each, safe to show."""
    return "".join(
        f"  {printable(place)}: {printable(what)}\n" for place, what in file.needs.items()
    )


def _confirm(file: ProjectFile) -> bool:
    if not (os.isatty(0) and os.isatty(2)):
        return False
    sys.stderr.write(
        f"{printable(file.path)} has settings that need your trust:\n"
        f"{needs_text(file)}Trust this file as it is now? [y/N] "
    )
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        return False
    TrustedFiles(os.environ).add(file)
    return True
