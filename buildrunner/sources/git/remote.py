"""Questions to a Git server that need no checkout: where its refs are, and which files changed."""

from __future__ import annotations

import os
import tempfile
import threading

from buildrunner.sources.git.command import fetch_history, filter_arguments, format_argument
from buildrunner.sources.git.source import GitPlace, GitRequest, git_door

_REFS_TIMEOUT_S = 60.0
_FETCH_TIMEOUT_S = 120.0
_MESSAGE_TIMEOUT_S = 30.0  # of one commit; deliveries of all forges wait for it
_PEELED = "^{}"


def list_refs(request: GitRequest, place: GitPlace, cancel: threading.Event) -> dict[str, str]:
    """Branches and tags of a repository: commit by full name, tags peeled.

    Names that are not UTF-8 are left out: no event could tell of them.

    Args:
        request: the repository; its revision does not count.
        place: where may be fetched from.
        cancel: kills git within a second when set.

    Raises:
        SourceError: the server does not answer, or refuses.
    """
    git = git_door(request, cancel, None, place.allow_host, place.pin)
    text = git.run("ls-remote", "--heads", "--tags", "--", git.url.text, timeout_s=_REFS_TIMEOUT_S)
    found: dict[str, str] = {}
    for line in text.split("\n"):
        sha, _, name = line.partition("\t")
        if name.endswith(_PEELED) and name.removesuffix(_PEELED) in found:
            found[name.removesuffix(_PEELED)] = sha
        elif name and _readable(name) == name:
            found[name] = sha
    return found


def changed_files(
    request: GitRequest,
    old: str,
    new: str,
    *,
    from_merge_base: bool,
    place: GitPlace,
    cancel: threading.Event,
) -> tuple[str, ...]:
    """Paths that differ between two commits; a renamed file counts under both names.

    Only commits and folders are fetched from servers that can leave out the rest.

    Args:
        request: the repository that has both; its revision does not count.
        old: full SHA.
        new: full SHA.
        from_merge_base: compare with the commit that both come from, not with ``old`` itself.
        place: where may be fetched from, and where folders are made.
        cancel: kills git within a second when set.

    Raises:
        SourceError: the server does not answer, refuses, or has not both.
    """
    git = git_door(request, cancel, None, place.allow_host, place.pin)
    with tempfile.TemporaryDirectory(prefix="buildrunner-diff-", dir=place.temporary) as folder:
        git.run("init", "--quiet", "--bare", "--template=", format_argument(new), folder=folder)
        fetch_history(
            git,
            folder,
            (old, new),
            filters=filter_arguments(git, "blob:none", folder),
            depth=0 if from_merge_base else 1,
            timeout_s=_FETCH_TIMEOUT_S,
        )
        if from_merge_base:
            # Both, and then ^BASE for each base; there is none when they have nothing in common.
            three = git.run("rev-parse", f"{old}...{new}", folder=folder).split()
            old = next((one[1:] for one in three if one.startswith("^")), old)
        listed = git.run(
            "diff-tree", "-r", "-z", "--name-only", "--no-renames", old, new, folder=folder
        )
    return tuple(sorted(_readable(name) for name in listed.split("\0") if name.strip("\n")))


def commit_message(
    request: GitRequest, commit: str, *, place: GitPlace, cancel: threading.Event
) -> str:
    """The message of a commit; nothing but the commit is fetched, where the server can do so.

    Args:
        request: the repository that has it; its revision does not count.
        commit: full SHA.
        place: where may be fetched from, and where folders are made.
        cancel: kills git within a second when set.

    Raises:
        SourceError: the server does not answer, refuses, or has it not.
    """
    git = git_door(request, cancel, None, place.allow_host, place.pin)
    with tempfile.TemporaryDirectory(prefix="buildrunner-log-", dir=place.temporary) as folder:
        git.run("init", "--quiet", "--bare", "--template=", format_argument(commit), folder=folder)
        fetch_history(
            git,
            folder,
            (commit,),
            filters=filter_arguments(git, "tree:0", folder),
            depth=1,
            timeout_s=_MESSAGE_TIMEOUT_S,
        )
        return _readable(git.run("log", "-1", "--format=%B", commit, folder=folder).strip())


def _readable(text: str) -> str:
    """The text, with what is not UTF-8 replaced: it is to be compared, stored and shown."""
    return os.fsencode(text).decode("utf-8", "replace")
