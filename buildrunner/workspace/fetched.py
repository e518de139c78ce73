"""``/workspace`` of a build whose source is fetched and unpacked."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from buildrunner.archives.members import Members
from buildrunner.containers.protocol import ContainerEngine
from buildrunner.errors import EngineError
from buildrunner.sources.fetched_files import FetchedSource
from buildrunner.sources.local_folder import FolderSummary, LocalFolder, format_size
from buildrunner.workspace.protocol import (
    BELOW,
    Preparation,
    PreparedWorkspace,
    Workspace,
    WrappedWorkspace,
)
from buildrunner.workspace.shared_files import FilesNotShared, open_volume
from buildrunner.workspace.volume import WorkspaceVolume, volume_name

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout


class FetchedWorkspace:
    """A workspace with a fetched source. Implements `Workspace`.

    The workspace is a plain volume. If the engine's volumes are folders of this machine, and this
    process is root, it writes the files into the volume itself (`tree_writer`). Otherwise it sends
    them to the engine as a tar stream (`archive`), with the same outcome.

    Args:
        source: the source to fetch.
        send: whether to always send the source to the engine.
    """

    def __init__(self, source: FetchedSource, *, send: bool = False) -> None:
        self._source = source
        self._send = send
        self._volume = WorkspaceVolume()

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        name = volume_name(wanted.build_id)
        way = ""

        def unpack(members: Members) -> None:
            nonlocal way
            self.release()
            mount_point = self._volume.create(wanted.engine, wanted.build_id, wanted.labels)
            try:
                folder = -1 if self._send else open_volume(wanted.engine.info(), name, mount_point)
            except FilesNotShared:
                folder = -1
            if folder < 0:
                way = "archive"
                _send(wanted.engine, name, wanted.labels, members)
            else:
                way = "direct"
                _write(folder, members)

        fetched = self._source.fetch(
            unpack, cancel=wanted.cancel, report=wanted.report or _Silent()
        )
        return PreparedWorkspace(
            volume=name,
            files=fetched.files,
            size_bytes=fetched.size_bytes,
            way=way,
            provenance=fetched.provenance,
        )

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`: the workspace is a copy."""
        return ()

    def release(self) -> None:
        """See `Workspace.release`."""
        self._volume.remove()


def _send(
    engine: ContainerEngine, volume: str, labels: Mapping[str, str], members: Members
) -> None:
    from buildrunner.archives.tar_writer import pack
    from buildrunner.workspace.tree_writer import no_room
    from buildrunner.workspace.volume import fill_volume

    try:
        fill_volume(engine, volume, labels, pack(members, below=BELOW))
    except EngineError as error:
        if "no space left" in str(error).lower():
            raise no_room(error) from error
        raise


def _write(folder: int, members: Members) -> None:
    from buildrunner.workspace.tree_writer import write_tree

    try:
        write_tree(folder, members)
        if os.fstat(folder).st_nlink == 0:  # no container holds the volume yet
            raise EngineError(
                "the volume of /workspace was removed while the source was unpacked into it",
                hint="`docker volume prune` removes what no container uses at that moment",
            )
    finally:
        os.close(folder)


class _Silent:
    def line(self, text: str) -> None:
        """See `FetchReport.line`."""

    def moved(self, name: str, current_bytes: int, total_bytes: int) -> None:
        """See `FetchReport.moved`."""


class GitFolder(LocalFolder):
    """The folder of a checkout, with ``.git`` and broken links: no ignore rules apply."""

    def __init__(self, checkout: GitCheckout) -> None:
        super().__init__(checkout.folder, ignore_enabled=False, broken_links=True)
        self._checkout = checkout

    def describe(self, summary: FolderSummary) -> tuple[str, ...]:  # noqa: ARG002
        """Return lines for users about the commit and its size."""
        resolved = self._checkout.resolved
        files = f"{resolved.files:,} file{'s' * (resolved.files != 1)}"
        return (
            *self._checkout.log,
            f"{files} totalling {format_size(resolved.size_bytes)}",
        )


class GitWorkspace(WrappedWorkspace):
    """A workspace that starts with a checkout, and releases it.

    Args:
        checkout: the checkout, which is released with the workspace, even if that was never
            prepared.
        workspace_of: returns a workspace with the files of a folder, which is not changed.
    """

    def __init__(
        self, checkout: GitCheckout, workspace_of: Callable[[LocalFolder], Workspace]
    ) -> None:
        super().__init__(workspace_of(GitFolder(checkout)))
        self._checkout = checkout

    def prepare(self, wanted: Preparation) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        prepared = self._workspace.prepare(wanted)
        return msgspec.structs.replace(prepared, provenance=self._checkout.provenance)

    def release(self) -> None:
        """See `Workspace.release`."""
        try:
            self._workspace.release()
        finally:
            self._checkout.release()
