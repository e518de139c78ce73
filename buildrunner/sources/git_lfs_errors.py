"""What Git LFS's messages mean. Git itself says of each only that ``smudge filter lfs failed``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from buildrunner.sources.git_errors import Kind  # noqa: TC004  (never decoded)

_SAID = re.compile(
    r"Smudge error: (?:Error downloading (?P<name>.+) \([0-9a-f]{64}\): )?(?P<why>.+)"
)
_FILE = re.compile(r"fatal: (?P<name>.+): smudge filter lfs failed")
_TAIL_CHARACTERS = 200


class LfsFailure(msgspec.Struct, frozen=True):
    """Why files of Git LFS are not there.

    Attributes:
        kind: see `git_errors.Kind`.
        sentence: with ``{url}`` and ``{host}``.
        hint: what to do about it.
        reason: the file, and what Git LFS says of it.
    """

    kind: Kind
    sentence: str
    hint: str
    reason: str


_BUSY = "{host} did not give out the Git LFS files of {url}"
_LATER = "try again later, or fetch without LFS"

# The first that matches counts.
_MEANINGS: tuple[tuple[str, Kind, str, str], ...] = (
    (
        r"no space left on device|disk quota exceeded",
        "disk",
        "there is no space left on the disk for the Git LFS files of {url}",
        "make room, or fetch without LFS",
    ),
    (
        r"authorization error|authentication required|credentials for .* not found|access denied",
        "auth",
        "{host} denies access to the Git LFS files of {url}",
        "check what the token or account may read",
    ),
    (
        r"not found|does not exist",
        "lfs",
        "{url} has files of Git LFS that {host} does not have, or we may not see them",
        "push them with `git lfs push --all`, or fetch without LFS",
    ),
    (
        r"expected oid",
        "network",
        "a Git LFS file of {url} did not arrive as it was committed",
        "push it again with `git lfs push --all`, or fetch without LFS",
    ),
    (r"http (?:429|5\d\d)|server error|batch response: lfs: error", "network", _BUSY, _LATER),
    (
        r"unexpected eof|dial tcp|connection re|timeout|timed out|broken pipe|no such host|reset",
        "network",
        _BUSY,
        "check the network",
    ),
)
_OTHERWISE: tuple[Kind, str, str] = ("lfs", _BUSY, "check the LFS server, or fetch without LFS")


def lfs_failure(stderr: str) -> LfsFailure | None:
    """What went wrong with Git LFS; None when that did not stop git.

    Args:
        stderr: all that git wrote.
    """
    file = _FILE.search(stderr)
    if file is None:
        return None
    said = _SAID.search(stderr)
    why = said["why"] if said else "it gives no reason"
    name = (said and said["name"]) or file["name"]
    reason = f"{name}: {_short(why)}".encode("utf-8", "backslashreplace").decode()
    for pattern, kind, sentence, hint in _MEANINGS:
        if re.search(pattern, why, re.IGNORECASE):
            return LfsFailure(kind, sentence, hint, reason)
    return LfsFailure(*_OTHERWISE, reason)


def _short(why: str) -> str:
    """What is said last: before it come names of temporary files, and Go's own view of a URL."""
    status = re.search(r"from (HTTP \d{3})", why)
    return (status[1] if status else why.rpartition("LFS: ")[2])[:_TAIL_CHARACTERS]
