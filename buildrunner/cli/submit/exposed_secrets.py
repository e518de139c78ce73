"""Files of secrets that lie in the source folder: every step could read them there."""

from __future__ import annotations

import os
from collections.abc import Mapping

from buildrunner.sources.folder.ignore_rules import IgnoreRules


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
