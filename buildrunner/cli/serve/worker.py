"""The part of ``serve`` and of ``worker`` that runs builds: supervisor, sweeps, network."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from buildrunner import wiring
from buildrunner.errors import EngineUnavailable
from buildrunner.logs.files.log_file import LOG_NAME
from buildrunner.logs.files.retention import UnkeptLogs
from buildrunner.sandboxes.host import SharedNetwork
from buildrunner.sandboxes.protocol import Sandbox, isolates
from buildrunner.settings import WorkerSettings, own_settings, worker_environment
from buildrunner.spec.model.build import Build
from buildrunner.spec.reading.decode import decode_message
from buildrunner.spec.writing import encode_message
from buildrunner.store.model.builds import BuildQueue, Lease, StoredBuild
from buildrunner.worker.chores import Chore
from buildrunner.worker.data_folder import DataFolder
from buildrunner.worker.execution import Execution, give_up
from buildrunner.worker.processes import SpareKeeper, SpareSpawner, child_environment
from buildrunner.worker.program import ServerProgram, shared_network
from buildrunner.worker.recovery import sweep_engine
from buildrunner.worker.supervisor import Supervisor, SupervisorOptions

_MEMORY_FOR_SPARES = 2 << 30
_SWEEP_S = 120.0
_UNKEPT_S = 5.0


def spare_sandboxes(sandbox: str, wanted: int | None) -> int:
    """Return the number of spare sandboxes.

    Args:
        sandbox: the kind of sandbox. Only nested ones are started ahead of need.
        wanted: the requested number; None decides by the memory of this machine.
    """
    if sandbox != "nested":
        return 0
    if wanted is not None:
        return wanted
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 1 if memory >= _MEMORY_FOR_SPARES else 0


class WorkerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of ``serve`` for running builds.

    Attributes:
        max_builds: how many builds run at once; 0 runs none.
        spare_sandboxes: how many sandboxes are started ahead of need.
        chores: further tasks to run periodically.
        store_log: stores the log of an abandoned build; None: this process does.
        log_home, run_again, on_started, on_ended, on_gone: see `SupervisorOptions`.
    """

    max_builds: int = 0
    spare_sandboxes: int = 0
    chores: tuple[Chore, ...] = ()
    store_log: Callable[[Lease, StoredBuild, Build], Build] | None = None
    run_again: Callable[..., object] = lambda *_, **__: None
    log_home: Callable[[str], str] = lambda _: ""
    on_started: Callable[[StoredBuild], None] | None = None
    on_ended: Callable[[StoredBuild], None] | None = None
    on_gone: Callable[[str], None] | None = None


