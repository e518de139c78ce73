"""What a build gives away once its steps are through: images, then files, then packages."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from buildrunner.engine import decision as decisions
from buildrunner.engine.image_push import ImagePush, missing_images
from buildrunner.engine.phases import BUILD, PUSH
from buildrunner.engine.step_container import volume_name
from buildrunner.engine.transfer_report import FileTransferReport
from buildrunner.errors import PackageError, UploadError

if TYPE_CHECKING:
    from collections.abc import Callable

    from buildrunner.engine.build_resources import BuildResources
    from buildrunner.engine.decision import Decision
    from buildrunner.engine.events import BuildEvent
    from buildrunner.engine.inbox import Inbox
    from buildrunner.engine.object_upload import ObjectUploader
    from buildrunner.engine.outcome import PublishedPackage, PushedName, UploadedObjects
    from buildrunner.engine.package_publishing import PackagePublisher
    from buildrunner.engine.phases import Phases
    from buildrunner.engine.workbench import Workbench


class Publishing:
    """Does it, in a thread of its own; begun by the loop, to which its results belong at the end.

    Args:
        bench: what the steps worked with.
        inbox: where the thread reports.
        phases: told when the push begins and ends.
        resources: know where the home volume is: steps may have logged in.
        uploader: uploads ``artifacts.objects``; needed only for a plan that has any.
        publisher: publishes packages; needed only for a plan that has any.
        emit: takes events.
        warn: takes what a person should know.
        decide: told how the build ends.
    """

    def __init__(
        self,
        bench: Workbench,
        *,
        inbox: Inbox,
        phases: Phases,
        resources: BuildResources,
        uploader: ObjectUploader | None,
        publisher: PackagePublisher | None,
        emit: Callable[[BuildEvent], None],
        warn: Callable[[str], None],
        decide: Callable[[Decision], None],
    ) -> None:
        self._bench = bench
        self._plan = bench.plan
        self._uploader = uploader
        self._publisher = publisher
        self._inbox = inbox
        self._phases = phases
        self._resources = resources
        self._report = partial(inbox.tell, emit)
        self._warn = partial(inbox.tell, warn)
        self._decide = decide
        self._push = ImagePush(
            bench.engine, bench.log, halt=bench.halt, clock=bench.clock, report=self._report
        )
        self.uploaded: UploadedObjects | None = None
        """What became of ``artifacts.objects``."""
        self.published: list[PublishedPackage] = []
        """The packages that are out."""

    @property
    def pushed(self) -> list[PushedName]:
        """The images that a registry has confirmed."""
        return self._push.pushed

    def begin(self) -> None:
        """Every step is through: publish what there is, and decide how the build ends."""
        if self._is_needed():
            self._inbox.spawn(
                "check", self._missing, done=self._on_checked, failed=self._failed_to_check
            )
            return
        self._phases.end(BUILD)
        self._bench.log.line_once("PUSH")
        self._decide(decisions.SUCCEEDED)

    def _is_needed(self) -> bool:
        plan = self._plan
        wanted = bool(plan.images or plan.packages or plan.object_paths)
        return self._bench.options.push and wanted

    def _on_checked(self, missing: list[str]) -> None:
        if self._bench.halt.is_set():  # the build was stopped meanwhile
            return
        if missing:
            self._decide(decisions.images_not_found(missing))
            return
        self._phases.end(BUILD)
        if PUSH not in self._phases.spans:  # of a resumed build it may have begun before
            self._phases.begin(PUSH)
        self._bench.log.line_once("PUSH")
        self._inbox.spawn("push", self._publish, done=self._on_pushed, failed=self._failed_to_push)

    def _on_pushed(self, _nothing: None) -> None:
        self._phases.end(PUSH)
        self._decide(decisions.SUCCEEDED)

    def _failed_to_check(self, error: Exception) -> None:
        self._decide(decisions.failed_setup(error))

    def _failed_to_push(self, error: Exception) -> None:
        self._decide(decisions.failed_push(error))

    # -- in threads of its own -------------------------------------------------------------------

    def _missing(self) -> list[str]:
        """The images that should be pushed, and that no step has built."""
        return missing_images(self._bench.engine, self._plan.images)

    def _publish(self) -> None:
        """Give all of it away.

        Source: semantics 6.1: objects after all images, before packages.
        """
        from buildrunner.engine.home_logins import read_home_logins  # few builds push anything

        home = volume_name(self._plan.build_id, "home")
        folder = self._resources.home_folder
        logins = read_home_logins(self._bench.engine, home, folder, self._bench.labels)
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
            lambda: WorkspaceFiles(
                bench.engine,
                bench.workspace,
                bench.labels,
                bench.halt,
                limit_bytes=bench.options.disk_bytes,
            ),
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
