"""``buildrunner execute BUILD_ID``: the process of one build of a server. Not for people.

The environment names the server's folder and database; on another host, the address of the server.
The process outlives the server. SIGTERM makes the process check at once whether its build is to be
cancelled.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import msgspec

from buildrunner import wiring
from buildrunner.engine.events import BuildEvent
from buildrunner.errors import NotFound, StoreError
from buildrunner.settings import (
    Settings,
    WorkerSettings,
    own_settings,
    settings_of_worker,
    traces_wanted,
    worker_settings,
)
from buildrunner.store.model.builds import StoredBuild

if TYPE_CHECKING:
    from buildrunner.sandboxes.protocol import Sandbox
    from buildrunner.store.model.builds import Lease
    from buildrunner.store.sql.store import ServerStore
    from buildrunner.worker.data_folder import DataFolder
    from buildrunner.worker.execution import Execution

Listeners: TypeAlias = tuple[Callable[[BuildEvent], None], ...]

MEMORY_BYTES = 4 << 30
"""The memory limit of one build's process, in bytes, without mapped files."""

_STACK_BYTES = 2 << 20

_logger = logging.getLogger(__name__)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``execute``."""
    parser.add_argument("build_id", metavar="BUILD_ID")
    parser.add_argument("--fence", type=int, required=True, help="of the claim it runs under")
    parser.add_argument("--resume", action="store_true", help="another process had it before")


def run(args: argparse.Namespace) -> int:
    """Run the build to its end.

    Returns:
        0 when the build has ended, whatever its status.

    Raises:
        StoreError: nothing could be begun.
    """
    settings = worker_settings()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    look = _PendingLook()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, look.on_signal)
    _execute(settings, args.build_id, args.fence, resume=args.resume, on_look=look.be)
    return 0


class OpenBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A build that this process holds, from the database or from a server.

    Attributes:
        stored: the build.
        settings: those of the server.
        resume: another process had it before.
        job: returns the execution, given the sandbox and further receivers of events.
        watchers: each gets a function that checks whether the build is to be cancelled.
    """

    stored: StoredBuild
    settings: Settings
    resume: bool
    job: Callable[[Sandbox, Listeners], Execution]
    watchers: tuple[Callable[[Callable[[], None]], object], ...] = ()


def _execute(
    worker: WorkerSettings,
    build_id: str,
    fence: int,
    *,
    resume: bool,
    on_look: Callable[[Callable[[], None]], None],
) -> None:
    from buildrunner.store.model.builds import Lease
    from buildrunner.worker.data_folder import DataFolder
    from buildrunner.worker.execution import execute
    from buildrunner.worker.program import project_of, shared_network

    limit_memory()
    _name_process(f"build {build_id[:8]}")
    folder = DataFolder(worker.data)
    _keep_temporary_files_in(os.path.join(folder.make_run_folder(build_id), "tmp"))
    open_build = _remote_build if worker.server else _build_of_database
    with open_build(worker, folder, Lease(build_id, fence), resume=resume) as build:
        sandbox = wiring.sandbox(
            worker.sandbox,
            data_folder=folder.path,
            labels=folder.labels(),
            settings=build.settings.of_project(project_of(build.stored, build.settings)),
            builds=worker.max_builds,
            isolation=worker.isolation,
            pod_egress=worker.pod_egress,
            disk_gib=worker.disk_gib,
        )
        network = shared_network() if worker.sandbox == "host" else None

        def watch(look: Callable[[], None]) -> None:
            for watcher in (on_look, *build.watchers):
                watcher(look)

        try:
            if network is not None:
                threading.Thread(target=network.make, name="network-ahead", daemon=True).start()
            log_folder = folder.log_folder(build_id) if build.resume else ""
            job = build.job(sandbox, _listeners(build.stored, log_folder))
            execute(job, resume=build.resume, on_look=watch)
        finally:
            if network is not None:
                network.close()
            sandbox.close()


