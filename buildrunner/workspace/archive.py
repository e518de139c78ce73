"""The archive that an engine makes of a workspace, read member by member.

A step can replace the engine of its sandbox and send any archive in the place of this one, so its
members are checked like those of an uploaded source.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from buildrunner.archives.members import SPECIAL, Members
from buildrunner.archives.reader import chunk_reader
from buildrunner.archives.rules import Guard
from buildrunner.archives.tar_reader import TarReader
from buildrunner.archives.tar_writer import HARD_LINK


def workspace_members(chunks: Iterator[bytes], guard: Guard, left_out: list[str]) -> Members:
    """Yield the members of an engine's archive, with their paths in the workspace.

    Args:
        chunks: the archive.
        guard: checks the members.
        left_out: gets the paths of members that are no file, folder or link; they are not yielded.

    Raises:
        SourceError: the archive is damaged, or a member is refused.
    """
    reader = TarReader(chunk_reader(chunks))
    hidden = set()
    for found in reader.members():
        path, target = _inner_path(found.path), found.link_target
        if found.kind == HARD_LINK:
            target = _inner_path(target)
        if found.kind in SPECIAL or (found.kind == HARD_LINK and target in hidden):
            hidden.add(path)
            left_out.append(path)
            continue
        member = guard.admit(replace(found, path=path, link_target=target))
        if member is not None:
            yield member, reader.content()


def _inner_path(name: str) -> str:
    """A member's path in the workspace: the engine puts the folder's own name before it."""
    return name.partition("/")[2].strip("/")
