"""A fetched commit as a build's ``/workspace``: all of it, just as git wrote it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import msgspec

from buildrunner.containers.protocol import ContainerEngine
from buildrunner.sources.fetched_files import FetchReport
from buildrunner.sources.folder.local_folder import FolderSummary, LocalFolder, format_size
from buildrunner.workspace.protocol import PreparedWorkspace, Workspace

if TYPE_CHECKING:
    from buildrunner.sources.git.source import GitCheckout


class GitFolder(LocalFolder):
    """The folder of a checkout, ``.git`` and broken links included: no ignore rule holds here."""

    def __init__(self, checkout: GitCheckout) -> None:
        super().__init__(checkout.folder, ignore_enabled=False, broken_links=True)
        self._checkout = checkout

    def describe(self, summary: FolderSummary) -> tuple[str, ...]:  # noqa: ARG002
        """Lines that tell a person which commit it is, and how much."""
        resolved = self._checkout.resolved
        files = f"{resolved.files:,} file{'s' * (resolved.files != 1)}"
        return (
            *self._checkout.log,
            f"{files} totalling {format_size(resolved.size_bytes)}",
        )


class GitWorkspace:
    """A workspace that starts with a checkout, and gives it back. Implements `Workspace`.

    Args:
        checkout: released with the workspace, also when that was never prepared.
        workspace_of: makes a workspace of a folder that it only reads (as a layer or a copy).
    """

    def __init__(
        self, checkout: GitCheckout, workspace_of: Callable[[LocalFolder], Workspace]
    ) -> None:
        self._checkout = checkout
        self._workspace = workspace_of(GitFolder(checkout))

    def prepare(
        self,
        engine: ContainerEngine,
        build_id: str,
        labels: Mapping[str, str],
        cancel: threading.Event,
        report: FetchReport | None = None,
    ) -> PreparedWorkspace:
        """See `Workspace.prepare`."""
        prepared = self._workspace.prepare(engine, build_id, labels, cancel, report)
        return msgspec.structs.replace(prepared, provenance=self._checkout.provenance)

    def changed_on_host(self) -> tuple[str, ...]:
        """See `Workspace.changed_on_host`."""
        return self._workspace.changed_on_host()

    def release(self) -> None:
        """See `Workspace.release`."""
        try:
            self._workspace.release()
        finally:
            self._checkout.release()
