"""``buildrunner serve``: this machine as a build service, with Cloud Build's own API."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from datetime import UTC, datetime, timedelta
from functools import cache, partial

from buildrunner import wiring
from buildrunner.cli.serve import settings as serve_settings
from buildrunner.cli.serve.credentials import ServerCredentials
from buildrunner.cli.serve.place import data_of, database_of
from buildrunner.cli.serve.worker import WorkerOptions, spare_sandboxes
from buildrunner.errors import EXIT_SUCCESS
from buildrunner.logs.files.retention import LogRetention
from buildrunner.server.context import ServerContext, ServerSettings
from buildrunner.settings import Settings, WorkerSettings, own_settings, settings_for_workers
from buildrunner.sources.policy import SourcePolicy
from buildrunner.store.sql.store import ServerStore
from buildrunner.worker.chores import Chore, KeptTimes, Retention
from buildrunner.worker.data_folder import DataFolder

_ROTATION_S = 3600.0
_RETENTION_S = 3600.0
_LAST_LOOK_S = 3.0  # viewers poll every two seconds: they see the end of the last builds


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``serve``."""
    serve_settings.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Raises:
        UsageError: invalid flags, a port that is in use, an unknown database.
        StoreError: the folder or the database can't be used, or another server uses it.
        ConfigError: a settings file is wrong.
        EngineError: the engine can't run the requested sandboxes.
        KubernetesError: the settings have pools, and the access to the cluster can't be used.
    """
    serve_settings.check_flags(args)
    from buildrunner.server.http.listener import listen_on
    from buildrunner.server.http.request_log import start_logging
    from buildrunner.sources.policy import policy_text

    start_logging(args.log_format)
    data = data_of(args)
    worker = WorkerSettings(
        data=data,
        database=database_of(args, data),
        sandbox=args.sandbox,
        sources=policy_text(_source_policy(args)),
        keep_gib=args.keep_workspaces_gib,
        isolation=args.require_isolation,
        disk_gib=args.max_build_disk_gib,
        log_gib=args.max_build_log_gib,
    )
    folder = DataFolder(data)
    with folder.lock():
        store = wiring.server_store(worker.database)
        try:
            listening = listen_on(args.host, args.port)
            _serve(args, worker, folder, store, listening)
        finally:
            store.close()
    return EXIT_SUCCESS


def _serve(
    args: argparse.Namespace,
    worker_settings: WorkerSettings,
    folder: DataFolder,
    store: ServerStore,
    listening: socket.socket,
) -> None:
    from msgspec.structs import replace

    from buildrunner.cli.serve.loops import ServerLoops
    from buildrunner.cli.serve.settings import EngineFacts, shown_settings
    from buildrunner.cli.serve.worker import ServerWorker
    from buildrunner.plan.build_plan import new_build_id
    from buildrunner.server.app import create_app
    from buildrunner.server.context import utc_now
    from buildrunner.server.http.listener import Listener
    from buildrunner.server.loop import Signal
    from buildrunner.server.metrics import Metrics
    from buildrunner.server.services.provisioner import Provisioner, fits_spare
    from buildrunner.sources.uploads import SourceUploads
    from buildrunner.store.model.builds import KnownServer
    from buildrunner.triggers.repository import RepositoryNames
    from buildrunner.worker.policy import check_rules
    from buildrunner.worker.program import keeping_of

    settings = own_settings()
    check_rules(settings)
    server = replace(_server_settings(args, settings, listening), worker=folder.worker_name())
    worker_settings = replace(worker_settings, public_url=server.public_url)
    internal_url = (args.internal_url or _address(args, listening)).rstrip("/")
    store.servers.put(KnownServer(name=server.worker, url=internal_url, started_at=utc_now()))
    identity_keys = partial(
        wiring.identity_keys, folder.path, folder.worker_name(), store, settings
    )
    rotation = Chore(
        name="identity keys", every_s=_ROTATION_S, run=lambda: identity_keys().rotate_if_used()
    )
    metrics = Metrics()
    quota = args.max_uploads_gib << 30 if args.max_uploads_gib > 0 else None
    uploads = SourceUploads(os.path.join(folder.path, "sources"), quota)
    kept = Retention(store, folder, uploads, kept_times(args, settings), utc_now)
    options = WorkerOptions(
        max_builds=server.max_builds,
        spare_sandboxes=spare_sandboxes(args.sandbox, args.spare_sandboxes),
        chores=(*kept.chores(), rotation, *_log_chores(args, folder, store)),
        run_again=store.queue.run_again,
        log_home=store.servers.log_home,
        on_started=lambda stored: metrics.build_started(stored.document, utc_now()),
        on_ended=lambda stored: metrics.build_ended(stored.document),
    )
    worker = ServerWorker(
        worker_settings,
        store.queue,
        store.builds.find,
        folder,
        options,
        environ=os.environ,
    )
    worker.check_engine()
    cluster = wiring.kubernetes_api() if settings.pools else None
    wake = Signal()
    wake.connect(worker.wake)
    context = ServerContext(
        store=store,
        settings=server,
        data_folder=folder.path,
        uploads=uploads,
        metrics=metrics,
        clock=utc_now,
        new_id=new_build_id,
        secrets=wiring.ServerSecrets(settings),
        repositories=RepositoryNames(connected=settings.repositories),
        stores=cache(lambda project: wiring.stores(settings.of_project(project))),
        keeping=keeping_of(worker_settings),
        facts=EngineFacts() if args.sandbox != "none" else dict,
        identity_keys=lambda: identity_keys().published(),
        provenance_key=partial(wiring.public_key, settings.of_server(folder.path, "")),
        shown_settings=shown_settings(args, sys.argv, worker_settings, server, settings),
        wake=wake,
        pools={name: pool.projects for name, pool in settings.pools.items()},
        worker_tokens=(wiring.pod_tokens(cluster, settings, store),) if cluster else (),
        fits_spare=partial(fits_spare, egress=lambda project: settings.of_project(project).egress),
        build_settings=partial(settings_for_workers, settings),
        credentials=ServerCredentials(
            settings.of_server(folder.path, server.public_url),
            server.public_url,
            store.triggers.settings,
            lambda: identity_keys().current(),
            utc_now,
        ),
        store_log=worker.store_log,
        build_started=worker.started,
        build_ended=worker.ended,
        worker_alive=worker.alive,
        worker_holds_back=worker.holds_back,
        worker_holds_forks_back=worker.holds_untrusted_back,
    )
    _warn_of_unused(wiring.ServerSecrets(settings))
    provisioner = None
    if cluster:
        provisioner = Provisioner(
            *(store, cluster, settings.pools, worker.report_lost, utc_now),
            isolation=server.isolation,
            egress=lambda project: settings.of_project(project).egress,
        )
    loops = ServerLoops(context, settings, args.reconcile_every, provisioner)

    def drain() -> None:
        _say("Stopping: no new builds begin.")
        if not args.drain:
            return
        watched = worker.running()
        if not worker.drain(args.drain):
            _say("Builds that still run go on; the next server takes them up.")
        if watched:
            time.sleep(_LAST_LOOK_S)

    listener = Listener(
        create_app(context),
        listening,
        tls_cert=args.tls_cert,
        tls_key=args.tls_key,
        on_signal=drain,
    )
    worker.start()
    loops.start()
    try:
        _greet(args, context)
        listener.run()
    except KeyboardInterrupt:
        pass  # uvicorn passes on the signal that ended it
    finally:
        loops.stop()
        worker.stop()
        if cluster:
            cluster.close()


def kept_times(args: argparse.Namespace, settings: Settings) -> KeptTimes:
    """Return the retention of the server's records: the settings, overridden by flags."""
    from buildrunner.store.keep_rule import parse_keep_rule

    texts = {**settings.keep_builds, **dict(map(serve_settings.keep_builds, args.keep_builds))}
    return KeptTimes(
        builds={project: parse_keep_rule(text) for project, text in texts.items()},
        audit=timedelta(days=args.keep_audit_days) if args.keep_audit_days else None,
    )


