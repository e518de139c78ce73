"""Filters change files while git writes them: none runs here, but Git LFS when asked for."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from buildrunner.errors import SourceError
from buildrunner.sources.git_errors import GitFailed

if TYPE_CHECKING:
    from buildrunner.sources.git_command import GitCommand

_FILTER_KEY = re.compile(r"filter\.(.+)\.(?:clean|smudge|process|required)")
_NO_FILTER = (("clean", ""), ("smudge", ""), ("process", ""), ("required", "false"))
_LFS = (
    ("filter.lfs.clean", "git-lfs clean -- %f"),
    ("filter.lfs.smudge", "git-lfs smudge -- %f"),
    ("filter.lfs.process", "git-lfs filter-process"),
    ("filter.lfs.required", "true"),
    # With several workers git writes ``.lfsconfig`` after the files whose server it names.
    ("checkout.workers", "1"),
    ("lfs.transfer.maxretries", "2"),  # of a file; what may pass is fetched again as a whole
)


def filter_settings(
    git: GitCommand, folder: str, *, lfs: bool
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Settings and environment that turn every filter of the user's configuration off.

    Args:
        git: the door.
        folder: a repository.
        lfs: let Git LFS put the content in the place of its pointers.

    Raises:
        SourceError: LFS is wanted, and git-lfs is not installed.
    """
    names = git.run("config", "--list", "--name-only", folder=folder)
    drivers = {found[1] for line in names.split("\n") if (found := _FILTER_KEY.fullmatch(line))}
    config = [
        (f"filter.{driver}.{key}", value) for driver in sorted(drivers) for key, value in _NO_FILTER
    ]
    if not lfs:
        return config, {}
    if shutil.which("git-lfs") is None:
        raise SourceError("Git LFS is not installed", hint="install git-lfs")
    return [*config, *_LFS], {"GIT_LFS_SKIP_SMUDGE": "0"}


def check_lfs_hosts(git: GitCommand, folder: str, commit: str) -> None:
    """Refuse LFS servers that the commit's ``.lfsconfig`` names and policy does not allow.

    Raises:
        SourceError: there is one.
    """
    try:
        listed = git.run(
            "config", "--blob", f"{commit}:.lfsconfig", "--null", "--list", folder=folder
        )
    except GitFailed as failed:
        if failed.kind == "cancelled":
            raise
        return  # no such file, or one that LFS can't read either
    for entry in listed.split("\0"):
        key, _, value = entry.partition("\n")
        if key.endswith("url"):
            git.check_host(value)