class ServerWorker:
    """Runs builds of a queue. Call `start` once, and every method from any thread.

    With the sandbox ``none``, it runs no build and cleans up after builds of other
    workers.

    Args:
        worker: settings of folder, queue and sandbox.
        queue: the same queue, open.
        find: returns the stored build of an id; raises NotFound.
        folder: the same folder, locked by this process.
        options: see `WorkerOptions`.
        environ: the environment of this process; builds get a part of it.
    """

    def __init__(
        self,
        worker: WorkerSettings,
        queue: BuildQueue,
        find: Callable[[str], StoredBuild],
        folder: DataFolder,
        options: WorkerOptions,
        *,
        environ: Mapping[str, str],
    ) -> None:
        self._worker = replace(worker, max_builds=options.max_builds)
        self._queue = queue
        self._find = find
        self._options = options
        self._folder = folder
        self._settings = own_settings()
        self._unkept_logs = UnkeptLogs(folder.path)
        self._sandbox = self._open_sandbox()
        self._spares = SpareKeeper(self._sandbox, options.spare_sandboxes)
        self._spawner = SpareSpawner(self._folder, self._environment(environ))
        self._network: SharedNetwork | None = None
        self._supervisor = Supervisor(
            SupervisorOptions(
                queue=queue,
                find=find,
                folder=self._folder,
                worker_name=self._folder.worker_name(),
                spawner=self._spawner,
                give_up=self._give_up,
                max_builds=options.max_builds,
                now=_now,
                check_engine=self._sandbox.check,
                holds_untrusted_back=self.holds_untrusted_back,
                chores=self._chores(),
                run_again=options.run_again,
                log_home=options.log_home,
                on_started=self.started,
                on_ended=self.ended,
                on_gone=options.on_gone,
            )
        )

    def check_engine(self) -> None:
        """Check that the engine can run the sandbox of the settings.

        An engine that does not answer may start later: builds wait for it.

        Raises:
            EngineError: the engine can't run it.
        """
        with suppress(EngineUnavailable):
            self._sandbox.check_engine()

    def start(self) -> None:
        """Adopt the builds that an earlier server left, then run builds of the queue."""
        if self._worker.sandbox == "host":
            self._network = shared_network()
            threading.Thread(target=self._network.make, name="network", daemon=True).start()
        if self._options.max_builds:
            self._spawner.prepare()
            self._spares.start()
        self._supervisor.start()

    def wake(self) -> None:
        """Check the queue now: a build may have to start or to be cancelled. Cheap."""
        self._supervisor.wake()

    def alive(self) -> bool:
        """Return whether the supervisor runs."""
        return self._supervisor.alive()

    def holds_back(self) -> str:
        """See `Supervisor.holds_back`."""
        return self._supervisor.holds_back()

    def holds_untrusted_back(self) -> str:
        """Return why builds of forks wait, as a sentence; empty if they need not wait."""
        demanded, found = self._worker.isolation, self._sandbox.isolation()
        if isolates(found, demanded):
            return ""
        has = f"this machine has {found}" if found else "it is not known yet what this machine has"
        return f"Builds of forks need the isolation {demanded}, and {has}."

    def running(self) -> tuple[str, ...]:
        """Return the ids of the running builds."""
        return self._supervisor.running()

    def drain(self, timeout_s: float) -> bool:
        """Start no more builds, wait for the running ones, then `stop`.

        Returns:
            Whether all builds ended in time.
        """
        done = self._supervisor.drain(timeout_s)
        self.stop()
        return done

    def stop(self) -> None:
        """Start no more builds. The next server adopts builds that still run. Idempotent."""
        self._supervisor.stop()
        self._spares.close()
        if self._network is not None:
            self._network.close()
        self._sandbox.close()

    def isolation(self) -> str:
        """Return how builds are isolated here; see `Sandbox.isolation`."""
        return self._sandbox.isolation()

    def report_lost(self, lease: Lease, reason: str) -> None:
        """See `Supervisor.report_lost`."""
        self._supervisor.report_lost(lease, reason)

    def started(self, stored: StoredBuild) -> None:
        """Record that a worker has claimed a build."""
        self._spares.build_began()
        if self._options.on_started is not None:
            self._options.on_started(stored)

    def ended(self, stored: StoredBuild) -> None:
        """Record that a build has ended, in this worker or in another one."""
        self._spares.build_ended()
        self._unkept_logs.ended(stored.document, _now())
        if self._options.on_ended is not None:
            self._options.on_ended(stored)

    def store_log(self, stored: StoredBuild, document: dict[str, Any]) -> dict[str, Any]:
        """See `ServerContext.store_log`."""
        program = ServerProgram(self._sandbox, self._settings, self._folder.labels())
        build = decode_message(Build, document).value
        path = os.path.join(self._folder.log_folder(stored.id), LOG_NAME)
        return encode_message(program.store_log(stored, build, path))

    def _open_sandbox(self) -> Sandbox:
        return wiring.sandbox(
            self._worker.sandbox,
            data_folder=self._folder.path,
            labels=self._folder.labels(),
            settings=self._settings,
            builds=self._worker.max_builds,
            isolation=self._worker.isolation,
            pod_egress=self._worker.pod_egress,
            disk_gib=self._worker.disk_gib,
        )

    def _environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        places = (*self._settings.secrets.values(), *self._settings.git.tokens.values())
        needed = [place.removeprefix("env:") for place in places if place.startswith("env:")]
        return {**child_environment(environ, needed), **worker_environment(self._worker)}

    def _chores(self) -> tuple[Chore, ...]:
        chores = [
            Chore(name="sweep", every_s=_SWEEP_S, run=self._sweep),
            Chore(
                name="unkept logs",
                every_s=_UNKEPT_S,
                run=lambda: self._unkept_logs.remove_due(_now()),
            ),
        ]
        return (*chores, *self._options.chores)

    def _sweep(self) -> None:
        problems = sweep_engine(self._sandbox, self._find)
        if problems:
            from buildrunner.errors import EngineError

            raise EngineError("; ".join(problems))

    def _give_up(self, stored: StoredBuild, lease: Lease, reason: str) -> None:
        from buildrunner.logs.files.events import EventLog

        store_log = self._options.store_log
        program = ServerProgram(
            self._sandbox,
            self._settings,
            self._folder.labels(),
            store_log=partial(store_log, lease) if store_log else None,
        )
        job = Execution(
            queue=self._queue,
            stored=stored,
            lease=lease,
            folder=self._folder,
            program=program,
            open_events=EventLog,
            now=_now,
            lost=_lost,
        )
        give_up(job, reason)


def _now() -> datetime:
    return datetime.now(UTC)


def _lost() -> None:
    from buildrunner.errors import LeaseLost

    raise LeaseLost("another server has taken the build")
