"""The only way into the queue, for builds of callers, uploads, triggers, schedules and retries.

`admit` is pure. It reads the fields and checks every rule of the API, so that a build that can't
run is refused at once, with all its problems. It makes substitutions if all values are known. A
build from a Git repository is stored unchanged, since its commit, branch and tag are known only
after the fetch. In both cases the worker plans from the request, never from the shown build.

`queue_build` admits a build and stores it; `keep_refused` stores one that can't run as a failed
build. `TriggerQueue` adds the settings of a trigger: its group, limit, policy and approval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from buildrunner.errors import ConfigError, UsageError
from buildrunner.plan.build_plan import project_number
from buildrunner.plan.compile import compile_build
from buildrunner.plan.resolve import PlanContext
from buildrunner.problem import Problem, Severity
from buildrunner.server.context import ServerContext
from buildrunner.server.http.errors import invalid_argument
from buildrunner.server.services.authorship import SUBMITTER, People, unresolved_ref
from buildrunner.sources.policy import SourcePolicy, refusals
from buildrunner.sources.uploads import is_upload_of
from buildrunner.spec.model.build import Build, Status
from buildrunner.spec.model.git_address import masked_build
from buildrunner.spec.model.results import (
    ApprovalConfig,
    ApprovalState,
    BuildApproval,
    FailureInfo,
    Priority,
    Warning_,
)
from buildrunner.spec.model.source import Source, StorageSource, StorageSourceManifest
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.substitutions.variables import BuiltIns
from buildrunner.spec.validation.build import DEFAULT_LIMITS
from buildrunner.spec.validation.check import check_build, check_values, errors_of
from buildrunner.spec.writing import encode_message
from buildrunner.storage.stores import UPLOADS_BUCKET
from buildrunner.store.model.builds import TRIGGER_GROUP, NewBuild, StoredBuild
from buildrunner.triggers.build import TriggeredBuild
from buildrunner.triggers.labels import RERUNS_LOST
from buildrunner.triggers.settings import OnLost, TriggerSettings, read_settings

_POOL_FIELDS: Final = ("options.pool", "options.workerPool")
DEFAULT_TIMEOUT: Final = timedelta(seconds=3600)
DEFAULT_QUEUE_TTL: Final = timedelta(seconds=3600)
_LONGEST_TTL: Final = timedelta(days=36500)


class Arrival(msgspec.Struct, frozen=True, kw_only=True):
    """The circumstances of a new build.

    Attributes:
        build_id: id of the build.
        project: project of the build.
        location: ``global`` or a region.
        now: time of the request.
        public_url: URL of this server for users.
        policy: the sources that the build may fetch from.
        trigger_id: id of the build's trigger; empty for none.
        approval: the build must be approved before it runs.
        labels: further facts that are stored with the build.
        request_id: idempotency key; empty for none.
        worker: name of this server's worker, the only one that can read uploads here.
        is_tied: the build needs a kept workspace, which this server has.
        is_pool: returns whether workers of this server have a pool of that name.
        may_use_pool: returns whether builds of a project may use a pool, by the pool's name.
        priority, group, group_limit, supersede, push, untrusted, attempt_of: see `NewBuild`.
    """

    build_id: str
    project: str
    location: str
    now: datetime
    public_url: str
    policy: SourcePolicy
    trigger_id: str = ""
    approval: bool = False
    labels: dict[str, str] = {}
    request_id: str = ""
    worker: str = ""
    priority: int = 0
    group: str = ""
    group_limit: int = 0
    supersede: str = ""
    push: bool = True
    untrusted: bool = False
    attempt_of: str = ""
    is_tied: bool = False
    is_pool: Callable[[str], bool] = lambda _: False
    may_use_pool: Callable[[str, str], bool] = lambda _pool, _project: True

    @property
    def config_comes_later(self) -> bool:
        """Return whether the steps are in a file of the source that is not read yet."""
        return "config_file" in self.labels


def admit(body: Any, arrival: Arrival) -> NewBuild:
    """Return the build to store.

    Args:
        body: the Build as parsed JSON. Fields that only the service sets are dropped.
        arrival: the circumstances of the build.

    Raises:
        ConfigError: the build can't run; holds all problems.
        ApiError: the body is empty.
    """
    if not body:
        raise invalid_argument("no build field was provided", field="build")
    loaded = decode_message(Build, body, outputs=False)
    if not loaded.ok:
        raise ConfigError(errors_of(loaded.problems))
    build = loaded.value
    problems = [*refusals(arrival.policy, build), *_foreign_upload(build, arrival.project)]
    resolved, found = _compiled(build, arrival)
    problems += found
    if errors_of(problems):
        raise ConfigError(errors_of(problems))
    pool = _pool(resolved, arrival)
    if pool and not arrival.may_use_pool(pool, arrival.project):
        message = f"the pool {pool} is not for builds of project {arrival.project}"
        hint = f"the server's administrator adds the project to [pools.{pool}] projects"
        raise ConfigError([Problem(message, path="options.pool.name", hint=hint, rule="pool")])
    if pool:  # the pool exists, so drop the warning that pools have no effect here
        problems = [one for one in problems if not one.path.startswith(_POOL_FIELDS)]
    shown = _with_facts(resolved, arrival, _warnings(problems))
    return replace(_kept(build, shown, arrival), pool=pool)


def refused(body: dict[str, Any], arrival: Arrival, reason: str) -> NewBuild:
    """Return a build that `admit` refuses, as a build that failed before it began.

    Events and schedules need it, since no caller waits for an error there.

    Source: semantics 9.3: an invalid config fails its build, and the commit's status shows it.

    Args:
        body: the requested Build, as JSON.
        arrival: the circumstances of the build.
        reason: the reason for the refusal.
    """
    build = decode_message(Build, body, outputs=False).value
    shown = _with_facts(build, arrival, ())
    failed = replace(
        shown,
        status=Status.FAILURE,
        status_detail=reason,
        failure_info=FailureInfo(detail=reason),
        finish_time=arrival.now,
        # Cut for lists of builds: values from a payload may be as large as the payload.
        substitutions={name: _cut(value) for name, value in build.substitutions.items()},
        # No decision is possible any more. A retry still needs the approval.
        approval=shown.approval and replace(shown.approval, state=ApprovalState.CANCELLED),
    )
    # The build has ended, and supersedes no other build.
    return replace(_kept(build, failed, arrival), expires_at=arrival.now, supersede="")


def _kept(build: Build, shown: Build, arrival: Arrival) -> NewBuild:
    """Return the documents for the store: a build as requested, and as shown."""
    return NewBuild(
        document=encode_message(shown),
        # Masked for refused builds: an admitted build has no password.
        request=masked_build(encode_message(build)),
        expires_at=expires_at(build, arrival.now),
        location=arrival.location,
        request_id=arrival.request_id,
        priority=arrival.priority,
        attempt_of=arrival.attempt_of,
        group=arrival.group,
        group_limit=arrival.group_limit,
        supersede=arrival.supersede,
        push=arrival.push,
        untrusted=arrival.untrusted,
        only_worker=arrival.worker if _uploads(build) or arrival.is_tied else "",
        labels=arrival.labels,
    )


def _pool(build: Build, arrival: Arrival) -> str:
    """Return the pool whose workers run the build; empty if it names no pool of this server.

    The name is ``projects/P/locations/L/workerPools/NAME``, or ``NAME`` alone.
    """
    options = build.options
    if options is None:
        return ""
    named = (options.pool.name if options.pool else "") or options.worker_pool
    name = named.rpartition("/")[2]
    return name if name and arrival.is_pool(name) else ""


def _cut(value: str) -> str:
    most = DEFAULT_LIMITS.substitution_value_bytes
    return value if len(value) <= most else f"{value[: most - 1]}…"


def expires_at(build: Build, now: datetime) -> datetime:
    """Return the time until which a build that is queued now may wait."""
    return now + min(queue_ttl(build), _LONGEST_TTL)


def queue_ttl(build: Build) -> timedelta:
    """Return the time that a build may wait in the queue: its own, or an hour by default."""
    return build.queue_ttl or DEFAULT_QUEUE_TTL


def depends_on_commit(source: Source | None) -> bool:
    """Return whether values of substitutions come from the source's commit."""
    if source is None:
        return False
    return any((source.repo_source, source.git_source, source.connected_repository))