def _log_chores(
    args: argparse.Namespace, folder: DataFolder, store: ServerStore
) -> tuple[Chore, ...]:
    retention = _retention(args)
    if retention is None:
        return ()

    def remove() -> None:
        from buildrunner.logs.files.retention import remove_old_logs

        now = datetime.now(UTC)
        ended = store.builds.ended_before(now, limit=1_000_000)
        remove_old_logs(folder.path, ended, retention, now=now)

    return (Chore(name="retention", every_s=_RETENTION_S, run=remove),)


def _retention(args: argparse.Namespace) -> LogRetention | None:
    if not args.keep_logs_days and not args.keep_logs_gib:
        return None

    return LogRetention(
        max_age=timedelta(days=args.keep_logs_days) if args.keep_logs_days else None,
        max_bytes=args.keep_logs_gib << 30 if args.keep_logs_gib else None,
    )


def _server_settings(
    args: argparse.Namespace, settings: Settings, listening: socket.socket
) -> ServerSettings:

    return ServerSettings(
        auth=args.auth == "tokens",
        public_projects=tuple(args.public_project),
        max_builds=serve_settings.max_builds(args),
        max_builds_per_trigger=args.max_builds_per_trigger,
        max_waiting_builds=args.max_waiting_builds,
        public_url=(args.public_url or _address(args, listening)).rstrip("/"),
        trusted_proxies=tuple(
            network
            for proxy in args.trusted_proxy
            for network in serve_settings.trusted_networks(proxy)
        ),
        default_project=settings.project_id,
        isolation=args.require_isolation,
        max_log_bytes=args.max_build_log_gib << 30,
        sources=_source_policy(args),
        notify=SourcePolicy(hosts=tuple(host.lower() for host in args.allow_notify_host)),
    )


