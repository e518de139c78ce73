"""The protocols by which a running build reaches secrets, uploads, packages and attestations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import msgspec

from buildrunner.engine.log.pipeline import LogPipeline
from buildrunner.engine.outcome import BuildOutcome, PublishedPackage, UploadedObjects
from buildrunner.plan.build_plan import BuildPlan, PackageUpload, SecretReference
from buildrunner.registries.logins import DockerLogins
from buildrunner.workspace.files import WorkspaceFiles
from buildrunner.workspace.protocol import PreparedWorkspace


class SecretResolver(Protocol):
    """Resolves references to secrets, at run time only."""

    def resolve(self, reference: SecretReference, plan: BuildPlan | None = None) -> str:
        """Return the secret's value, unmodified (a trailing newline stays).

        Called once per distinct reference and build, before the first step, from a thread.

        Args:
            reference: the secret.
            plan: the build whose steps get it; None outside of builds.

        Raises:
            SecretError: the secret can't be read. The message names the secret, never a value.
        """
        ...


class UploadReport(Protocol):
    """Receives the progress of an upload. Any thread may call it."""

    def line(self, text: str) -> None:
        """Take a line for the build's log."""
        ...

    def moved(self, name: str, current_bytes: int, total_bytes: int) -> None:
        """Report how many bytes of a file are uploaded."""
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
        """Upload the files that the plan's ``object_paths`` name, then their manifest.

        Args:
            plan: what, and where to.
            files: opens the build's workspace.
            report: log and progress.
            cancel: set when the build ends early: give up soon.

        Raises:
            UploadError: a path matches no file, or the bucket refused a file.
            EngineError: the engine refused.
        """
        ...


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
        """Publish all files of one entry of ``artifacts``. Blocks; retries transient errors.

        Args:
            package: what, and where to.
            workspace: the build's workspace.
            log: the build's log.
            cancel: set when the build ends early: give up soon.

        Raises:
            PackageError: no file matches, or the repository refused a file.
            EngineError: the engine refused.
        """
        ...


class Attested(msgspec.Struct, frozen=True):
    """The result of an `Attester`: signed statements, each a line of JSON, and warnings."""

    statements: tuple[bytes, ...] = ()
    warnings: tuple[str, ...] = ()


class Attester(Protocol):
    """Makes and signs statements about a build's published artifacts."""

    def attest(
        self,
        outcome: BuildOutcome,
        *,
        logins: DockerLogins,
        masked: Callable[[str], str],
        log: Callable[[str], None],
        cancel: threading.Event,
    ) -> Attested:
        """Attest all published artifacts of the build. Blocks.

        Args:
            outcome: the build's outcome, complete but for its end.
            logins: the logins that steps made at registries.
            masked: hides the values of secrets in a text.
            log: takes a line for the build's log.
            cancel: set when the build ends early: give up soon.

        Raises:
            AttestationError: no attestation can be made, and the build requires one.
        """
        ...
