"""What a build gives away once its steps are through: images, then files, then packages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from buildrunner.engine.image_push import ImagePush, missing_images
from buildrunner.engine.step_container import volume_name
from buildrunner.engine.transfer_report import FileTransferReport
from buildrunner.errors import PackageError, UploadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.engine.events import BuildEvent
    from buildrunner.engine.object_upload import ObjectUploader
    from buildrunner.engine.outcome import PublishedPackage, PushedName, UploadedObjects
    from buildrunner.engine.package_publishing import PackagePublisher
    from buildrunner.engine.workbench import Workbench


class Publishing:
    """Does it, in a thread of the loop's; its results belong to the loop once that has ended.

    Args:
        bench: what the steps worked with.
        uploader: uploads ``artifacts.objects``; needed only for a plan that has any.
        publisher: publishes packages; needed only for a plan that has any.
        report: takes events.
        warn: takes what a person should know.
    """

    def __init__(
        self,
        bench: Workbench,
        *,
        uploader: ObjectUploader | None,
        publisher: PackagePublisher | None,
        report: Callable[[BuildEvent], None],
        warn: Callable[[str], None],
    ) -> None:
        self._bench = bench
        self._plan = bench.plan
        self._uploader = uploader
        self._publisher = publisher
        self._report = report
        self._warn = warn
        self._push = ImagePush(
            bench.engine, bench.log, halt=bench.halt, clock=bench.clock, report=report
        )
        self.uploaded: UploadedObjects | None = None
        """What became of ``artifacts.objects``."""
        self.published: list[PublishedPackage] = []
        """The packages that are out."""

    @property
    def pushed(self) -> list[PushedName]:
        """The images that a registry has confirmed."""
        return self._push.pushed

    def is_needed(self) -> bool:
        """Whether there is anything to do."""
        plan = self._plan
        wanted = bool(plan.images or plan.packages or plan.object_paths)
        return self._bench.options.push and wanted

    def missing(self) -> list[str]:
        """The images that should be pushed, and that no step has built."""
        return missing_images(self._bench.engine, self._plan.images)

    def run(self, home_folder: str) -> None:
        """Give all of it away.

        Source: semantics 6.1: objects after all images, before packages.

        Args:
            home_folder: where the home volume is on the engine's machine: steps may have logged in.
        """
        from buildrunner.engine.home_logins import read_home_logins  # few builds push anything

        home = volume_name(self._plan.build_id, "home")
        logins = read_home_logins(self._bench.engine, home, home_folder, self._bench.labels)
        for warning in logins.warnings_for(self._plan.images):
            self._warn(warning)
        self._push.push_all(self._plan.images, logins)
        if self._plan.object_paths:
            self._upload_objects()
        self._publish_packages()

    def _upload_objects(self) -> None:
        from buildrunner.engine.workspace_files import WorkspaceFiles

        if self._uploader is None:
            raise UploadError(f"there is nobody to upload to {self._plan.object_location}")
        bench = self._bench
        self.uploaded = self._uploader.upload(
            self._plan,
            lambda: WorkspaceFiles(bench.engine, bench.workspace, bench.labels, bench.halt),
            report=FileTransferReport("upload", bench.log.line, bench.clock, self._report),
            cancel=bench.halt,
        )

    def _publish_packages(self) -> None:
        """Source: semantics 6.1 and 6.7: after all images, one after the other."""
        bench = self._bench
        for package in self._plan.packages:
            if self._publisher is None:
                raise PackageError(f"there is nobody to publish {package.label}")
            self.published += self._publisher.publish(
                package, workspace=bench.workspace, log=bench.log, cancel=bench.halt
            )