def _source_policy(args: argparse.Namespace) -> SourcePolicy:

    return SourcePolicy(
        private=args.allow_private_sources,
        files=args.allow_private_sources,
        hosts=tuple(host.lower() for host in args.allow_source_host),
        largest_bytes=args.max_build_disk_gib << 30,
    )


def _address(args: argparse.Namespace, listening: socket.socket) -> str:

    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104  (compared, not bound)
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if args.tls_cert else 'http'}://{shown}:{port}"


def _greet(args: argparse.Namespace, context: ServerContext) -> None:
    from buildrunner.server.services.triggers import trigger_problems

    url = context.settings.public_url
    sys.stdout.write(f"buildrunner serves {url} (data in {context.data_folder})\n")
    if context.settings.auth:
        _first_token(context)
    if context.settings.auth and not args.tls_cert and not url.startswith("http://127."):
        _say("warning: tokens are sent unencrypted: use --tls-cert, or a proxy with https")
    sys.stdout.write(f"API: {url}/docs\nSubmit a folder: buildrunner --server {url} submit .\n")
    sys.stdout.flush()
    for problem in trigger_problems(context.store, context.repositories):
        _say(f"warning: {problem}")


def _first_token(context: ServerContext) -> None:
    """Create and print the admin token at the first start."""
    from buildrunner.server.http.tokens import new_token
    from buildrunner.store.model.access import AuditEntry

    if context.store.tokens.all():
        return
    now = context.clock()
    text, token = new_token("admin", ["admin"], now=now)
    context.store.tokens.create(token)
    context.store.audit.add(
        AuditEntry(at=now, who="server", action="tokens.create", target="admin", outcome="ok")
    )
    sys.stdout.write(
        f"Admin token, shown this once: {text}\n"
        f"  Store it for the commands here: buildrunner login {context.settings.public_url}\n"
    )


def _warn_of_unused(secrets: wiring.ServerSecrets) -> None:
    """Name the secrets that no build can use, such as all with short names after an upgrade."""
    from buildrunner.errors import SecretError

    try:
        unused = secrets.unused()
    except SecretError as error:
        _say(f"warning: {error}")
        return
    if unused:
        names = ", ".join(f"{name} ({scope})" for name, scope in unused.items())
        _say(
            f"note: builds and notifiers of this server don't get these secrets: {names}."
            " `buildrunner secrets scope NAME --project ID` shares one"
        )


def _say(text: str) -> None:
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:
        return