def _compiled(build: Build, arrival: Arrival) -> tuple[Build, list[Problem]]:
    """Return the Build to show, with substitutions if all values are known, and its problems."""
    if arrival.config_comes_later:
        return build, check_values(build)
    triggered = bool(arrival.trigger_id)
    if depends_on_commit(build.source):
        return build, check_build(build, built_ins=None, triggered=triggered)
    context = PlanContext(built_ins=_built_ins(arrival), triggered=triggered)
    try:
        compiled = compile_build(build, context)
    except ConfigError as error:
        return build, list(error.problems)
    return compiled.build, list(compiled.problems)


def _foreign_upload(build: Build, project: str) -> list[Problem]:
    """Refuse uploads that are not archives of the project: a caller must not read other uploads."""
    problems = []
    for name, where in _uploads(build):
        if name != "storageSource" or not is_upload_of(project, where.object):
            message = f"{where.object} is not an upload of project {project}"
            problems.append(Problem(message, path=f"source.{name}.object", rule="source-policy"))
    return problems


def _uploads(build: Build) -> list[tuple[str, StorageSource | StorageSourceManifest]]:
    """Return the uploaded parts of the source, by the field that names them."""
    source = build.source
    if source is None:
        return []
    named = (
        ("storageSource", source.storage_source),
        ("storageSourceManifest", source.storage_source_manifest),
    )
    return [
        (name, where)
        for name, where in named
        if where is not None and where.bucket == UPLOADS_BUCKET
    ]


