"""Files of secrets that lie in the source folder: every step could read them there."""

from __future__ import annotations

import os
from collections.abc import Mapping

from buildrunner.cli.submit.session import say
from buildrunner.errors import EXIT_INFRASTRUCTURE, EXIT_SUCCESS, UsageError
from buildrunner.logs.console.wording import count, size
from buildrunner.sources.folder.ignore_rules import IgnoreRules
from buildrunner.workspace.export import NO_WORKSPACE, ExportedWorkspace


def exposed_secrets(folder: str, ignore_file: str, secrets: Mapping[str, str]) -> list[str]:
    """One warning for each file of a secret that goes into the workspace.

    Args:
        folder: the source.
        ignore_file: ``--ignore-file``.
        secrets: name -> ``env:VARIABLE`` or ``file:ABSOLUTE/PATH``.

    Raises:
        UsageError: there is no such ignore file.
        SourceError: ignore rules that can't be read.
    """
    root = os.path.realpath(folder)
    files = {
        name: os.path.relpath(os.path.realpath(source.removeprefix("file:")), root)
        for name, source in secrets.items()
        if source.startswith("file:")
    }
    inside = {name: path for name, path in files.items() if path.partition("/")[0] != ".."}
    if not inside:
        return []
    from buildrunner.sources.folder.ignore_rules import load_ignore_rules

    rules = load_ignore_rules(root, ignore_file=ignore_file)
    return [
        f"{path} holds the secret {name} and is a part of the source, where every step can read it:"
        " leave it out with a line in .gcloudignore"
        for name, path in inside.items()
        if os.path.isfile(os.path.join(root, path))
        and not is_left_out(path, rules, is_directory=False)
    ]


def is_left_out(path: str, rules: IgnoreRules, *, is_directory: bool) -> bool:
    """Whether the rules leave out a file or folder, or a folder that it is in."""
    folders = path.split("/")[:-1]
    above = ("/".join(folders[:depth]) for depth in range(1, len(folders) + 1))
    return rules.ignores(path, is_directory=is_directory) or any(
        rules.ignores(one, is_directory=True) for one in above
    )


_FLAG = "--write-workspace"
_SHOWN = 3


def prepare_folder(folder: str, source: str | None, ignore_file: str) -> str:
    """Make the folder where it is not there yet; its absolute path.

    Args:
        folder: as given.
        source: the folder that is built; None for a source of another kind.
        ignore_file: ``--ignore-file``.

    Raises:
        UsageError: it is not empty, can't be written, or would become a part of the source.
        SourceError: the ignore rules can't be read.
    """
    path = os.path.abspath(folder)
    if source is not None:
        _refuse_source(path, folder, source, ignore_file)
    try:
        os.makedirs(path, exist_ok=True)
        is_empty = not os.listdir(path)
    except OSError as error:
        raise UsageError(f"{_FLAG} {folder} can't be made: {error.strerror}") from error
    if not is_empty:
        raise UsageError(
            f"{_FLAG} {folder} is not empty",
            hint="name a new or empty folder: the copy never mixes with other files",
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"{_FLAG} {folder} can't be written to: Permission denied")
    return path


def _refuse_source(path: str, folder: str, source: str, ignore_file: str) -> None:
    root = os.path.realpath(source)
    inside = os.path.relpath(os.path.realpath(path), root)
    if inside.split(os.sep, 1)[0] == os.pardir:
        return
    if inside == os.curdir:
        raise UsageError(f"{_FLAG} {folder} is the source itself", hint="name another folder")
    from buildrunner.sources.folder.ignore_rules import load_ignore_rules

    rules = load_ignore_rules(root, ignore_file=ignore_file)
    if not is_left_out(inside, rules, is_directory=True):
        raise UsageError(
            f"{_FLAG} {folder} lies in the source, and the next build would have it as a part",
            hint=f"name a folder outside of it, or leave it out: /{inside}/ in .gcloudignore",
        )


def report_export(exported: ExportedWorkspace | None, folder: str, exit_code: int) -> int:
    """Report the copy of the workspace; return the exit code of the command.

    Args:
        exported: the workspace, released; None for a build that never had one.
        folder: where it went.
        exit_code: that of the build.
    """
    if exported is None or exported.error:
        why = exported.error if exported else NO_WORKSPACE
        say(f"error: the workspace is not in {folder}: {why}\n")
        return EXIT_INFRASTRUCTURE if exit_code == EXIT_SUCCESS else exit_code
    if exported.left_out:
        names = ", ".join(exported.left_out[:_SHOWN])
        more = len(exported.left_out) - _SHOWN
        names += f" and {more} more" if more > 0 else ""
        say(f"warning: {names} can't be copied: neither file, folder nor link\n")
    said = f"{count(exported.files, 'file')}, {size(exported.size_bytes)}"
    say(f"Workspace written to {folder}: {said}\n")
    return exit_code