@contextmanager
def _build_of_database(
    worker: WorkerSettings, folder: DataFolder, lease: Lease, *, resume: bool
) -> Iterator[OpenBuild]:
    """A build in the database of the server on this machine."""
    from buildrunner.logs.files.events import EventLog
    from buildrunner.sources.policy import policy_from
    from buildrunner.sources.uploads import UploadedSource
    from buildrunner.worker.execution import Execution
    from buildrunner.worker.identity import BuildIdentities
    from buildrunner.worker.leases import until_available
    from buildrunner.worker.program import ServerProgram, ServerSources, keeping_of

    settings = own_settings().of_server(worker.data, worker.public_url)
    store = until_available(lambda: wiring.server_store(worker.database))
    identity_keys = cache(  # few builds need the libraries of keys
        partial(wiring.identity_keys, worker.data, folder.worker_name(), store, settings)
    )
    try:
        stored = until_available(lambda: store.builds.find(lease.build_id))
        identities = BuildIdentities(
            worker.public_url,
            settings,
            lambda project, trigger: until_available(
                lambda: store.triggers.settings(project, trigger)
            ),
            lambda: identity_keys().current(),
            _now,
        )

        def job(sandbox: Sandbox, listeners: Listeners) -> Execution:
            program = ServerProgram(
                sandbox,
                settings,
                folder.labels(),
                ServerSources(
                    policy=policy_from(worker.sources),
                    uploads=partial(UploadedSource, os.path.join(worker.data, "sources")),
                ),
                keeping_of(worker),
                payload=partial(_payload, store),
                identities=identities,
            )
            return Execution(
                queue=store.queue,
                stored=stored,
                lease=lease,
                folder=folder,
                program=program,
                open_events=EventLog,
                log_bytes=worker.log_gib << 30,
                now=_now,
                lost=_stop_at_once,
                listeners=listeners,
            )

        yield OpenBuild(stored=stored, settings=settings, resume=resume, job=job)
    finally:
        store.close()


@contextmanager
def _remote_build(
    worker: WorkerSettings, folder: DataFolder, lease: Lease, *, resume: bool
) -> Iterator[OpenBuild]:
    """A build of a server on another host."""
    import shutil

    from buildrunner.containers.process_owner import this_process
    from buildrunner.errors import LeaseLost
    from buildrunner.logs.files.events import EventLog
    from buildrunner.sources.policy import policy_from, policy_on_machine
    from buildrunner.store.model.builds import LOST_WORKER
    from buildrunner.worker.execution import Execution
    from buildrunner.worker.leases import until_available
    from buildrunner.worker.program import ServerProgram, ServerSources
    from buildrunner.worker.recovery import BuildNotes
    from buildrunner.worker.remote.credentials import (
        RemoteIdentities,
        fetch_logins,
        remote_attester,
    )
    from buildrunner.worker.remote.log_sender import LogSender, SentLog, fetch_copy
    from buildrunner.worker.remote.materials import (
        RemoteSecrets,
        RemoteUpload,
        event_payload,
        store_log,
    )
    from buildrunner.worker.remote.queue import CancelSignals, RemoteQueue, connect, until_answered
    from buildrunner.worker.remote.workspaces import RemoteKeeping

    server = connect(worker.server, worker.token_file, worker.ca_file)
    queue = RemoteQueue(server, send_log=lambda *_: until_answered(sender.send_all))
    log_folder = folder.log_folder(lease.build_id)
    try:
        stored = until_available(lambda: queue.find(lease.build_id))
        until_available(lambda: queue.set_process(lease, this_process()))
        if not resume:  # this worker may have run and lost the same build before
            notes = BuildNotes(folder.make_run_folder(lease.build_id))
            notes.forget_all()
            shutil.rmtree(log_folder, ignore_errors=True)
            if LOST_WORKER in stored.labels:
                notes.note_death(stored.labels[LOST_WORKER])
        begun = queue.begun(lease)
        fetch_copy(queue, lease, log_folder, begun)
    except (LeaseLost, NotFound):
        _stop_at_once()
    logins = os.path.join(folder.run_folder(lease.build_id), "logins") if begun.has_logins else ""
    if logins:
        os.makedirs(logins, mode=0o700, exist_ok=True)  # the logins arrive with the plan
    settings = settings_of_worker(own_settings(), begun.settings, logins)
    keeping = RemoteKeeping(
        *(server, queue, lease),
        os.path.join(folder.run_folder(lease.build_id), "workspaces"),
        most_bytes=begun.workspace_bytes,
        disk_bytes=worker.disk_gib << 30,
    )
    sender = LogSender(queue, lease, log_folder, begun)
    sender.start()

    def job(sandbox: Sandbox, listeners: Listeners) -> Execution:
        program = ServerProgram(
            sandbox,
            settings,
            folder.labels(),
            ServerSources(
                policy=policy_on_machine(policy_from(begun.sources), worker.disk_gib),
                uploads=partial(RemoteUpload, server, lease),
            ),
            keeping if begun.workspace_bytes else None,
            payload=lambda _: event_payload(queue, lease),
            identities=RemoteIdentities(queue, lease) if begun.has_identity else None,
            secrets=RemoteSecrets(queue, lease),
            store_log=partial(store_log, queue, lease, sender.send_all),
            attester=partial(remote_attester, queue, lease, begun.provenance),
            on_planned=partial(fetch_logins, queue, lease, logins) if logins else lambda: None,
            not_kept=lambda: keeping.problem,
        )
        return Execution(
            queue=queue,
            stored=stored,
            lease=lease,
            folder=folder,
            program=program,
            open_events=EventLog,
            log_bytes=begun.log_limit_bytes,
            wrap_log=lambda log: SentLog(log, sender),
            now=_now,
            lost=_stop_at_once,
            listeners=(*listeners, lambda _: sender.wake()),
        )

    yield OpenBuild(
        stored=stored,
        settings=settings,
        resume=resume or LOST_WORKER in stored.labels,
        job=job,
        watchers=(partial(CancelSignals, queue, lease),),
    )
    server.close()


