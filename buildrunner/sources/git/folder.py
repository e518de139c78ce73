"""Git facts about a folder of this machine: its commit and repository."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from buildrunner.errors import SourceError
from buildrunner.sources.git.errors import GitFailed

if TYPE_CHECKING:
    from buildrunner.sources.git.command import GitCommand

_STATUS_LIMIT_S = 60.0

# A repository can declare itself a partial clone. Git then fetches missing objects on demand,
# with programs that the repository's configuration names (``core.sshCommand``).
_NO_TRANSPORT = {"GIT_ALLOW_PROTOCOL": "none"}


class FolderCommit(msgspec.Struct, frozen=True, kw_only=True):
    """The commit of a working tree.

    Attributes:
        root: absolute path of the working tree.
        commit_sha: full SHA of HEAD.
        branch: the branch; empty with a detached HEAD.
        tag: tag of the commit; empty for none.
        url: the remote repository's URL without a password; empty without a remote.
        full_name: ``owner/name`` of the remote repository; the folder's name without a remote.
        changed: whether files differ from the commit, or are untracked.
    """

    root: str
    commit_sha: str
    branch: str = ""
    tag: str = ""
    url: str = ""
    full_name: str = ""
    changed: bool = False


def commit_of_folder(folder: str) -> FolderCommit | None:
    """Return the commit of a folder; None outside of a working tree, or before a first commit.

    Raises:
        SourceError: Git is not installed, or refuses to read the repository.
    """
    root = _working_tree(folder)
    if not root:
        return None
    from buildrunner.sources.git.command import GitCommand
    from buildrunner.sources.git.url import parse_git_url

    git = _without_programs(GitCommand(parse_git_url(root), environment=_NO_TRANSPORT), root)
    head: dict[str, str] = {}
    changed = False
    requested = ("status", "--porcelain=v2", "--branch", "--ignore-submodules=all")
    status = git.run(*requested, folder=root, timeout_s=_STATUS_LIMIT_S)
    for line in status.splitlines():
        if line.startswith("# branch."):
            name, _, value = line.removeprefix("# branch.").partition(" ")
            head[name] = value
        else:
            changed = True
    if head.get("oid", "(initial)") == "(initial)":
        return None
    branch = head.get("head", "")
    url, full_name = _remote(git, root, head.get("upstream", ""))
    return FolderCommit(
        root=root,
        commit_sha=head["oid"],
        branch="" if branch == "(detached)" else branch,
        tag=_answer(git, root, "describe", "--tags", "--exact-match", "HEAD"),
        url=url,
        full_name=full_name or os.path.basename(root),
        changed=changed,
    )


def _without_programs(git: GitCommand, root: str) -> GitCommand:
    """Return a `GitCommand` without the filters of the repository's own configuration.

    The folder, with its ``.git``, may be untrusted: comparing a file with the commit would run
    the program in ``filter.NAME.clean``. (Submodules have their own configurations.)
    """
    named = _answer(git, root, "config", "--null", "--name-only", "--get-regexp", r"^filter\.")
    keys = filter(None, named.split("\0"))
    return git.with_settings(
        [(key, "false" if key.endswith(".required") else "") for key in keys], {}
    )


def _working_tree(folder: str) -> str:
    """Return the working tree of a folder; empty for none."""
    root = os.path.realpath(folder)
    while not os.path.exists(os.path.join(root, ".git")):
        parent = os.path.dirname(root)
        if parent == root:
            return ""
        root = parent
    return root


def _remote(git: GitCommand, root: str, upstream: str) -> tuple[str, str]:
    """Return URL and full name of the branch's own remote, of ``origin``, or of the only remote."""
    from buildrunner.sources.git.url import parse_git_url

    names = _answer(git, root, "remote").split()
    own = upstream.partition("/")[0]
    chosen = next((name for name in (own, "origin") if name in names), "")
    if not chosen and len(names) == 1:
        chosen = names[0]
    url = _answer(git, root, "remote", "get-url", chosen) if chosen else ""
    try:
        parsed = parse_git_url(url) if url else None
    except SourceError:
        return "", ""
    return (parsed.text, parsed.full_name) if parsed else ("", "")


def _answer(git: GitCommand, root: str, *arguments: str) -> str:
    """Return git's output; empty if the command fails."""
    try:
        return git.run(*arguments, folder=root).strip()
    except GitFailed:
        return ""
