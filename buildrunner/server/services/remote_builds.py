"""Builds that workers on other hosts run: the operations of the worker protocol.

A worker holds a build by a lease, like the server's own worker, and every operation names the
fence of that lease. A worker that lost its lease changes nothing, and gets `LeaseLost`, which is
the same for an existing and for a missing build. `reported` decides which fields of a worker's
document count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from buildrunner.errors import (
    Conflict,
    LeaseLost,
    NotFound,
    SecretError,
    SourceError,
    StoreError,
    StoreUnavailable,
)
from buildrunner.logs.files.copies import append_to_events, append_to_log, copied_bytes
from buildrunner.logs.files.log_file import index_bytes, log_folder
from buildrunner.plan.build_plan import BuildPlan, SecretReference
from buildrunner.sandboxes.protocol import ISOLATIONS, isolates
from buildrunner.server.context import ServerContext
from buildrunner.server.http.changes import OnlyThis
from buildrunner.server.http.errors import (
    failed_precondition,
    invalid_argument,
    invalid_config,
    permission_denied,
    unavailable,
)
from buildrunner.server.http.peers import Peers
from buildrunner.server.services.queueing import depends_on_commit
from buildrunner.sources.git.source import provenance_of
from buildrunner.sources.policy import policy_text
from buildrunner.sources.uploads import is_upload_of
from buildrunner.spec.model.build import FINAL_STATUSES, Build, BuildStep, Status
from buildrunner.spec.model.message import Message
from buildrunner.spec.model.results import Artifacts, SourceProvenance
from buildrunner.spec.model.source import (
    ConnectedRepository,
    GitSource,
    RepoSource,
    Source,
    is_commit,
)
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.validation.build import DEFAULT_LIMITS
from buildrunner.spec.validation.check import errors_of
from buildrunner.spec.writing import encode_message
from buildrunner.storage.stores import UPLOADS_BUCKET
from buildrunner.store.build_store import Document
from buildrunner.store.model.builds import (
    LEASE_S,
    ClaimedBuild,
    ClaimScope,
    Lease,
    StoredBuild,
    build_asker,
)
from buildrunner.store.model.deployments import recorded
from buildrunner.store.model.remote import (
    BegunBuild,
    ClaimRequest,
    Provenance,
    RemoteSecret,
    WorkerDeployment,
    WorkerIdentity,
)
from buildrunner.store.records import FROM_BUILD, reused_steps_of, steps_begun
from buildrunner.triggers.labels import CONFIG_LABEL
from buildrunner.workspace.carried import Arriving, packed
from buildrunner.workspace.kept import KeptFolder

_WORKER: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")
_MOST_BUILDS: Final = 1000
_LOOKED_AT: Final = 100
# The build's own lines are not part of the limit for steps.
_OWN_LINES_BYTES: Final = 1 << 20

_OUTCOME: Final = (
    "status",
    "status_detail",
    "results",
    "start_time",
    "finish_time",
    "source_provenance",
    "timing",
    "warnings",
    "failure_info",
)
# Fields that a config in the source decides, or that may have substitutions from a commit.
_CONFIG: Final = (
    "steps",
    "timeout",
    "images",
    "artifacts",
    "options",
    "secrets",
    "available_secrets",
    "dependencies",
)
_OF_QUEUE: Final = (Status.STATUS_UNKNOWN, Status.PENDING, Status.EXPIRED)


class RemoteBuilds:
    """The operations of the worker protocol. Thread-safe.

    Args:
        context: the server's context.
        peers: the other servers.
    """

    def __init__(self, context: ServerContext, peers: Peers) -> None:
        self._context = context
        self._peers = peers
        self._queue = context.store.queue
        self._fits: dict[str, dict[str, bool]] = {}  # by pool and build

    def claim(self, worker: WorkerIdentity, request: ClaimRequest) -> StoredBuild | None:
        """Claim the next build for a worker; None if there is none for workers with its token.

        Raises:
            OnlyThis: this worker has reached its limit; there may be a build for others.
            ApiError: the request is invalid, or the token is not for that pool or build.
            NotFound: the requested build does not exist, or is another project's.
            Conflict: the requested build does not wait any more.
        """
        _check(worker, request)
        if self._context.disk_problem():
            return None  # the log could not be stored
        wanted = request.build_id or worker.build_id
        if wanted:
            self._check_waits(worker, wanted)
        settings = self._context.settings
        holder = worker.holder(request.worker)
        scope = ClaimScope(
            pool=worker.pool,
            projects=worker.projects,
            build_id=wanted,
            servers=(settings.worker, *self._peers.answering()),
            trusted_only=not isolates(request.isolation, settings.isolation),
            spare="" if worker.build_id else worker.spare,
        )
        claimed = None
        for chosen in self._chosen_for(scope) if scope.spare else (scope,):
            claimed = self._queue.claim(
                holder,
                now=self._context.clock(),
                lease_s=LEASE_S,
                limit=request.limit,
                scope=chosen,
            )
            if claimed is not None:
                break
        if claimed is None:
            if len(self._queue.claimed(holder)) >= request.limit:
                raise OnlyThis
            return None
        self._context.build_started(claimed[0])
        return _shown(worker, claimed[0])

    def _chosen_for(self, scope: ClaimScope) -> Iterator[ClaimScope]:
        """Yield the scope for each waiting build that fits a spare Pod, in the queue's order."""
        no_forks = {scope.pool} if scope.trusted_only else set()
        waiting = self._queue.waiting_in({scope.pool}, no_forks=no_forks)[:_LOOKED_AT]
        known = self._fits.get(scope.pool, {})
        # Every spare Pod checks the queue after each change, so a large document is read only once.
        fits = {build.id: known[build.id] for build in waiting if build.id in known}
        self._fits[scope.pool] = fits
        for build in waiting:
            if scope.build_id not in ("", build.id) or (build.untrusted and scope.trusted_only):
                continue
            if build.id not in fits:
                try:
                    stored = self._context.store.builds.find(build.id)
                except NotFound:
                    continue
                fits[build.id] = self._context.fits_spare(stored)
            if fits[build.id]:
                yield replace(scope, build_id=build.id)

    def _check_waits(self, worker: WorkerIdentity, build_id: str) -> None:
        stored = self._context.store.builds.find(build_id)
        if worker.projects and stored.document["projectId"] not in worker.projects:
            raise NotFound(f"there is no build {build_id} here")
        if stored.pool != worker.pool:
            raise Conflict(f"build {build_id} is not for workers of the pool {worker.pool or '-'}")
        if stored.status not in ("QUEUED", "PENDING") or stored.worker:
            raise Conflict(
                f"build {build_id} does not wait any more: its status is {stored.status}"
            )

    def held(self, worker: WorkerIdentity, name: str) -> list[ClaimedBuild]:
        """Return the builds that a worker holds."""
        holder = worker.holder(_checked_name(name))
        return [replace(one, worker=name) for one in self._queue.claimed(holder)]

    def find(self, worker: WorkerIdentity, build_id: str) -> StoredBuild:
        """Return a build that a worker with this token holds.

        Raises:
            NotFound: no worker with this token holds such a build.
        """
        stored = self._context.store.builds.find(build_id)
        if not worker.holds(stored.worker):
            raise NotFound(f"there is no build {build_id} here")
        return _shown(worker, stored)

    def take_over(self, worker: WorkerIdentity, name: str, lease: Lease) -> StoredBuild:
        """Give the worker that holds a build a new lease, after the build's process died.

        Raises:
            LeaseLost: the worker does not hold the build.
        """
        holder = worker.holder(_checked_name(name))
        held = self._queue.holder(lease)
        if held is None or held.worker != holder:
            raise _lost(lease)
        try:
            stored, _ = self._queue.claim_again(
                lease.build_id,
                holder,
                now=self._context.clock(),
                lease_s=LEASE_S,
                instead_of=lease.fence,
            )
        except (Conflict, NotFound):
            raise _lost(lease) from None
        return _shown(worker, stored)

    def begin(self, worker: WorkerIdentity, lease: Lease, incarnation: str) -> BegunBuild:
        """Let one process of the worker begin the build.

        Raises:
            LeaseLost: the worker does not hold the build, or another process has begun it.
            StoreError: the log can't be read.
        """
        held = self._own(worker, lease, begun=False)
        self._queue.set_process(lease, incarnation)
        log_bytes, event_bytes = copied_bytes(self._folder(lease))
        settings, credentials = self._context.settings, self._context.credentials
        stored = self._context.store.builds.find(lease.build_id)
        return BegunBuild(
            log_bytes=log_bytes,
            event_bytes=event_bytes,
            settings=self._context.build_settings(held.project),
            sources=policy_text(settings.sources),
            public_url=settings.public_url,
            log_limit_bytes=settings.max_log_bytes,
            has_identity=credentials is not None and bool(credentials.audiences(stored)),
            has_logins=credentials is not None and credentials.has_logins(held.project),
            provenance=credentials.provenance(held.project) if credentials else Provenance(),
            workspace_bytes=self._context.keeping.most_of_one if self._context.keeping else 0,
        )

    def renew(self, worker: WorkerIdentity, lease: Lease) -> str:
        """Renew a lease; return why the build is to be cancelled, or an empty text.

        Raises:
            LeaseLost: see `begin`.
        """
        self._own(worker, lease)
        return self._queue.renew(lease, now=self._context.clock(), lease_s=LEASE_S)

    def wants_cancel(self, worker: WorkerIdentity, lease: Lease) -> bool:
        """Return whether the build is to be cancelled. Raises `LeaseLost`."""
        return self._own(worker, lease).cancel_requested

    def record(self, worker: WorkerIdentity, lease: Lease, document: Document) -> None:
        """Store a worker's report of a build; see `reported`.

        Raises:
            ApiError: the document is another build's, or is invalid.
            LeaseLost: see `begin`.
            Conflict: the build has ended already.
        """
        if (held := self._queue.holder(lease)) is None:
            raise self._why_not_held(worker, lease)
        self._own(worker, lease, held=held)
        sent = decoded_build(document)
        changed = self._reported(lease, sent)
        self._record(lease, changed)
        if sent.status.is_final:
            self._context.build_ended(self._context.store.builds.find(lease.build_id))

    def _why_not_held(self, worker: WorkerIdentity, lease: Lease) -> StoreError:
        """Return `Conflict` if the build ended under this lease, for a worker that may claim it.

        Otherwise return `LeaseLost`. A worker repeats its last report if the answer was lost.
        """
        try:
            stored = self._context.store.builds.find(lease.build_id)
        except NotFound:
            return _lost(lease)
        ended = stored.fence == lease.fence and stored.status in FINAL_STATUSES
        if not ended or not worker.may_claim(stored):
            return _lost(lease)
        return Conflict(f"build {lease.build_id} has ended already, with status {stored.status}")

    def _reported(self, lease: Lease, sent: Build) -> Document:
        if sent.id != lease.build_id:
            raise invalid_argument("this is the document of another build", field="id")
        stored = self._context.store.builds.find(lease.build_id)
        return reported(sent, stored, self._context.clock())

    def _record(self, lease: Lease, document: Document) -> None:
        try:
            self._queue.record(lease, document)
        except (Conflict, LeaseLost, StoreUnavailable):
            raise
        except StoreError as error:
            if self._queue.holder(lease) is None:
                raise _lost(lease) from None
            raise invalid_argument(str(error)) from None

    def record_plan(self, worker: WorkerIdentity, lease: Lease, plan: bytes) -> None:
        """Store the compiled plan.

        Raises:
            ApiError: ``plan`` is not a valid plan.
            LeaseLost: see `begin`.
        """
        self._own(worker, lease)
        try:
            msgspec.json.decode(plan, type=BuildPlan)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise invalid_argument(f"this is no plan: {error}") from None
        self._queue.record_plan(lease, plan)

    def record_deployments(
        self, worker: WorkerIdentity, lease: Lease, made: Sequence[WorkerDeployment]
    ) -> None:
        """Record deployments of the build; their times are limited to its run.

        Raises:
            ApiError: the build has no such step.
            LeaseLost: see `begin`.
        """
        build = decode_message(Build, self.begun(worker, lease).document).value
        first, last = build.start_time or build.create_time, self._context.clock()
        for one in made:
            if one.step >= len(build.steps):
                message = f"the build has {len(build.steps)} steps, and no step {one.step}"
                raise invalid_argument(message, field="step")
        self._queue.record_deployments(
            lease,
            [
                recorded(
                    one.deployment,
                    project_id=build.project_id,
                    build_id=build.id,
                    step=one.step,
                    step_id=build.steps[one.step].id,
                    time=min(max(one.time, first or last), last),
                )
                for one in made
            ],
        )

    def store_log(self, worker: WorkerIdentity, lease: Lease, document: Document) -> Document:
        """Store the finished log of a build in its bucket. Returns its document, with warnings.

        Raises:
            ApiError: the document is another build's, or is invalid.
            LeaseLost: see `begin`.
        """
        sent = decoded_build(document)
        stored = self.begun(worker, lease)
        return self._context.store_log(stored, self._reported(lease, sent))

    def append_log(self, worker: WorkerIdentity, lease: Lease, offset: int, piece: bytes) -> int:
        """Append a piece to the log of a build. Returns the size of the log in bytes.

        Raises:
            LeaseLost: see `begin`.
            OffsetMismatch: the log has another size.
            ApiError: the log is too large, or the disk is full.
            StoreError: the piece is invalid, or can't be written.
        """
        self._own(worker, lease)
        folder = self._folder(lease)
        self._check_room("log", max(offset + len(piece), index_bytes(folder)))
        return append_to_log(folder, offset, piece)

    def append_events(self, worker: WorkerIdentity, lease: Lease, offset: int, piece: bytes) -> int:
        """Append a piece to the events of a build; see `append_log`."""
        self._own(worker, lease)
        self._check_room("events", offset + len(piece))
        return append_to_events(self._folder(lease), offset, piece)

    def _check_room(self, what: str, size: int) -> None:
        limit = self._context.settings.max_log_bytes
        if 0 < limit < size - 2 * _OWN_LINES_BYTES:
            raise invalid_argument(f"the build's {what} would be larger than {limit >> 20} MiB")
        if problem := self._context.disk_problem():
            raise unavailable(f"the build's {what} can't be kept on the server: {problem}")

    def log_folder(self, worker: WorkerIdentity, lease: Lease) -> str:
        """Return the folder of a build's log. Raises `LeaseLost`."""
        self._own(worker, lease)
        return self._folder(lease)

    def begun(self, worker: WorkerIdentity, lease: Lease) -> StoredBuild:
        """Return a build that a worker has begun. Raises `LeaseLost`."""
        self._own(worker, lease)
        return self._context.store.builds.find(lease.build_id)

    def upload(self, worker: WorkerIdentity, lease: Lease) -> str:
        """Return the name of the uploaded archive that is the source of a build.

        Raises:
            LeaseLost: see `begin`.
            NotFound: the source of the build is no upload.
        """
        stored = self.begun(worker, lease)
        source = stored.request.get("source", {}).get("storageSource", {})
        project, name = stored.document["projectId"], str(source.get("object", ""))
        if source.get("bucket") != UPLOADS_BUCKET or not is_upload_of(project, name):
            raise NotFound(f"build {lease.build_id} has no uploaded source")
        return name

    def keep_workspace(
        self, worker: WorkerIdentity, lease: Lease, offset: int, piece: bytes, *, last: bool
    ) -> int:
        """Append a piece of the workspace of a build, and keep it after the last one.

        Returns the bytes that the server has: others than the worker expects if the piece does not
        continue them.

        Raises:
            ApiError: the workspace is too large or invalid, or the server keeps none.
            LeaseLost: see `begin`.
        """
        stored, keeping = self.begun(worker, lease), self._context.keeping
        if keeping is None:
            raise failed_precondition("this server keeps no workspaces")
        if problem := self._context.disk_problem():
            raise unavailable(f"the build's workspace can't be kept on the server: {problem}")
        # The worker must not decide from which repository a later build is.
        source = stored.document.get("sourceProvenance")
        try:
            return Arriving(keeping, lease.build_id).take(
                offset,
                piece,
                last=last,
                provenance=msgspec.json.encode(source) if source else b"",
            )
        except SourceError as error:
            raise invalid_argument(str(error)) from error
        except OSError as error:
            raise unavailable(f"the workspace can't be written: {error.strerror}") from error

    def kept_workspace(self, worker: WorkerIdentity, lease: Lease) -> Iterator[bytes]:
        """Return the kept workspace with which a build begins; see `workspace.carried`.

        Raises:
            NotFound: the build begins with none, or it is not kept any more.
            LeaseLost: see `begin`.
        """
        stored, keeping = self.begun(worker, lease), self._context.keeping
        from_build = stored.labels.get(FROM_BUILD, "")
        if not from_build:
            raise NotFound(f"build {lease.build_id} begins with no kept workspace")
        self._context.store.builds.get(stored.document["projectId"], from_build)
        found = None if keeping is None else packed(KeptFolder(keeping.of(from_build)))
        if found is None:
            raise NotFound(f"the workspace of build {from_build} is not kept any more")
        return found

    def planned(self, worker: WorkerIdentity, lease: Lease) -> tuple[StoredBuild, BuildPlan]:
        """Return a build that a worker has begun, and its stored plan.

        Raises:
            ApiError: the build has no plan yet.
            LeaseLost: see `begin`.
        """
        stored = self.begun(worker, lease)
        found = self._context.store.builds.plan(lease.build_id)
        if found is None:
            raise failed_precondition(f"build {lease.build_id} has no plan yet")
        return stored, msgspec.json.decode(found, type=BuildPlan)

    def secrets(self, worker: WorkerIdentity, lease: Lease) -> list[RemoteSecret]:
        """Return the secrets in the stored plan of a build.

        A secret that the build may not have, or that can't be read, holds the error, not a value.

        Raises:
            ApiError: the build has no plan yet, or the plan has more secrets than a build may have.
            LeaseLost: see `begin`.
        """
        stored, plan = self.planned(worker, lease)
        asker = build_asker(stored, self._context.settings.default_project)
        references = dict.fromkeys(one for step in plan.steps for one in step.secrets)
        if len(references) > (most := DEFAULT_LIMITS.secret_values):
            raise failed_precondition(f"the plan names {len(references)} secrets, at most {most}")
        return [self._secret(asker, one, plan) for one in references]

    def _secret(self, asker: Any, reference: SecretReference, plan: BuildPlan) -> RemoteSecret:
        secret = RemoteSecret(reference=reference)
        try:
            value = self._context.secrets.resolve(asker, reference, plan)
        except SecretError as error:
            return replace(secret, error=str(error), hint=error.hint)
        return replace(secret, value=value)

    def _own(
        self,
        worker: WorkerIdentity,
        lease: Lease,
        *,
        begun: bool = True,
        held: ClaimedBuild | None = None,
    ) -> ClaimedBuild:
        held = held or self._queue.holder(lease)
        if held is None or not worker.holds(held.worker):
            raise _lost(lease)
        if begun and not held.process:
            raise failed_precondition(f"build {lease.build_id} is not begun yet: begin it first")
        return held

    def _folder(self, lease: Lease) -> str:
        return log_folder(self._context.data_folder, lease.build_id)