def _now() -> datetime:
    return datetime.now(UTC)


def _payload(store: ServerStore, stored: StoredBuild) -> dict[str, Any]:
    """See `payload_of_build`."""
    # Few configs have bindings.
    from buildrunner.server.events.reading import payload_of_build
    from buildrunner.worker.leases import until_available

    return until_available(lambda: payload_of_build(store.deliveries, stored))


def limit_memory() -> None:
    """Limit this process's memory, so that data from steps can't use up the machine's.

    A request beyond the limit raises MemoryError. Threads get small stacks, since all of a stack
    counts. The limit also holds for each process that this one starts.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
    threading.stack_size(_STACK_BYTES)


def _name_process(name: str) -> None:
    """Set the name that `ps -o comm` and `top` show: all processes of builds begin as spares."""
    with suppress(OSError), open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write(name)


def _listeners(stored: StoredBuild, log_folder: str) -> Listeners:
    """Further receivers of events: the trace, if traces are collected.

    Args:
        stored: the build.
        log_folder: where its events are, if another process had it before; else empty.
    """
    if not traces_wanted():
        return ()
    try:
        from buildrunner.worker.tracing import BuildTrace
    except ImportError:
        _logger.warning(
            "no trace: OTEL_EXPORTER_OTLP_ENDPOINT needs pip install '.[otel]' in the source folder"
        )
        return ()
    facts = {"buildrunner.project": str(stored.document.get("projectId", ""))}
    if trigger := stored.document.get("buildTriggerId"):
        facts["buildrunner.trigger"] = str(trigger)
    trace = BuildTrace(stored.id, facts)
    if log_folder:
        from buildrunner.worker.recovery import stored_events

        trace.resume(stored_events(log_folder))
    return (trace.on_event,)


def _keep_temporary_files_in(path: str) -> None:
    """Keep temporary files, also of child processes, in the run folder, which is always removed.

    Raises:
        StoreError: the folder can't be made.
    """
    import tempfile

    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path} can't be made: {error.strerror}") from error
    os.environ["TMPDIR"] = tempfile.tempdir = path


class _PendingLook:
    """Handles signals. An early signal is dropped, since the lease keeper begins with a check."""

    def __init__(self) -> None:
        self._look: Callable[[], None] | None = None

    def be(self, look: Callable[[], None]) -> None:
        self._look = look

    def on_signal(self, _number: int, _frame: object) -> None:
        if self._look is not None:
            self._look()


def _stop_at_once() -> NoReturn:
    """Exit at once, without cleanup: the build belongs to another process.

    Child processes (git, a credential helper) are in this session, and are killed with it.
    """
    from buildrunner.worker.execution import EXIT_LEASE_LOST

    _logger.warning("another process has taken this build; leaving it alone")
    if os.getsid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(EXIT_LEASE_LOST)