def _built_ins(arrival: Arrival) -> BuiltIns:
    return BuiltIns(
        project_id=arrival.project,
        project_number=project_number(arrival.project),
        build_id=arrival.build_id,
        location=arrival.location,
    )


def _with_facts(build: Build, arrival: Arrival, warnings: Sequence[Warning_]) -> Build:
    name = f"projects/{arrival.project}/locations/{arrival.location}/builds/{arrival.build_id}"
    approval = None
    if arrival.approval:
        config = ApprovalConfig(approval_required=True)
        approval = BuildApproval(state=ApprovalState.PENDING, config=config)
    return replace(
        build,
        name=name,
        id=arrival.build_id,
        project_id=arrival.project,
        status=Status.PENDING if arrival.approval else Status.QUEUED,
        create_time=arrival.now,
        timeout=build.timeout or DEFAULT_TIMEOUT,
        queue_ttl=queue_ttl(build),
        build_trigger_id=arrival.trigger_id,
        log_url=log_url(arrival.public_url, arrival.project, arrival.build_id),
        approval=approval,
        warnings=tuple(warnings),
    )


def log_url(public_url: str, project: str, build_id: str) -> str:
    """Return the URL of the page that shows a build and its log, and lets users sign in."""
    return f"{public_url}/builds/{project}/{build_id}"