def _check(worker: WorkerIdentity, request: ClaimRequest) -> None:
    _checked_name(request.worker)
    if request.pool and request.pool != worker.pool:
        pool = f"the pool {worker.pool}" if worker.pool else "builds without a pool"
        raise permission_denied(f"token {worker.name} is for {pool}, not for {request.pool}")
    if worker.build_id and request.build_id not in ("", worker.build_id):
        raise permission_denied(f"token {worker.name} is for another build")
    if not 1 <= request.limit <= _MOST_BUILDS:
        raise invalid_argument(f"limit is from 1 to {_MOST_BUILDS}", field="limit")
    if request.isolation and request.isolation not in ISOLATIONS:
        known = ", ".join(ISOLATIONS)
        raise invalid_argument(f"no isolation is called so; known: {known}", field="isolation")


def _checked_name(name: str) -> str:
    if not _WORKER.fullmatch(name):
        raise invalid_argument(f"{name!r} is no name of a worker", field="worker")
    return name


def _shown(worker: WorkerIdentity, stored: StoredBuild) -> StoredBuild:
    """Return the build for its worker, under the worker's own name."""
    return replace(stored, worker=stored.worker.removeprefix(worker.holder("")))


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"another process runs build {lease.build_id} by now, or it has ended")


def decoded_build(document: Document) -> Build:
    """Return the build that a worker sent.

    Raises:
        ApiError: the document is not a valid build.
    """
    loaded = decode_message(Build, document)
    if not loaded.ok:
        raise invalid_config(errors_of(loaded.problems))
    return loaded.value


