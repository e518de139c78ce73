"""The seam between a build and whoever uploads its ``artifacts.objects``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from buildrunner.engine.outcome import UploadedObjects
    from buildrunner.engine.workspace_files import WorkspaceFiles
    from buildrunner.plan.build_plan import BuildPlan


class UploadReport(Protocol):
    """Takes what there is to tell of an upload. Any thread may call it."""

    def line(self, text: str) -> None:
        """A line for the build's log."""
        ...

    def moved(self, name: str, current_bytes: int, total_bytes: int) -> None:
        """How much of a file is up."""
        ...


class ObjectUploader(Protocol):
    """Uploads files from a workspace in which no step runs any more."""

    def upload(
        self,
        plan: BuildPlan,
        files: Callable[[], WorkspaceFiles],
        *,
        report: UploadReport,
        cancel: threading.Event,
    ) -> UploadedObjects:
        """Upload what the plan's ``object_paths`` name, then the list of it.

        Args:
            plan: what, and where to.
            files: opens the build's workspace.
            report: log and progress.
            cancel: set when the build ends early: give up soon.

        Raises:
            UploadError: a path names nothing, or the bucket did not take a file.
            EngineError: the engine refused.
        """
        ...
