"""Which files a path of ``artifacts.objects`` names, and what they are called in the bucket.

``*``, ``?`` and ``[abc]`` stay within one name of a path and, as in a shell, don't match a dot at
its beginning. ``**`` stands for any folders, hidden ones too, and names that are matched below it
may begin with a dot, as with gsutil. A path without wildcards names one file.

Source: semantics 6.5 and O-12: files keep their base name; with ``**`` they keep their path below
the part of the glob that has no wildcard.
"""

from __future__ import annotations

import posixpath
import re

from buildrunner.errors import UploadError
from buildrunner.sources.glob_pattern import BadPattern, translate_glob

WORKSPACE = "/workspace"
_WILDCARDS = "*?["
_ANY_FOLDERS = "**"


class ObjectGlob:
    """One path of ``artifacts.objects``. Immutable.

    Attributes:
        text: as the config says it.
        folder: the part without wildcards, relative to the workspace; empty for its root. Of a
            path without wildcards: all of it.
        literal: it has no wildcards.
    """

    def __init__(self, text: str, *, workdir: str = WORKSPACE) -> None:
        """Take a path.

        Args:
            text: relative to ``workdir``, or absolute.
            workdir: where the build works: ``/workspace`` or a folder below.

        Raises:
            UploadError: it leaves the workspace.
        """
        path = posixpath.normpath(posixpath.join(workdir, text))
        inside = path.startswith(f"{WORKSPACE}/")
        if not inside:
            raise UploadError(f"{text} is not a path below {WORKSPACE}")
        names = path.removeprefix(f"{WORKSPACE}/").split("/")
        wild = [index for index, name in enumerate(names) if _is_wild(name)]
        self.text = text
        self.literal = not wild
        fixed = names[: wild[0]] if wild else names
        self.folder = "/".join(fixed)
        self._names = _compiled(names[len(fixed) :])
        self._keeps_folders = None in self._names

    def matches(self, path: str) -> bool:
        """Whether a file is meant, by its path relative to `folder` (not for literal ones)."""
        # The positions in the glob that the names so far can have led to.
        reached = self._closed({0})
        for name in path.split("/"):
            following: set[int] = set()
            for position in reached:
                if position == len(self._names):
                    continue
                wanted = self._names[position]
                if wanted is None:
                    following.add(position)
                elif wanted.fullmatch(name):
                    following.add(position + 1)
            reached = self._closed(following)
            if not reached:
                return False
        return len(self._names) in reached

    def object_name(self, path: str) -> str:
        """What a file is called in the bucket, by its path relative to `folder`."""
        return path if self._keeps_folders else posixpath.basename(path or self.folder)

    def _closed(self, positions: set[int]) -> set[int]:
        """With the positions that any number of ``**`` for no folder at all leads to."""
        closed = set(positions)
        for position in positions:
            while position < len(self._names) and self._names[position] is None:
                position += 1
                closed.add(position)
        return closed


def _is_wild(name: str) -> bool:
    return any(character in name for character in _WILDCARDS)


def _compiled(names: list[str]) -> tuple[re.Pattern[str] | None, ...]:
    """A pattern for each name of the glob; None for ``**``."""
    compiled: list[re.Pattern[str] | None] = []
    for name in names:
        while name.startswith(_ANY_FOLDERS):
            compiled.append(None)
            name = name[2:]
            if name and not name.startswith("*"):
                name = f"*{name}"
        if name:
            hidden = None in compiled or name.startswith(".")
            compiled.append(re.compile(("" if hidden else r"(?!\.)") + _pattern(name), re.DOTALL))
    if compiled and compiled[-1] is None:
        compiled.append(re.compile(".+", re.DOTALL))
    return tuple(compiled)


def _pattern(name: str) -> str:
    try:
        return translate_glob(name.replace("\\", "\\\\"), across_directories=False)
    except BadPattern:  # a bracket that is never closed is just a bracket
        return translate_glob(re.sub(r"([\\\[])", r"\\\1", name), across_directories=False)