def reported(sent: Build, stored: StoredBuild, now: datetime) -> Document:
    """Return the document to store: the stored build with its worker's outcome.

    A worker decides the config of a build only if the server does not know it, and only until a
    step begins: the config is in the source, or has substitutions whose values come from a commit.
    For the fetched source, a worker decides the commit or the generation if the build names none.
    The clock of the worker may be wrong: no time is before the build was created, or in the future.

    Args:
        sent: the worker's document.
        stored: the build.
        now: the server's time.

    Raises:
        ApiError: a worker may not set this status, or these are not the steps of the build.
    """
    before = decode_message(Build, stored.document).value
    if sent.status in _OF_QUEUE or (
        sent.status is Status.QUEUED and before.status is not sent.status
    ):
        raise invalid_argument(f"no worker sets the status {sent.status.name}", field="status")
    sent = _within(sent, before.create_time or now, now)
    changes: dict[str, Any] = {name: getattr(sent, name) for name in _OUTCOME}
    changes["source_provenance"] = _fetched(before.source, sent.source_provenance)
    is_in_source = CONFIG_LABEL in stored.labels
    begun = steps_begun(encode_message(before), reused_steps_of(stored.labels))
    if not begun and (is_in_source or depends_on_commit(before.source)):
        changes |= {name: getattr(sent, name) for name in _CONFIG}
        changes["substitutions"] = sent.substitutions | _settled(before.substitutions)
        kept = tuple(tag for tag in before.tags if "$" not in tag)
        changes["tags"] = tuple(dict.fromkeys((*sent.tags, *kept)))
        if is_in_source or "$" in before.logs_bucket:
            changes["logs_bucket"] = sent.logs_bucket
    else:
        changes["steps"] = _with_states(before.steps, sent.steps)
        changes["artifacts"] = _with_timing(before.artifacts, sent.artifacts)
    return encode_message(replace(before, **changes))


