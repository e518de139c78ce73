"""The context of the server: all dependencies of its routes."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from buildrunner.engine.outcome import BuildOutcome
from buildrunner.plan.build_plan import BuildOrigin, BuildPlan, SecretReference
from buildrunner.secrets.secret_scope import Asker
from buildrunner.server.bounded import BoundedCalls, shared_calls
from buildrunner.server.loop import Signal
from buildrunner.server.metrics import Metrics
from buildrunner.sources.policy import SourcePolicy
from buildrunner.sources.uploads import SourceUploads
from buildrunner.spec.model.build import Build
from buildrunner.storage.stores import Stores
from buildrunner.store.model.builds import StoredBuild, WaitReason
from buildrunner.store.model.remote import Provenance, WorkerIdentity
from buildrunner.store.sql.store import ServerStore
from buildrunner.triggers.repository import RepositoryNames
from buildrunner.workspace.kept import Keeping

MIB = 1 << 20


class ServerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a server.

    Attributes:
        auth: callers need a token; otherwise everyone who can connect may do everything.
        public_projects: projects that everyone may read without a token.
        max_builds: the most concurrent builds on this server.
        max_builds_per_trigger: the most concurrent builds of one trigger; 0 for no limit.
        max_waiting_builds: the most waiting builds of one project; 0 for no limit.
        public_url: URL of the server for users, in links; without a slash at the end.
        trusted_proxies: addresses and networks of proxies whose X-Forwarded-For and -Proto count.
        worker: name under which this server's worker claims builds.
        default_project: project of a request that names none (``-``).
        default_location: location of builds that name none.
        max_body_bytes: the largest body of an API call.
        max_build_bytes: the same for a build or a trigger.
        max_webhook_bytes: the same for webhooks of triggers, which anyone may call.
        max_delivery_bytes: the same for deliveries of forges; GitHub sends up to 25 MB.
        max_unverified_bodies: the most webhook bodies in memory at the same time whose sender is
            not yet verified.
        max_unverified_bytes: the most bytes of all these bodies together.
        unverified_body_s: the most seconds that such a body may take to arrive.
        max_blob_bytes: the largest uploaded file.
        body_timeout_s: seconds between two pieces of a body before the server disconnects.
        min_free_bytes: free disk space below which the server is not ready.
        isolation: the required isolation of builds of forks; see `ISOLATIONS`.
        max_log_bytes: the most bytes that steps may write to a build's log; 0 for no limit.
        sources: the addresses from which builds may fetch.
        notify: the addresses to which notifications may go.
    """

    auth: bool = True
    public_projects: tuple[str, ...] = ()
    max_builds: int = 1
    max_builds_per_trigger: int = 0
    max_waiting_builds: int = 0
    public_url: str = "http://127.0.0.1:8080"
    trusted_proxies: tuple[str, ...] = ()
    worker: str = ""
    default_project: str = "local-project"
    default_location: str = "global"
    max_body_bytes: int = 10 * MIB
    max_build_bytes: int = 4 * MIB
    max_webhook_bytes: int = MIB
    max_delivery_bytes: int = 25 * MIB
    max_unverified_bodies: int = 100
    max_unverified_bytes: int = 64 * MIB
    unverified_body_s: float = 60.0
    max_blob_bytes: int = 5 * 1024 * MIB
    body_timeout_s: float = 30.0
    min_free_bytes: int = 100 * MIB
    isolation: str = ""
    max_log_bytes: int = 0
    sources: SourcePolicy = SourcePolicy()
    notify: SourcePolicy = SourcePolicy()

    @property
    def https(self) -> bool:
        """Return whether users reach the server by https, perhaps through a proxy."""
        return self.public_url.startswith("https://")


class ServerSecrets(Protocol):
    """The secrets of the server's machine. Thread-safe. Reading a value may take long."""

    def value(self, asker: Asker, name: str) -> str:
        """Return the value of a secret, by its name in a config or on the server.

        Raises:
            SecretNotFound: no such secret is available to the asker.
            SecretError: the secret can't be read now.
        """
        ...

    def resolve(self, asker: Asker, reference: SecretReference, plan: BuildPlan) -> str:
        """Return the value of a secret that the plan of a build names.

        Raises:
            SecretNotFound: no such secret is available to the asker.
            SecretError: the secret can't be read now.
        """
        ...

    def own_names(self) -> Collection[str]:
        """Return the names of the server's own secrets. Fetches no value.

        Raises:
            SecretError: the names can't be read now.
        """
        ...


class BuildCredentials(Protocol):
    """Makes the credentials of builds that workers run.

    Thread-safe. The keys stay on the server.
    """

    def audiences(self, stored: StoredBuild) -> tuple[str, ...]:
        """Return the audiences for which a build may have identity tokens now.

        Raises `StoreError`.
        """
        ...

    def identity_token(self, stored: StoredBuild, origin: BuildOrigin, audience: str) -> str:
        """Return an identity token of a build.

        Raises:
            IdentityRefused: the build may not have it.
            IdentityError: the token can't be signed.
            StoreError: the database does not answer.
        """
        ...

    def has_logins(self, project: str) -> bool:
        """Return whether a project has its own logins, in place of the machine's."""
        ...

    def login_files(self, project: str, plan: BuildPlan) -> dict[str, str]:
        """Return the files with the logins that the plan may need, by path below a home folder."""
        ...

    def provenance(self, project: str) -> Provenance:
        """Return the provenance settings of a project's builds."""
        ...

    def attestation(
        self,
        stored: StoredBuild,
        build: Build,
        plan: BuildPlan,
        outcome: BuildOutcome,
        masked: Callable[[str], str],
    ) -> str:
        """Return the signed provenance of a build, a line of JSON; empty if it published nothing.

        Raises:
            AttestationError: the provenance can't be signed.
        """
        ...


