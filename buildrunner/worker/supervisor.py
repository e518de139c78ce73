"""The supervisor, which claims builds and ensures that each ends, whatever process dies.

One thread owns all state. It wakes when it is notified (`wake`), when a build's process ends (by
its pidfd, also for processes that an earlier server started), and at every poll. It never calls a
container engine; that work runs in threads that wake it when they end.

The processes of builds outlive this one. `stop` ends claiming and leaves them running; the next
server on this folder adopts them.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

import msgspec

from buildrunner.containers.process_owner import is_alive
from buildrunner.errors import (
    BuildrunnerError,
    Conflict,
    InvalidRecord,
    LeaseLost,
    NotFound,
    StoreError,
    StoreUnavailable,
)
from buildrunner.spec.model.build import FINAL_STATUSES
from buildrunner.store.model.builds import (
    LEASE_S,
    LOST_WORKER,
    RETURNS_S,
    BuildQueue,
    ClaimedBuild,
    ClaimScope,
    Lease,
    StoredBuild,
)
from buildrunner.store.model.remote import REMOTE
from buildrunner.store.records import reused_steps_of, steps_ran
from buildrunner.triggers.labels import RERUNS_LOST
from buildrunner.worker.chores import BeginGate, Chore, Chores, EngineWatch
from buildrunner.worker.data_folder import DataFolder
from buildrunner.worker.processes import AdoptedProcess, ChildProcess, Spawner, last_words
from buildrunner.worker.recovery import MAX_ATTEMPTS, BuildNotes, too_often_text

_ALIVE_S = 30.0
_GONE = timedelta(minutes=15)  # after the end of a lease: its server is lost for good
_COMES_BACK = timedelta(seconds=RETURNS_S)
_HOME_FIRST = timedelta(seconds=30)  # longer if another server has the log

_log = logging.getLogger(__name__)


class Supervisor:
    """Supervises builds (see the module). Call `start` once; other methods are thread-safe."""

    def __init__(self, options: SupervisorOptions) -> None:
        self._with = options
        self._running: dict[str, ChildProcess] = {}
        self._exits: dict[str, int] = {}  # build id -> pidfd
        self._died: dict[str, str] = {}  # build id -> how it ended, until that is handled
        self._giving_up: set[str] = set()
        self._left: set[str] = set()  # builds whose end the server refuses
        self._reported: dict[Lease, str] = {}
        self._notified: set[str] = set()
        self._failed: set[str] = set()  # builds that a bug prevented from being checked
        self._chores = Chores(options.chores)
        self._adopted = False
        self._gate = BeginGate(
            options.folder, options.reserve_bytes, EngineWatch(options.check_engine, self.wake)
        )
        self._closed = False
        self._stopping = False
        self._ticked_at = time.monotonic()
        self._up_since = options.now()
        self._turning = threading.Lock()
        self._wakes, self._wake = os.pipe()
        os.set_blocking(self._wakes, False)
        os.set_blocking(self._wake, False)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start, first with the builds of an earlier server."""
        self._thread.start()

    def wake(self) -> None:
        """Notify that there may be a build to start or to cancel. Cheap."""
        try:
            os.write(self._wake, b"!")
        except (BlockingIOError, OSError):
            return  # the thread is awake, or has ended

    def alive(self) -> bool:
        """Return whether the thread has polled within the last 30 seconds."""
        return self._thread.is_alive() and time.monotonic() - self._ticked_at < _ALIVE_S

    def holds_back(self) -> str:
        """See `BeginGate.reason`."""
        return self._gate.reason()

    def report_lost(self, lease: Lease, reason: str) -> None:
        """Note that the worker of a build on another host is lost for good, and why."""
        self._reported[lease] = reason
        self.wake()

    def running(self) -> tuple[str, ...]:
        """Return the ids of builds whose processes are watched now."""
        return tuple(self._running)

    def stop(self) -> None:
        """End claiming and return soon; builds continue in their processes. Idempotent."""
        self._closed = self._stopping = True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()
        self._with.spawner.close()

    def drain(self, timeout_s: float) -> bool:
        """End claiming, wait for running builds, then `stop`; return whether all have ended."""
        with self._turning:  # a build that is being claimed counts as running
            self._closed = True
        self.wake()
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while self._running and time.monotonic() < deadline and self._thread.is_alive():
            pause.wait(min(0.1, timeout_s))
        done = not self._running
        self.stop()
        return done

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            self._ticked_at = time.monotonic()
            try:
                with self._turning:
                    self._turn()
            except StoreError as error:
                _log.warning("the database does not answer: %s", error)
            except Exception:  # noqa: BLE001  (a bug with one build must not affect others)
                _log.exception("a bug in the supervisor; it goes on")
            if self._stopping:
                return
            self._sleep()

    def _turn(self) -> None:
        if not self._adopted:
            self._adopt()
        self._reap()
        self._look_after_dead()
        self._look_at_claimed()
        if self._closed:
            return
        self._with.queue.expire(now=self._with.now())
        self._claim()
        self._chores.begin_due()

    def _sleep(self) -> None:
        poll = select.poll()
        poll.register(self._wakes, select.POLLIN)
        for descriptor in self._exits.values():
            poll.register(descriptor, select.POLLIN)
        poll.poll(self._with.poll_s * 1000)
        try:
            os.read(self._wakes, 65536)
        except BlockingIOError:
            return

    # -- builds of an earlier server ---------------------------------------------------------------

    def _adopt(self) -> None:
        for stored in self._with.queue.claimed(self._with.worker_name):
            if stored.process and is_alive(stored.process):
                _log.info("build %s goes on in process %s", stored.id, stored.process)
                self._watch(stored.id, AdoptedProcess(stored.process))
            else:
                self._died[stored.id] = ""
        self._adopted = True
        for build_id in self._with.folder.run_ids():
            if build_id not in self._running and build_id not in self._died:
                self._drop_if_over(build_id)

    def _drop_if_over(self, build_id: str) -> None:
        """Remove the run folder of a build that ended unwatched."""
        try:
            if self._with.find(build_id).status not in FINAL_STATUSES:
                return
        except NotFound:
            _log.info("nothing is known of build %s: its run folder goes", build_id)
        self._with.folder.drop_run_folder(build_id)

    # -- processes ---------------------------------------------------------------------------------

    def _watch(self, build_id: str, process: ChildProcess) -> None:
        self._running[build_id] = process
        try:
            self._exits[build_id] = os.pidfd_open(process.pid)
        except (AttributeError, OSError):
            return  # the system lacks this call, or the process has ended: the poll detects it

    def _reap(self) -> None:
        for build_id, process in list(self._running.items()):
            how = process.ended()
            if how is None:
                continue
            del self._running[build_id]
            self._notified.discard(build_id)
            if (descriptor := self._exits.pop(build_id, None)) is not None:
                os.close(descriptor)
            self._died[build_id] = how

    def _look_after_dead(self) -> None:
        for build_id, how in list(self._died.items()):
            try:
                stored = self._with.find(build_id)
            except NotFound:
                stored = None
            del self._died[build_id]
            try:
                self._look_after(build_id, stored, how)
            except StoreError:
                self._died[build_id] = how
                raise

    def _look_after(self, build_id: str, stored: StoredBuild | None, how: str) -> None:
        if stored is None:
            self._with.folder.drop_run_folder(build_id)
            if self._with.on_gone:
                self._with.on_gone(build_id)
            return
        if stored.worker not in ("", self._with.worker_name):
            return
        if stored.status in FINAL_STATUSES:
            self._with.folder.drop_run_folder(stored.id)
            if self._with.on_ended:
                self._with.on_ended(stored)
        else:
            self._take_over(stored, how)

    def _take_over(self, stored: StoredBuild, how: str) -> None:
        """Take over an unfinished build whose process is dead."""
        if stored.process and is_alive(stored.process):
            self._watch(stored.id, AdoptedProcess(stored.process))
            return
        words = last_words(self._with.folder, stored.id) if how.startswith("it ended with") else ""
        how = f"{how} ({words})" if words else how
        _log.warning("the process of build %s died: %s", stored.id, how or "nobody saw how")
        claimed = self._claim_again(stored)
        if claimed is None:
            return
        taken, lease = claimed
        try:
            BuildNotes(self._with.folder.make_run_folder(stored.id)).note_death(how)
        except StoreError as error:  # then the message about its end is shorter
            _log.warning("the death of build %s can't be noted: %s", stored.id, error)
        if taken.attempts > MAX_ATTEMPTS:
            self._start_giving_up(taken, lease, too_often_text(how))
        else:
            self._spawn(taken, lease, resume=True)

    def _claim_again(self, stored: StoredBuild | ClaimedBuild) -> tuple[StoredBuild, Lease] | None:
        """Claim a build again; None if it has just ended, or another server was faster."""
        try:
            return self._with.queue.claim_again(
                stored.id,
                self._with.worker_name,
                now=self._with.now(),
                lease_s=LEASE_S,
                instead_of=stored.fence,
            )
        except (Conflict, LeaseLost):
            return None

    def _start_giving_up(self, stored: StoredBuild, lease: Lease, how: str) -> None:
        self._giving_up.add(stored.id)

        def work() -> None:
            try:
                self._with.give_up(stored, lease, how)
                self._with.folder.drop_run_folder(stored.id)
                self._report_end(stored.id)
            except InvalidRecord as error:
                _log.error("build %s is left to the server: %s", stored.id, error)
                self._left.add(stored.id)  # its lease is not renewed, so the server ends it
                if self._with.on_gone:
                    self._with.on_gone(stored.id)
            except BuildrunnerError as error:
                _log.warning("build %s can't be ended now: %s", stored.id, error)
            finally:
                self._giving_up.discard(stored.id)
                self.wake()

        threading.Thread(target=work, name=f"give-up-{stored.id}", daemon=True).start()

    def _report_end(self, build_id: str) -> None:
        if self._with.on_ended:
            try:
                self._with.on_ended(self._with.find(build_id))
            except NotFound:
                if self._with.on_gone:
                    self._with.on_gone(build_id)

    def _spawn(self, stored: StoredBuild, lease: Lease, *, resume: bool) -> None:
        try:
            process = self._with.spawner.spawn(lease, resume=resume)
        except (OSError, StoreError) as error:
            _log.warning("no process can be started for build %s: %s", stored.id, error)
            self._died[stored.id] = f"it could not be started: {error}"
            return
        self._watch(stored.id, process)

    def _look_at_claimed(self) -> None:
        """Check claimed builds: some are to be cancelled, or no process or server runs them."""
        for stored in self._with.queue.claimed():
            try:
                self._look_at(stored)
            except StoreUnavailable:
                raise
            except Exception:  # noqa: BLE001  (an error of one build must not delay others)
                if stored.id not in self._failed:  # once, not at each poll
                    self._failed.add(stored.id)
                    _log.exception("a bug in the supervisor; build %s stays as it is", stored.id)

    def _look_at(self, stored: ClaimedBuild) -> None:
        if stored.worker.startswith(REMOTE):
            self._look_at_remote(stored)
        elif stored.worker != self._with.worker_name:
            self._look_at_foreign(stored)
        elif stored.id not in self._running:
            if stored.id not in self._giving_up | self._left and stored.id not in self._died:
                self._died[stored.id] = ""  # an earlier attempt to end or claim it failed
        elif stored.cancel_requested and stored.process and stored.id not in self._notified:
            # A process that has not reported its id yet will check anyway once it has.
            self._notified.add(stored.id)
            self._running[stored.id].notify()

    def _look_at_remote(self, stored: ClaimedBuild) -> None:
        """Check a build of a worker on another host, which may be lost.

        If no container of a step was started, the build is run again at once, but only once. A
        claim that no process began does not count as a run, and may happen `MAX_ATTEMPTS` times.
        If one was started, the worker has time to come back, unless it was reported lost: the
        network to it may be cut. Then the build ends, or runs again once if its trigger says so.
        """
        reported = self._reported.pop(Lease(stored.id, stored.fence), "")
        now = self._with.now()
        if self._closed or stored.lease_until is None:
            return
        # Leases could not be renewed while no server was up.
        ended = max(stored.lease_until, self._up_since + timedelta(seconds=LEASE_S))
        if now < ended and not reported:
            return
        build = self._with.find(stored.id)
        ran = steps_ran(build.document, reused_steps_of(build.labels))
        name = stored.worker.removeprefix(REMOTE)
        heard = stored.lease_until - timedelta(seconds=LEASE_S)
        reason = reported or (
            f"its worker {name} was lost: it was last heard of at {heard:%Y-%m-%d %H:%M:%S} UTC"
        )
        tries_again = LOST_WORKER not in build.labels and (
            bool(stored.process) or build.attempts < MAX_ATTEMPTS
        )
        is_gone = bool(reported) or now >= ended + _COMES_BACK
        if tries_again and (not ran or (is_gone and RERUNS_LOST in build.labels)):
            with suppress(Conflict):  # another server was faster, or the build has just ended
                why = reason if stored.process else ""
                self._with.run_again(stored.id, instead_of=stored.fence, now=now, reason=why)
                _log.warning("build %s runs again: %s", stored.id, reason)
        elif reported or now >= ended + _COMES_BACK + self._waits_for_home(stored.id):
            never = "" if stored.process else f"workers claimed it {build.attempts} times: "
            self._give_up_for(stored, f"{never}{reason}")

    def _waits_for_home(self, build_id: str) -> timedelta:
        """Return for how long only the server with a build's log may end it: the log says why."""
        is_elsewhere = self._with.log_home(build_id) not in ("", self._with.worker_name)
        return _HOME_FIRST if is_elsewhere else timedelta(0)

    def _look_at_foreign(self, stored: ClaimedBuild) -> None:
        """Check a build of another server on the same database, which may be lost for good."""
        now = self._with.now()
        if self._closed or stored.lease_until is None or now - stored.lease_until < _GONE:
            return
        reason = f"the server {stored.worker} ran it, and was last heard of at {stored.lease_until}"
        self._give_up_for(stored, reason)

    def _give_up_for(self, stored: ClaimedBuild, reason: str) -> None:
        """End a build in place of the worker that holds it."""
        claimed = self._claim_again(stored)
        if claimed is not None:
            self._start_giving_up(*claimed, reason)

    # -- new builds --------------------------------------------------------------------------------

    def _claim(self) -> None:
        if len(self._running) >= self._with.max_builds or not self._gate.may_begin():
            return
        while len(self._running) < self._with.max_builds:
            claimed = self._with.queue.claim(
                self._with.worker_name,
                now=self._with.now(),
                lease_s=LEASE_S,
                limit=self._with.max_builds,
                scope=ClaimScope(trusted_only=bool(self._with.holds_untrusted_back())),
            )
            if claimed is None:
                return
            stored, lease = claimed
            self._spawn(stored, lease, resume=False)
            if self._with.on_started:
                self._with.on_started(stored)