def _fetched(source: Source | None, sent: SourceProvenance | None) -> SourceProvenance | None:
    """Return the fetched source: the source of the build, with the commit that the worker sent.

    Only the commit, the generation and the file hashes are the worker's, since retries of the build
    fetch this source, and its commit gets statuses.
    """
    if source is None or sent is None:
        return None
    if (archive := source.storage_source) is not None:
        found = sent.resolved_storage_source
        generation = archive.generation or (found.generation if found else 0)
        resolved = replace(archive, generation=generation)
        return SourceProvenance(resolved_storage_source=resolved, file_hashes=sent.file_hashes)
    if (files := source.storage_source_manifest) is not None:
        listed = sent.resolved_storage_source_manifest
        generation = files.generation or (listed.generation if listed else 0)
        resolved_files = replace(files, generation=generation)
        return SourceProvenance(resolved_storage_source_manifest=resolved_files)
    requested = (source.repo_source, source.connected_repository, source.git_source)
    resolved_by = (
        sent.resolved_repo_source,
        sent.resolved_connected_repository,
        sent.resolved_git_source,
    )
    for wanted, found_there in zip(requested, resolved_by, strict=True):
        if wanted is None:
            continue
        commit = _commit(wanted)
        if not is_commit(commit) and found_there is not None:
            commit = _commit(found_there)
        if is_commit(commit):
            url = source.git_source.url if source.git_source else ""
            return provenance_of(source, url, commit)
    return None