class ShownSetting(msgspec.Struct, frozen=True):
    """One setting on the system page: its name, value, and the origin of the value."""

    name: str
    value: str
    origin: str


class ServerContext(msgspec.Struct, frozen=True, kw_only=True):
    """The dependencies of every route. All of them are thread-safe.

    Attributes:
        store: builds, queue, triggers, tokens, audit log.
        settings: the server's settings.
        data_folder: the folder of logs and sources.
        uploads: takes the sources that clients upload.
        metrics: the metrics of the server.
        clock: returns the time, aware UTC.
        new_id: makes ids of builds and triggers.
        wake: wakes the workers, since a build may have to start or to be cancelled.
        worker_alive: returns whether the worker checks the queue.
        worker_holds_back: returns why the worker starts no builds at present; empty for no reason.
        worker_holds_forks_back: the same for builds of forks.
        secrets: the secrets of the server and its projects.
        calls: evaluates templates and filters of projects.
        schedule_changed: signals that a trigger or its settings have changed.
        hook_arrived: signals that a delivery was stored.
        repositories: the URLs of connected repositories.
        stores: returns the stores for files of a project's builds; None: no file can be read.
        keeping: the kept workspaces on this server; None: it keeps none.
        facts: returns facts about the environment for the server's page, on each request.
        shown_settings: the effective settings, with the origin of each value.
        provenance_key: returns the public key of provenance, as PEM text.
        identity_keys: returns the public keys of identity tokens, as JSON Web Keys.
        pools: the projects that may use each pool in the settings, by the pool's name; empty for
            all. Workers' tokens may name further pools.
        worker_tokens: further kinds of tokens of workers: each returns the worker of a token that
            it knows, and None for others. They are tried before the tokens in the database.
        fits_spare: returns whether a spare Pod can run a build; see `provisioner.fits_spare`.
        build_settings: returns the fields of `Settings` that workers get for builds of a project.
        credentials: makes the credentials of builds that workers run; None: they get none.
        store_log: stores the finished log of a build in the bucket that its document names; returns
            the document, with a warning if that failed.
        build_started, build_ended: called with the builds that other workers claim and end.
    """

    store: ServerStore
    settings: ServerSettings
    data_folder: str
    uploads: SourceUploads
    metrics: Metrics
    clock: Callable[[], datetime]
    new_id: Callable[[], str]
    wake: Signal
    worker_alive: Callable[[], bool]
    secrets: ServerSecrets
    calls: BoundedCalls = msgspec.field(default_factory=shared_calls)
    worker_holds_back: Callable[[], str] = lambda: ""
    worker_holds_forks_back: Callable[[], str] = lambda: ""
    schedule_changed: Signal = msgspec.field(default_factory=Signal)
    hook_arrived: Signal = msgspec.field(default_factory=Signal)
    repositories: RepositoryNames = RepositoryNames()
    stores: Callable[[str], Stores] | None = None
    keeping: Keeping | None = None
    facts: Callable[[], Mapping[str, str]] = dict
    shown_settings: tuple[ShownSetting, ...] = ()
    provenance_key: Callable[[], str] = lambda: ""
    identity_keys: Callable[[], list[dict[str, str]]] = list
    pools: Mapping[str, tuple[str, ...]] = {}
    worker_tokens: tuple[Callable[[str], WorkerIdentity | None], ...] = ()
    fits_spare: Callable[[StoredBuild], bool] = lambda _: False
    build_settings: Callable[[str], dict[str, Any]] = lambda _: {}
    credentials: BuildCredentials | None = None
    store_log: Callable[[StoredBuild, dict[str, Any]], dict[str, Any]] = lambda _, build: build
    build_started: Callable[[StoredBuild], None] = lambda _: None
    build_ended: Callable[[StoredBuild], None] = lambda _: None

    def is_pool(self, name: str) -> bool:
        """Return whether a pool of that name is in the settings, or in a worker's token."""
        return name in self.pools or name in self.store.tokens.pools()

    def may_use_pool(self, name: str, project: str) -> bool:
        """Return whether the settings let builds of a project use a pool."""
        projects = self.pools.get(name, ())
        return not projects or project in projects

    def workspace_is_kept(self, build_id: str) -> bool:
        """Return whether this server has the kept workspace of a build."""
        return self.keeping is not None and self.keeping.has(build_id)

    def disk_problem(self) -> str:
        """Return the problem of the data folder's disk, as text; empty for none."""
        try:
            disk = os.statvfs(self.data_folder)
        except OSError as error:
            return error.strerror or str(error)
        free = disk.f_bavail * disk.f_frsize
        return f"only {free >> 20} MiB are free" if free < self.settings.min_free_bytes else ""

    def why_waiting(self, build_id: str) -> WaitReason | None:
        """Return why a build has not begun: the queue's reason, or that of this server's worker.

        Raises:
            NotFound: no such build.
        """
        reason = self.store.queue.why_waiting(
            build_id,
            now=self.clock(),
            limit=self.settings.max_builds,
            worker=self.settings.worker,
        )
        held = self.worker_holds_back()
        if not held and (forks := self.worker_holds_forks_back()):
            held = forks if self.store.builds.find(build_id).untrusted else ""
        if reason is None or not held or reason.kind not in ("turn", "server_limit"):
            return reason
        return msgspec.structs.replace(reason, kind="no_worker", text=held)


def utc_now() -> datetime:
    """Return the time of the machine's clock, aware UTC."""
    return datetime.now(UTC)
