"""The submodules of a checkout, each under the same rules as the repository itself."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

from buildrunner.errors import SourceError
from buildrunner.sources.git_errors import GitFailed

if TYPE_CHECKING:
    from buildrunner.sources.git_command import GitCommand

_MAX_DEPTH = 20
_SILENT_S = 300.0


def update_submodules(git: GitCommand, folder: str, *, depth: int = 0) -> None:
    """Fetch and write the submodules of ``folder``, and theirs, each at depth 1 where that goes.

    Level by level, since the hosts of one level must be allowed before it is fetched.

    Raises:
        GitFailed: one can't be fetched, or speaks a protocol that is not allowed.
        SourceError: a host is not allowed, or they lie in one another without end.
    """
    if not os.path.isfile(os.path.join(folder, ".gitmodules")):
        return
    if depth >= _MAX_DEPTH:
        raise SourceError(
            f"the submodules of {git.url.text} are nested more than {_MAX_DEPTH} deep",
            hint="a submodule may contain itself",
        )
    git.run("submodule", "--quiet", "init", folder=folder)
    git.run("submodule", "--quiet", "sync", folder=folder)
    for url in _values(git, folder, r"^submodule\..*\.url$", "--local"):
        git.check_host(url)
    try:
        _update(git, folder, "--depth=1")
    except GitFailed as failed:
        # The host gives out no part of a history, or no commit that is not a branch's last.
        if failed.kind not in ("no_depth", "not_advertised"):
            raise
        _forget(git, folder)
        _update(git, folder)
    for path in _values(git, folder, r"^submodule\..*\.path$", "--file", ".gitmodules"):
        inner = os.path.join(folder, path)
        # A path that leads out through a link was refused by git and is not there.
        if os.path.exists(os.path.join(inner, ".git")):
            update_submodules(git, inner, depth=depth + 1)


def _update(git: GitCommand, folder: str, *depth: str) -> None:
    git.run(
        *("submodule", "update", "--init", "--force", "--progress", *depth, "--jobs=4"),
        folder=folder,
        silent_s=_SILENT_S,
    )


def _forget(git: GitCommand, folder: str) -> None:
    """Remove what came of the submodules: a clone at depth 1 would never fetch what lies deeper."""
    git.run("submodule", "--quiet", "deinit", "--force", "--all", folder=folder)
    clones = git.run("rev-parse", "--git-path", "modules", folder=folder).removesuffix("\n")
    shutil.rmtree(os.path.join(folder, clones), ignore_errors=True)


def _values(git: GitCommand, folder: str, pattern: str, *source: str) -> list[str]:
    listed = git.run("config", *source, "--null", "--list", folder=folder)
    found = []
    for entry in listed.split("\0"):
        key, _, value = entry.partition("\n")
        if re.search(pattern, key):
            found.append(value)
    return found