def _commit(source: RepoSource | ConnectedRepository | GitSource) -> str:
    if isinstance(source, RepoSource):
        return source.commit_sha or ""
    return source.revision


def _within(found: Any, first: datetime, last: datetime) -> Any:
    """Return a message's value with all times between two limits, and no end before its start."""
    match found:
        case datetime():
            return min(max(found, first), last)
        case tuple():
            return tuple(_within(one, first, last) for one in found)
        case dict():
            return {key: _within(one, first, last) for key, one in found.items()}
        case Message():
            fields = {name: getattr(found, name) for name in found.__struct_fields__}
            fields = {name: _within(one, first, last) for name, one in fields.items()}
            for start, end in (("start_time", "end_time"), ("start_time", "finish_time")):
                if fields.get(start) and fields.get(end):
                    fields[end] = max(fields[start], fields[end])
            return replace(found, **fields)
        case _:
            return found


def _settled(substitutions: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in substitutions.items() if "$" not in value}


def _with_states(steps: tuple[BuildStep, ...], sent: tuple[BuildStep, ...]) -> tuple[Any, ...]:
    if len(sent) != len(steps):
        message = f"the build has {len(steps)} steps, not {len(sent)}"
        raise invalid_argument(message, field="steps")
    return tuple(
        replace(step, **{name: getattr(one, name) for name in BuildStep.OUTPUT_ONLY})
        for step, one in zip(steps, sent, strict=True)
    )


def _with_timing(artifacts: Artifacts | None, sent: Artifacts | None) -> Artifacts | None:
    if artifacts is None or artifacts.objects is None or sent is None or sent.objects is None:
        return artifacts
    objects = replace(artifacts.objects, timing=sent.objects.timing)
    return replace(artifacts, objects=objects)
