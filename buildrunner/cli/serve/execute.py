"""``buildrunner execute BUILD_ID``: the process of one build of a server. Not for people.

It is told where the server's folder and database are by its environment. It goes on whatever
happens to the server; SIGTERM makes it look at once whether its build is to be cancelled.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NoReturn

from buildrunner import wiring
from buildrunner.engine.events import BuildEvent
from buildrunner.errors import NotFound, StoreError
from buildrunner.settings import WorkerSettings, own_settings, traces_wanted, worker_settings
from buildrunner.store.model.builds import StoredBuild

if TYPE_CHECKING:
    from buildrunner.store.sql.store import ServerStore

MEMORY_BYTES = 4 << 30
"""The memory limit of the process of one build, in bytes, without files that it maps."""

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


def _execute(
    worker: WorkerSettings,
    build_id: str,
    fence: int,
    *,
    resume: bool,
    on_look: Callable[[Callable[[], None]], None],
) -> None:
    from buildrunner.logs.files.events import EventLog
    from buildrunner.sources.policy import policy_from
    from buildrunner.store.model.builds import Lease
    from buildrunner.worker.data_folder import DataFolder
    from buildrunner.worker.execution import Execution, execute
    from buildrunner.worker.identity import BuildIdentities
    from buildrunner.worker.leases import patiently
    from buildrunner.worker.program import (
        ServerProgram,
        ServerSources,
        keeping_of,
        project_of,
        shared_network,
    )

    limit_memory()
    _name_process(f"build {build_id[:8]}")
    folder = DataFolder(worker.data)
    _keep_temporary_files_in(os.path.join(folder.make_run_folder(build_id), "tmp"))
    settings = own_settings().of_server(worker.data, worker.public_url)
    store = patiently(lambda: wiring.server_store(worker.database))
    stored = patiently(lambda: store.builds.find(build_id))
    sandbox = wiring.sandbox(
        worker.sandbox,
        data_folder=folder.path,
        labels=folder.labels(),
        settings=settings.of_project(project_of(stored, settings)),
        builds=worker.max_builds,
        isolation=worker.isolation,
        disk_gib=worker.disk_gib,
    )
    identity_keys = cache(  # few builds need the libraries of keys
        partial(wiring.identity_keys, worker.data, folder.worker_name(), store, settings)
    )
    network = shared_network() if worker.sandbox == "host" else None
    try:
        if network is not None:
            threading.Thread(target=network.make, name="network-ahead", daemon=True).start()
        job = Execution(
            queue=store.queue,
            stored=stored,
            lease=Lease(build_id, fence),
            folder=folder,
            program=ServerProgram(
                sandbox,
                settings,
                folder.labels(),
                ServerSources(
                    policy=policy_from(worker.sources),
                    uploads=os.path.join(worker.data, "sources"),
                ),
                keeping_of(worker),
                payload=partial(_payload, store),
                identities=BuildIdentities(
                    worker.public_url,
                    lambda project, trigger: patiently(
                        lambda: store.triggers.settings(project, trigger)
                    ),
                    lambda: identity_keys().current(),
                    _now,
                ),
            ),
            open_events=EventLog,
            log_bytes=worker.log_gib << 30,
            now=_now,
            lost=_stop_at_once,
            listeners=_listeners(stored, folder.log_folder(build_id) if resume else ""),
        )
        execute(job, resume=resume, on_look=on_look)
    finally:
        if network is not None:
            network.close()
        sandbox.close()
        store.close()


def _now() -> datetime:
    return datetime.now(UTC)


def _payload(store: ServerStore, stored: StoredBuild) -> dict[str, Any]:
    """The payload of the delivery that fired a build's trigger, by root name; empty for none."""
    # Few configs have bindings.
    from buildrunner.server.events.reading import delivered_payload
    from buildrunner.triggers.labels import DELIVERY, EVENT_NUMBER
    from buildrunner.worker.leases import patiently

    number, event = (stored.labels.get(label, "") for label in (DELIVERY, EVENT_NUMBER))
    if not number or not event:
        return {}
    try:
        delivery = patiently(lambda: store.deliveries.get(int(number)))
    except NotFound:  # it is too old to be kept
        return {}
    return delivered_payload(delivery, int(event))


def limit_memory() -> None:
    """Limit the memory of this process, so that what steps send can't take all of the machine's.

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


def _listeners(stored: StoredBuild, log_folder: str) -> tuple[Callable[[BuildEvent], None], ...]:
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
        _logger.warning("no trace: install buildrunner[otel] for OTEL_EXPORTER_OTLP_ENDPOINT")
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
    """Ours, and those of the programs that we start: they go with the run folder, if we die too.

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
    """A signal that comes before anybody can look is not lost: the lease keeper begins with one."""

    def __init__(self) -> None:
        self._look: Callable[[], None] | None = None

    def be(self, look: Callable[[], None]) -> None:
        self._look = look

    def on_signal(self, _number: int, _frame: object) -> None:
        if self._look is not None:
            self._look()


def _stop_at_once() -> NoReturn:
    """The build is another process's: not one more act, not even cleaning up.

    What we started (git, a credential helper) is in our session, and ends with us.
    """
    from buildrunner.worker.execution import EXIT_LEASE_LOST

    _logger.warning("another process has taken this build; leaving it alone")
    if os.getsid(0) == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(EXIT_LEASE_LOST)
