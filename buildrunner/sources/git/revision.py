"""Resolves a revision to one commit, which is then fetched."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from buildrunner.sources.git.command import GitCommand, filter_arguments, format_argument
from buildrunner.sources.git.errors import GitFailed

RevisionKind = Literal["any", "branch", "tag", "commit"]

_RESOLVE_TIMEOUT_S = 120.0
_SILENT_S = 300.0
_BRANCHES_SHOWN = 5
_FULL_SHA = re.compile(r"[0-9a-fA-F]{40}(?:[0-9a-fA-F]{24})?")
_SHORT_SHA = re.compile(r"[0-9a-fA-F]{4,63}")
# Characters that no ref name may have (git-check-ref-format), or that git interprets.
_NOT_A_NAME = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|^[-+/]|/$|\.$|\.lock$|^@$")


class ResolvedRevision(msgspec.Struct, frozen=True, kw_only=True):
    """One commit, and the ref that named it.

    Attributes:
        commit: full SHA; for an annotated tag, the commit that it points to.
        wanted: the object to request: the tag object of an annotated tag, else ``commit``.
        ref: full name of the ref that named it; empty for a SHA.
        branch: branch name; empty if it is no branch.
        tag: tag name; empty if it is no tag.
    """

    commit: str
    wanted: str
    ref: str = ""
    branch: str = ""
    tag: str = ""


def resolve_revision(
    git: GitCommand, revision: str, kind: RevisionKind = "any"
) -> ResolvedRevision:
    """Resolve a revision to the commit that it names on the server now.

    As for ``git fetch``, a tag wins over a branch of the same name, and both win over a short SHA.
    With the kind ``commit`` no ref counts. A short SHA is completed from the tips. If no single tip
    matches, or the kind is ``commit``, `ShortSha` is raised, since only the whole history can
    complete it: whoever may push can make a tip for any short SHA.

    Args:
        git: runs git for the repository's URL.
        revision: branch, tag, SHA or full ref; empty: the remote's HEAD.
        kind: the required kind of the revision.

    Raises:
        GitFailed: ``unknown_ref`` if the revision does not exist; otherwise as `GitCommand.run`.
        ShortSha: the revision is an abbreviated SHA that only the history can complete.

    Source: ``GitSource.revision`` ("anything git fetch takes"; absent: the default branch).
    """
    if revision and _NOT_A_NAME.search(revision):
        raise unknown_revision(git, revision)
    names = _candidates(revision, kind)
    patterns = [name for name in names for name in (name, f"{name}^{{}}")]
    tips, head = _list_refs(git, *patterns)
    if _FULL_SHA.fullmatch(revision) and kind in ("any", "commit"):
        sha = revision.lower()
        return ResolvedRevision(commit=sha, wanted=sha)
    for name in names:
        if name in tips:
            return _of_ref(head if name == "HEAD" and head else name, tips, shown=name)
    if kind in ("any", "commit") and _SHORT_SHA.fullmatch(revision):
        return _of_short_sha(git, revision.lower(), kind)
    if not revision:
        raise _no_default_branch(git)
    raise unknown_revision(git, revision)


def unknown_revision(git: GitCommand, revision: str) -> GitFailed:
    """Return the error for a missing revision."""
    shown = revision.encode("utf-8", "backslashreplace").decode()
    return GitFailed(
        f"{git.url.text} has no revision {shown!r}",
        kind="unknown_ref",
        hint=f"list what there is with `git ls-remote {git.url.text}`",
    )


def _no_default_branch(git: GitCommand) -> GitFailed:
    """Return the error for a HEAD without a commit, if no branch is given."""
    tips, _ = _list_refs(git, "refs/heads/*")
    branches = [name.removeprefix("refs/heads/") for name in sorted(tips)]
    if not branches:
        return GitFailed(
            f"{git.url.text} has no default branch",
            kind="unknown_ref",
            hint="it is empty, or no repository at all",
        )
    shown = ", ".join(branches[:_BRANCHES_SHOWN]) + (", ..." * (len(branches) > _BRANCHES_SHOWN))
    return GitFailed(
        f"{git.url.text} has no default branch: its HEAD names one that does not exist",
        kind="unknown_ref",
        hint=f"name a revision; there is {shown}",
    )


class ShortSha(Exception):
    """An abbreviated SHA, which only the history can complete.

    Attributes:
        prefix: lower case, at least four characters.
        tip: a full SHA of the same repository; empty if it has none.
    """

    def __init__(self, prefix: str, tip: str) -> None:
        super().__init__(prefix)
        self.prefix = prefix
        self.tip = tip


def complete_sha(git: GitCommand, short: ShortSha, folder: str) -> ResolvedRevision:
    """Return the only commit whose SHA begins with ``short``, from a history without files.

    Args:
        git: runs git.
        short: the abbreviated SHA.
        folder: an empty folder for the commits (or for the whole repository, from servers without
            partial clones). The caller removes it.

    Raises:
        GitFailed: no commit, or several commits match.
    """
    prefix = short.prefix
    git.run("init", "--quiet", "--bare", "--template=", format_argument(short.tip), folder=folder)
    git.run(
        "fetch",
        "--progress",
        "--no-tags",
        *filter_arguments(git, "tree:0", folder),
        git.url.text,
        "+refs/heads/*:refs/heads/*",
        "+refs/tags/*:refs/tags/*",
        folder=folder,
        silent_s=_SILENT_S,
    )
    found = git.run("rev-parse", f"--disambiguate={prefix}", folder=folder).split()
    commits = [sha for sha in found if _is_commit(git, sha, folder)]
    if len(commits) > 1:
        raise GitFailed(
            f"{git.url.text} has {len(commits)} commits that start with {prefix}",
            kind="unknown_ref",
            hint="give more characters of the SHA",
        )
    if not commits:
        raise unknown_revision(git, prefix)
    return ResolvedRevision(commit=commits[0], wanted=commits[0])


def _is_commit(git: GitCommand, sha: str, folder: str) -> bool:
    return git.run("cat-file", "-t", sha, folder=folder).strip() == "commit"


def _candidates(revision: str, kind: RevisionKind) -> list[str]:
    """Return the full names that a revision may mean; the first existing one counts."""
    if kind == "commit":
        return []
    if not revision:
        return ["HEAD"]
    if kind == "branch":
        return [f"refs/heads/{revision}"]
    if kind == "tag":
        return [f"refs/tags/{revision}"]
    if revision == "HEAD":
        return ["HEAD"]
    if revision.startswith("refs/"):
        return [revision]
    return [f"refs/tags/{revision}", f"refs/heads/{revision}", f"refs/{revision}"]


def _list_refs(git: GitCommand, *patterns: str) -> tuple[dict[str, str], str]:
    """Return SHAs by full name, and the target of HEAD."""
    # The server is queried even if no name is needed: this checks the access.
    wanted = patterns or ("HEAD",)
    text = git.run(
        "ls-remote", "--symref", "--", git.url.text, *wanted, timeout_s=_RESOLVE_TIMEOUT_S
    )
    tips: dict[str, str] = {}
    head = ""
    for line in text.split("\n"):
        sha, _, name = line.partition("\t")
        if sha.startswith("ref: "):
            head = sha.removeprefix("ref: ") if name == "HEAD" else head
        elif name:
            tips[name] = sha
    return tips, head


def _of_ref(name: str, tips: dict[str, str], *, shown: str) -> ResolvedRevision:
    wanted = tips[shown]
    commit = tips.get(f"{shown}^{{}}", wanted)
    return ResolvedRevision(
        commit=commit,
        wanted=wanted,
        ref=name,
        branch=name.removeprefix("refs/heads/") if name.startswith("refs/heads/") else "",
        tag=name.removeprefix("refs/tags/") if name.startswith("refs/tags/") else "",
    )


def _of_short_sha(git: GitCommand, prefix: str, kind: RevisionKind) -> ResolvedRevision:
    tips, _ = _list_refs(git, "*")
    commits = {
        tips.get(f"{name}^{{}}", sha) for name, sha in tips.items() if not name.endswith("^{}")
    }
    found = [sha for sha in commits if sha.startswith(prefix)]
    if len(found) == 1 and kind != "commit":
        return ResolvedRevision(commit=found[0], wanted=found[0])
    raise ShortSha(prefix, next(iter(commits), ""))
