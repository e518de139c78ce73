"""The seam between a build and whoever publishes its packages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading

    from buildrunner.engine.log_pipeline import LogPipeline
    from buildrunner.engine.outcome import PublishedPackage
    from buildrunner.engine.workspace_protocol import PreparedWorkspace
    from buildrunner.plan.build_plan import PackageUpload


class PackagePublisher(Protocol):
    """Publishes packages from a workspace in which no step runs any more."""

    def publish(
        self,
        package: PackageUpload,
        *,
        workspace: PreparedWorkspace,
        log: LogPipeline,
        cancel: threading.Event,
    ) -> tuple[PublishedPackage, ...]:
        """Publish all files of one entry of ``artifacts``. Blocks; retries what a retry may help.

        Args:
            package: what, and where to.
            workspace: the build's workspace.
            log: the build's log.
            cancel: set when the build ends early: give up soon.

        Raises:
            PackageError: nothing matches, or the repository did not take it.
            EngineError: the engine refused.
        """
        ...
