"""The credentials that a server makes for builds of workers: tokens, logins, signatures.

The keys stay on the server. Tokens and provenance state facts that the server knows about a build.
A worker reports only facts that it alone can know: the fetched commit, and the digests of
artifacts that the build published to places in its plan.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from buildrunner.engine.log.masking import Masker
from buildrunner.engine.outcome import BuildOutcome
from buildrunner.errors import (
    AttestationError,
    IdentityError,
    IdentityRefused,
    SourceError,
    StoreUnavailable,
)
from buildrunner.logs.files.log_file import log_folder
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan
from buildrunner.plan.compile import git_source_of
from buildrunner.provenance.stored import store_attestations
from buildrunner.server.context import BuildCredentials, ServerContext
from buildrunner.server.http.errors import failed_precondition, invalid_argument
from buildrunner.server.services.remote_builds import RemoteBuilds
from buildrunner.sources.git.source import request_of
from buildrunner.sources.git.url import parse_git_url
from buildrunner.spec.model.build import Build, BuildStep
from buildrunner.spec.reading.decode import decode_message
from buildrunner.store.model.builds import Lease, StoredBuild
from buildrunner.store.model.remote import MadeForBuild, WorkerIdentity
from buildrunner.triggers.labels import BUILT_REF, TRIGGER_NAME


class WorkerCredentials:
    """Makes the credentials of builds. Thread-safe.

    Every method raises `LeaseLost` like `RemoteBuilds.begin`.

    Args:
        context: the server's context.
        builds: the builds of workers.
    """

    def __init__(self, context: ServerContext, builds: RemoteBuilds) -> None:
        self._context = context
        self._builds = builds

    @property
    def _credentials(self) -> BuildCredentials:
        if self._context.credentials is None:
            raise failed_precondition("this server gives no credentials to builds of workers")
        return self._context.credentials

    def identity_token(self, worker: WorkerIdentity, lease: Lease, audience: str) -> MadeForBuild:
        """Return an identity token of a build.

        Raises:
            ApiError: the build has no plan yet.
        """
        stored, plan = self._builds.planned(worker, lease)
        origin = self._origin(stored, plan)
        return _made(lambda: self._credentials.identity_token(stored, origin, audience))

    def logins(self, worker: WorkerIdentity, lease: Lease) -> dict[str, str]:
        """Return the files with the logins of the build's project, by path below a home folder.

        The files have the logins for the registries of images in the plan. They have those for
        package indexes only if the build publishes packages. Builds of forks get none.

        Raises:
            ApiError: the build has no plan yet.
        """
        stored, plan = self._builds.planned(worker, lease)
        if stored.untrusted:
            return {}
        return self._credentials.login_files(str(stored.document["projectId"]), plan)

    def attest(self, worker: WorkerIdentity, lease: Lease, outcome: BuildOutcome) -> MadeForBuild:
        """Sign, store and return the provenance of a build; empty if it published nothing.

        Raises:
            ApiError: the build gets no provenance or has no plan yet, or the plan does not name a
                published image, file or package.
            StoreError: the provenance can't be written.
        """
        stored, plan = self._builds.planned(worker, lease)
        project = str(stored.document["projectId"])
        if stored.untrusted or not stored.push or not self._credentials.provenance(project).enabled:
            raise failed_precondition(f"build {stored.id} gets no provenance")
        _check_published(plan, outcome)
        values = [one.value for one in self._builds.secrets(worker, lease)]
        own = replace(plan, build_id=stored.id, origin=self._origin(stored, plan))
        made = _made(
            lambda: self._credentials.attestation(
                stored,
                replace(_definition(stored), project_id=project),
                replace(own, project_id=project),
                self._within(stored, outcome),
                Masker(values).mask_text,
            )
        )
        if made.value:
            folder = log_folder(self._context.data_folder, stored.id)
            store_attestations(folder, (made.value.encode(),))
        return made

    def _within(self, stored: StoredBuild, outcome: BuildOutcome) -> BuildOutcome:
        """Return the outcome with its times bounded, since the worker's clock may be wrong."""
        now = self._context.clock()
        first = decode_message(Build, stored.document).value.create_time or now
        start = min(max(outcome.started_at, first), now)
        finish = min(max(outcome.finished_at, start), now)
        return replace(outcome, started_at=start, finished_at=finish)

    def _origin(self, stored: StoredBuild, plan: BuildPlan) -> BuildOrigin:
        """Return the origin of a build: only commit and config are from its worker."""
        reported, trigger = plan.origin, str(stored.document.get("buildTriggerId", ""))
        repository = self._repository(stored)
        return replace(
            reported,
            repository=repository,
            commit=reported.commit if repository else "",
            ref=stored.labels.get(BUILT_REF, "") if trigger else reported.ref,
            trigger=trigger,
            trigger_name=stored.labels.get(TRIGGER_NAME, "") if trigger else "",
            untrusted=stored.untrusted,
        )

    def _repository(self, stored: StoredBuild) -> str:
        """Return the URL of the build's Git repository; empty if it has none.

        The URL has the same form as in the origin that a build process reports.
        """
        build = decode_message(Build, stored.document).value
        source = git_source_of(build)
        if source is None:
            return ""
        try:
            project = build.project_id
            names = self._context.repositories.connected_of(project)
            found = request_of(source, project_id=project, repositories=names)
            return parse_git_url(found.url).text
        except SourceError:
            return ""


def _made(make: Callable[[], str]) -> MadeForBuild:
    """Return the text that a function makes for a build, or the reason why it makes none."""
    try:
        return MadeForBuild(value=make())
    except IdentityRefused as error:
        return MadeForBuild(error=str(error), hint=error.hint, refused=True)
    except StoreUnavailable:
        raise
    except (AttestationError, IdentityError) as error:
        return MadeForBuild(error=str(error), hint=error.hint)


def _definition(stored: StoredBuild) -> Build:
    """Return the build as it was planned, without states of its steps."""
    build = decode_message(Build, stored.document).value
    blank = BuildStep()
    unset = {name: getattr(blank, name) for name in BuildStep.OUTPUT_ONLY}
    return replace(build, steps=tuple(replace(step, **unset) for step in build.steps))


def _check_published(plan: BuildPlan, outcome: BuildOutcome) -> None:
    """Refuse to attest artifacts that are not in the build's plan."""
    planned = {_repository_of(image) for image in plan.images}
    for image in outcome.images:
        if _repository_of(image.name) not in planned:
            raise invalid_argument(f"the build pushes no image {image.name}", field="images")
    files = outcome.objects.files if outcome.objects else ()
    for file in files:
        elsewhere = file.url.startswith("gs://") and not file.url.startswith(plan.object_location)
        if not plan.object_paths or elsewhere:  # on a worker, a folder may replace a bucket
            raise invalid_argument(f"the build uploads no file {file.url}", field="objects")
    if outcome.packages and not plan.packages:
        raise invalid_argument("the build publishes no package", field="packages")


def _repository_of(image: str) -> str:
    """Return the name of an image without its tag and digest."""
    name = image.partition("@")[0]
    head, _, tag = name.rpartition(":")
    return name if not head or "/" in tag else head
