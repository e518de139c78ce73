"""Publishing after the steps: images, then files, then packages."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from buildrunner.containers.protocol import ContainerEngine, PushedImage
from buildrunner.engine import outcome as decisions
from buildrunner.engine.cancellation import Clock
from buildrunner.engine.events import BuildEvent, ImagePushed, PushStarted
from buildrunner.engine.image_pulls import (
    LONGEST_WAIT_S,
    PUSH_TRIES,
    TransferReport,
    backoff_delays,
    split_reference,
)
from buildrunner.engine.log.pipeline import LogPipeline
from buildrunner.engine.outcome import (
    BuildOutcome,
    PublishedPackage,
    PushedName,
    Span,
    UploadedObjects,
)
from buildrunner.engine.progress import BUILD, PUSH, FileTransferReport
from buildrunner.engine.protocols import Attester
from buildrunner.engine.resources import BuildResources
from buildrunner.engine.running_build import RunningBuild
from buildrunner.errors import ImagePushError, PackageError, UploadError
from buildrunner.registries.logins import DockerLogins, parse_docker_config
from buildrunner.spec.validation.references import attachment_refusal
from buildrunner.workspace.protocol import volume_name
from buildrunner.workspace.shared_files import open_folder
from buildrunner.workspace.volume import read_volume_file

_LIMIT = 1024 * 1024


def read_home_logins(
    engine: ContainerEngine, volume: str, folder: str, labels: Mapping[str, str]
) -> DockerLogins:
    """Return the logins in the steps' ``~/.docker/config.json``; none without such a file.

    If this machine has the volume's folder, the file is read there. The steps wrote its content,
    so no link is followed and only a regular file is read.

    Args:
        engine: the engine that ran the steps.
        volume: the home volume.
        folder: its folder on the engine's machine.
        labels: labels for resources on the engine.

    Raises:
        EngineError: the engine can't give the file.
    """
    try:
        data = _read_here(folder)
    except OSError:
        data = read_volume_file(engine, volume, ".docker/config.json", labels, limit=_LIMIT)
    return parse_docker_config(data) if data else DockerLogins()


def _read_here(folder: str) -> bytes:
    no_link = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    home = open_folder(folder)  # fails if the engine is on another machine
    try:
        directory = os.open(".docker", no_link | os.O_DIRECTORY, dir_fd=home)
        try:
            file = os.open("config.json", no_link, dir_fd=directory)
        finally:
            os.close(directory)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    finally:
        os.close(home)
    with open(file, "rb") as content:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return b""
        return content.read(_LIMIT)


class Publishing:
    """Publishes in a thread of its own. Results belong to the loop once the thread has ended.

    Args:
        build: the running build. Its `decide` gets the result.
        resources: give access to the home volume, in which steps may have logged in.
        so_far: returns the outcome of the build so far, for the attester.
    """

    def __init__(
        self,
        build: RunningBuild,
        resources: BuildResources,
        so_far: Callable[[], BuildOutcome],
    ) -> None:
        self._build = build
        self._plan = build.plan
        self._uploader = build.context.uploader
        self._publisher = build.context.publisher
        self._attester = build.context.attester
        self._so_far = so_far
        self._inbox = build.inbox
        self._phases = build.phases
        self._resources = resources
        self._report = build.report
        self._warn = partial(build.inbox.tell, build.warn)
        self._decide = build.decide
        self._push = ImagePush(
            build.engine, build.log, halt=build.halt, clock=build.clock, report=self._report
        )
        self.uploaded: UploadedObjects | None = None
        """The result of ``artifacts.objects``; None before the upload has ended."""
        self.published: list[PublishedPackage] = []
        """The packages that have been published."""
        self.attestations: tuple[bytes, ...] = ()
        """Signed statements about the published artifacts."""

    @property
    def pushed(self) -> list[PushedName]:
        """Return the images that a registry has confirmed."""
        return self._push.pushed

    def begin(self) -> None:
        """Publish all artifacts after the last step, and decide how the build ends."""
        if self._is_needed():
            self._inbox.spawn(
                "check", self._missing, done=self._on_checked, failed=self._failed_to_check
            )
            return
        self._phases.end(BUILD)
        self._build.log.line_once("PUSH")
        self._decide(decisions.SUCCEEDED)

    def _is_needed(self) -> bool:
        plan = self._plan
        wanted = bool(plan.images or plan.packages or plan.object_paths)
        return self._build.options.push and wanted

    def _on_checked(self, missing: list[str]) -> None:
        if self._build.halt.is_set():  # the build was stopped meanwhile
            return
        if missing:
            self._decide(decisions.images_not_found(missing))
            return
        self._phases.end(BUILD)
        if PUSH not in self._phases.spans:  # a resumed build may have begun it before
            self._phases.begin(PUSH)
        self._build.log.line_once("PUSH")
        self._inbox.spawn("push", self._publish, done=self._on_pushed, failed=self._failed_to_push)

    def _on_pushed(self, _nothing: None) -> None:
        self._phases.end(PUSH)
        self._decide(decisions.SUCCEEDED)

    def _failed_to_check(self, error: Exception) -> None:
        self._decide(decisions.failed_setup(error))

    def _failed_to_push(self, error: Exception) -> None:
        self._decide(decisions.failed_push(error))

    # -- in separate threads ---------------------------------------------------------------------

    def _missing(self) -> list[str]:
        """Return the images to push that the engine does not have."""
        return missing_images(self._build.engine, self._plan.images)

    def _publish(self) -> None:
        """Publish everything.

        Source: semantics 6.1: objects after all images, before packages.
        """
        home = volume_name(self._plan.build_id, "home")
        folder = self._resources.home_folder
        logins = read_home_logins(self._build.engine, home, folder, self._build.labels)
        for warning in logins.warnings_for(self._plan.images):
            self._warn(warning)
        self._push.push_all(self._plan.images, logins)
        if self._plan.object_paths:
            self._upload_objects()
        self._publish_packages()
        if self._attester is not None:
            self._attest(self._attester, logins)

    def _attest(self, attester: Attester, logins: DockerLogins) -> None:
        log = self._build.log
        attested = attester.attest(
            self._so_far(),
            logins=logins,
            masked=log.masked_text,
            log=log.line,
            cancel=self._build.halt,
        )
        self.attestations = attested.statements
        for warning in attested.warnings:
            self._warn(warning)

    def _upload_objects(self) -> None:
        from buildrunner.workspace.files import WorkspaceFiles

        if self._uploader is None:
            raise UploadError(f"no uploader is configured for {self._plan.object_location}")
        build = self._build
        self.uploaded = self._uploader.upload(
            self._plan,
            lambda: WorkspaceFiles(
                build.engine,
                build.workspace,
                build.labels,
                build.halt,
                limit_bytes=build.options.disk_bytes,
            ),
            report=FileTransferReport("upload", build.log.line, build.clock, self._report),
            cancel=build.halt,
        )

    def _publish_packages(self) -> None:
        """Source: semantics 6.1 and 6.7: after all images, one after the other."""
        build = self._build
        for package in self._plan.packages:
            if self._publisher is None:
                raise PackageError(f"no publisher is configured for {package.label}")
            self.published += self._publisher.publish(
                package, workspace=build.workspace, log=build.log, cancel=build.halt
            )


def missing_images(engine: ContainerEngine, names: Sequence[str]) -> list[str]:
    """Return those of ``names`` that the engine does not have, in order.

    Source: semantics 6.2 (``docker images -q NAME``): a name without a tag is satisfied by any tag.
    """
    return [name for name in names if not _is_here(engine, name)]


class ImagePush:
    """The push phase of one build; runs in one thread.

    Args:
        engine: the engine that has the images.
        log: the build's log.
        halt: set when the build ends early.
        clock: time and jitter.
        report: takes events, from this thread.
    """

    def __init__(
        self,
        engine: ContainerEngine,
        log: LogPipeline,
        *,
        halt: threading.Event,
        clock: Clock,
        report: Callable[[BuildEvent], None],
    ) -> None:
        self._engine = engine
        self._log = log
        self._halt = halt
        self._clock = clock
        self._report = report
        self._logins: DockerLogins | None = None
        self._first_push: dict[str, Span] = {}
        self.pushed: list[PushedName] = []
        """``results.images`` so far. Images that were pushed before a failure stay pushed."""

    def push_all(self, names: Sequence[str], logins: DockerLogins | None = None) -> None:
        """Push images one after the other, in list order. A name without a tag pushes all its tags.

        ``logins`` are the steps' logins. A registry without one gets the user's own login.

        Raises:
            ImagePushError: an image could not be pushed, or its tag has a form that registries
                use for attestations. Later images are not tried.
        """
        self._logins = logins
        for name in names:
            repository, tag = split_reference(name)
            tags = (tag,) if tag else self._engine.tags_of(repository)
            for one in tags:
                if refusal := attachment_refusal(one):
                    raise _with_name(name, ImagePushError(refusal))
                self._push(f"{repository}:{one}")

    def _push(self, name: str) -> None:
        began = self._clock.now()
        image = self._try_hard(name)
        for line in image.log:
            self._log.line(line)
        pushed = Span(began, self._clock.now())
        span = self._first_push.setdefault(image.digest or image.name, pushed)
        repository, tag = split_reference(image.name)
        names = (repository, image.name) if tag == "latest" else (image.name,)
        self.pushed += [
            PushedName(
                name=each,
                digest=image.digest,
                timing=span,
                size_bytes=image.size_bytes,
                layers_pushed=image.layers_pushed,
                layers_reused=image.layers_reused,
            )
            for each in names
        ]
        now = self._clock.now()
        self._report(
            ImagePushed(
                at=now,
                name=image.name,
                digest=image.digest,
                size_bytes=image.size_bytes,
                layers_pushed=image.layers_pushed,
                layers_reused=image.layers_reused,
                push_s=(now - began).total_seconds(),
            )
        )

    def _try_hard(self, name: str) -> PushedImage:
        """Source: semantics 6.3; unlike the local builder, a refusal by the registry is final."""
        delays = backoff_delays(PUSH_TRIES, self._clock.chance)
        progress = TransferReport("push", name, self._clock, self._report)
        login = self._logins.login_for(name) if self._logins else None
        attempt = 0
        while True:
            attempt += 1
            self._log.line(f"Pushing {name}")
            self._report(PushStarted(at=self._clock.now(), image=name, attempt=attempt))
            try:
                return self._engine.push_image(
                    name, on_progress=progress.moved, cancel=self._halt, login=login
                )
            except ImagePushError as error:
                if error.unauthorized or not error.transient or self._halt.is_set():
                    raise _with_name(name, error) from error
                delay = next(delays, None)
                if delay is None:
                    self._log.line("ERROR: failed to push because we ran out of retries.")
                    raise _with_name(name, error) from error
                self._log.line(f"ERROR: push attempt {attempt} detected failure, retrying: {error}")
                self._halt.wait(max(delay, min(error.retry_after_s, LONGEST_WAIT_S)))


def _is_here(engine: ContainerEngine, name: str) -> bool:
    repository, tag = split_reference(name)
    if tag:
        return engine.find_image(name) is not None
    return bool(engine.tags_of(repository))


def _with_name(name: str, error: ImagePushError) -> ImagePushError:
    return ImagePushError(
        f'error pushing image "{name}": {error}',
        transient=error.transient,
        unauthorized=error.unauthorized,
        hint=error.hint,
    )
