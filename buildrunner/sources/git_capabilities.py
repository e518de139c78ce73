"""What a Git server can do that decides how it is asked."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from buildrunner.sources.git_errors import GitFailed

if TYPE_CHECKING:
    from buildrunner.sources.git_command import GitCommand

_TIMEOUT_S = 60.0
_SHA256_LENGTH = 64
# Protocol version 2; older servers say "filter" among many words of the first ref.
_FILTER_OFFERED = re.compile(rb"< fetch=(?:\S+ )*filter\b")


def filter_arguments(git: GitCommand, wanted: str, folder: str) -> tuple[str, ...]:
    """``--filter=WANTED`` where the server can leave objects out, else nothing.

    It must not be tried out: with a server that ignores it, git asks for what it then misses by
    a git that does the same, and so on without end. Servers that speak only the first protocol
    are not believed, for some of them leave out more than they should, to the same effect.

    Args:
        git: the door, for the repository's URL.
        wanted: ``tree:0``, ``blob:none``.
        folder: where a file may be written meanwhile.

    Raises:
        GitFailed: the server does not answer, or refuses.
    """
    trace = os.path.join(os.path.abspath(folder), "capabilities")
    traced = git.with_settings([], {"GIT_TRACE_PACKET": trace})
    try:
        traced.run("ls-remote", "--", git.url.text, "HEAD", timeout_s=_TIMEOUT_S)
        with open(trace, "rb") as file:
            offered = any(_FILTER_OFFERED.search(line) for line in file)
    except FileNotFoundError:  # a plain web server: no packets at all
        return ()
    finally:
        if os.path.exists(trace):
            os.unlink(trace)
    return (f"--filter={wanted}",) if offered else ()


def format_argument(sha: str) -> str:
    """The kind of repository that a full SHA is from, as an argument of ``git init``."""
    return f"--object-format={'sha256' if len(sha) == _SHA256_LENGTH else 'sha1'}"


def fetch_history(
    git: GitCommand,
    folder: str,
    commits: tuple[str, ...],
    *,
    filters: tuple[str, ...],
    depth: int,
    timeout_s: float,
) -> None:
    """Fetch commits into a bare repository, in the way that the server allows.

    One that gives out no commit by its SHA, or no part of its history, is asked for everything
    that its refs point to: that may have them.

    Args:
        git: the door.
        folder: the repository.
        commits: full SHAs.
        filters: see `filter_arguments`.
        depth: commits of history; 0 for all of it.
        timeout_s: the longest that one try may take.

    Raises:
        GitFailed: see `GitCommand.run`.
    """
    common = ("fetch", "--quiet", "--no-tags", *filters)
    shallow = (f"--depth={depth}",) if depth else ()
    try:
        git.run(*common, *shallow, "--", git.url.text, *commits, folder=folder, timeout_s=timeout_s)
    except GitFailed as failed:
        if failed.kind in ("auth", "network", "cancelled"):
            raise
        half = ("--unshallow",) if os.path.exists(os.path.join(folder, "shallow")) else ()
        everything = "+refs/*:refs/buildrunner/*"
        git.run(*common, *half, "--", git.url.text, everything, folder=folder, timeout_s=timeout_s)