POLL_S = 1.0


class SupervisorOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The dependencies of a supervisor.

    Attributes:
        queue: queue with the builds.
        find: returns the stored build with an id; raises NotFound.
        folder: the server's folder, which we have locked.
        worker_name: name under which builds are claimed; the same after a restart.
        spawner: starts the processes of builds.
        give_up: ends a build that no process will run again. Gets the build, our lease and the
            reason; called in a thread.
        max_builds: maximum number of builds that run at once.
        now: returns the current time.
        chores: periodic work.
        log_home: returns the name of the server with a build's log; empty for none.
        run_again: requeues a build whose worker on another host is lost (`SqlQueue.run_again`).
        on_started, on_ended: called with a build that was claimed, and with one that has ended.
        on_gone: called with a build whose process has ended and that is not ours any more: it was
            deleted, another worker has it, or its server does not report it any more.
        check_engine: raises EngineUnavailable while the container engine does not answer; called
            in a thread.
        holds_untrusted_back: returns why no untrusted build may begin; empty if it may. Cheap.
        reserve_bytes: free space on the folder's disk below which no build begins.
        poll_s: seconds between polls without a notification.
    """

    queue: BuildQueue
    find: Callable[[str], StoredBuild]
    folder: DataFolder
    worker_name: str
    spawner: Spawner
    give_up: Callable[[StoredBuild, Lease, str], None]
    max_builds: int
    now: Callable[[], datetime]
    check_engine: Callable[[], None]
    holds_untrusted_back: Callable[[], str] = lambda: ""
    chores: tuple[Chore, ...] = ()
    on_started: Callable[[StoredBuild], None] | None = None
    on_ended: Callable[[StoredBuild], None] | None = None
    on_gone: Callable[[str], None] | None = None
    run_again: Callable[..., object] = lambda *_, **__: None
    log_home: Callable[[str], str] = lambda _: ""
    reserve_bytes: int = 256 << 20
    poll_s: float = POLL_S