def _warnings(problems: Sequence[Problem]) -> list[Warning_]:
    return [
        Warning_(text=problem.text(), priority=Priority.WARNING)
        for problem in problems
        if problem.severity is Severity.WARNING
    ]


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The facts of one run of a trigger.

    Attributes:
        who: the caller, hook or schedule that started it.
        people: the known people behind it; without any, `ApprovalPolicy.not_author` lets only
            named approvers or an admin approve.
        labels: facts about the event; see `NewBuild.labels`.
        request_id: idempotency key: a second run with it returns the first build.
        priority: see `NewBuild`.
        push: push its images.
    """

    who: str
    people: People = People()
    labels: dict[str, str] = {}
    request_id: str = ""
    priority: int = 0
    push: bool = True


def arrival(context: ServerContext, project: str, location: str, **facts: Any) -> Arrival:
    """Return the circumstances of a new build on this server.

    Args:
        context: the server's context.
        project: the build's project.
        location: the build's location.
        facts: further fields of `Arrival`.
    """
    settings = context.settings
    return Arrival(
        build_id=context.new_id(),
        project=project,
        location=location,
        now=context.clock(),
        public_url=settings.public_url,
        policy=settings.sources,
        is_pool=context.is_pool,
        may_use_pool=context.may_use_pool,
        **{"worker": settings.worker, **facts},
    )


def queue_build(context: ServerContext, body: Any, at: Arrival) -> StoredBuild:
    """Queue a build, or store it until it is approved, and wake the worker.

    Args:
        context: the server's context.
        body: the Build as parsed JSON.
        at: its circumstances.

    Returns:
        The stored build; the earlier one if there is one with the same request id.

    Raises:
        ApiError: the body holds no build.
        ConfigError: the build can't run; holds all problems.
        Conflict: the request id belongs to another request.
        QuotaExceeded: too many builds of the project wait.
        StoreError: the build can't be stored.
    """
    return _keep(context, admit(body, at))


def keep_refused(
    context: ServerContext, body: dict[str, Any], at: Arrival, reason: str
) -> StoredBuild:
    """Store a build that can't run as a failed build, which is reported like any other.

    Raises:
        StoreError: the build can't be stored.
    """
    return _keep(context, refused(body, at, reason))


def _keep(context: ServerContext, new: NewBuild) -> StoredBuild:
    most = context.settings.max_waiting_builds
    stored = context.store.builds.create(new, most_waiting=most)
    if stored.id == new.document["id"]:
        context.metrics.build_created()
    context.wake()
    return stored


class TriggerQueue:
    """Queues the builds of triggers. Thread-safe."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def queue(
        self, project: str, document: dict[str, Any], made: TriggeredBuild, facts: RunFacts
    ) -> StoredBuild:
        """Queue a build, after an approval if it needs one.

        Args:
            project: project of the trigger.
            document: the trigger.
            made: the build that the trigger made of an event.
            facts: facts of this run.

        Raises:
            ConfigError: the build can't run, or the trigger's settings can't be read.
            QuotaExceeded: too many builds of the project wait.
            StoreError: the build can't be stored.
        """
        settings = self.settings(project, document["id"])
        at = self._arrival(project, document, made, facts, settings)
        return queue_build(self._context, made.request, at)

    def fail(
        self,
        project: str,
        document: dict[str, Any],
        made: TriggeredBuild,
        facts: RunFacts,
        error: ConfigError | UsageError,
    ) -> StoredBuild:
        """Store a build that can't be queued, as a failed build.

        Args:
            project: see `queue`.
            document: see `queue`.
            made: see `queue`.
            facts: see `queue`.
            error: the reason why the build can't be queued.

        Raises:
            StoreError: the build can't be stored.
        """
        beside = self._context.store.triggers.settings(project, document["id"])
        at = self._arrival(project, document, made, facts, known_settings(beside))
        return keep_refused(self._context, made.request, at, reason_of(error))

    def _arrival(
        self,
        project: str,
        document: dict[str, Any],
        made: TriggeredBuild,
        facts: RunFacts,
        settings: TriggerSettings,
    ) -> Arrival:
        context = self._context
        wanted = document.get("approvalConfig", {}).get("approvalRequired") is True
        concurrency = settings.concurrency
        policy = "" if concurrency.policy == "queue" else concurrency.policy
        people = facts.people
        if unresolved_ref(decode_message(Build, made.request).value):
            people = People(people.names)
        return arrival(
            context,
            project,
            location_of(document),
            trigger_id=document["id"],
            approval=made.hold or wanted,
            labels={
                **made.labels,
                **facts.labels,
                SUBMITTER: facts.who,
                **people.labels(),
                **({RERUNS_LOST: "yes"} if settings.on_lost is OnLost.RERUN else {}),
            },
            request_id=facts.request_id,
            priority=facts.priority,
            group=concurrency.group or f"{TRIGGER_GROUP}{document['id']}",
            group_limit=concurrency.limit or context.settings.max_builds_per_trigger,
            supersede=policy,
            push=facts.push and not made.untrusted,
            untrusted=made.untrusted,
        )

    def settings(self, project: str, trigger_id: str) -> TriggerSettings:
        """Return the settings of a trigger.

        Raises:
            ConfigError: the settings can't be read. Defaults would drop their requirements:
                approvers, the forge, limits.
        """
        return read_settings(self._context.store.triggers.settings(project, trigger_id))


def known_settings(document: dict[str, Any]) -> TriggerSettings:
    """Return the stored settings of a trigger, or the defaults if they can't be read. Pure.

    Use it only where defaults weaken nothing: to store a failed build, or to expire approvals.
    """
    try:
        return read_settings(document)
    except ConfigError:  # stored by another version
        return TriggerSettings()


def reason_of(error: ConfigError | UsageError) -> str:
    """Return all problems in one line."""
    if isinstance(error, ConfigError):
        return "; ".join(problem.text() for problem in error.problems)
    return f"{error}; {error.hint}" if error.hint else str(error)


def location_of(document: dict[str, Any]) -> str:
    """Return the location in a trigger's resource name."""
    parts = str(document.get("resourceName", "")).split("/")
    return parts[3] if len(parts) > 3 else "global"
