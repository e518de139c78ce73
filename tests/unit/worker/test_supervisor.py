"""What the supervisor claims, starts, adopts, takes over and gives up."""

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest

from buildrunner.containers.process_owner import _start_of
from buildrunner.errors import EngineUnavailable, InvalidRecord, LeaseLost, NotFound, StoreError
from buildrunner.store.model.builds import LOST_WORKER, Lease
from buildrunner.triggers.labels import RERUNS_LOST
from buildrunner.worker.chores import Chore
from buildrunner.worker.processes import SpawnedProcess, child_environment
from buildrunner.worker.recovery import MAX_ATTEMPTS, BuildNotes
from buildrunner.worker.supervisor import Supervisor, SupervisorOptions
from tests.unit.worker.conftest import WORKER, now

DEADLINE_S = 30


def until(condition):
    end = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come true"
        threading.Event().wait(0.005)
    return found


class Processes:
    """A spawner whose processes do nothing until a test says how they end."""

    def __init__(self, server):
        self.server = server
        self.spawned = []
        self.all = []
        self.error = None
        self.closed = False

    def spawn(self, lease, *, resume):
        if self.error:
            raise self.error
        # It says what it does on SIGTERM by its exit code, and ends by itself with its stdin.
        program = "trap 'exit 15' TERM; echo; read line; exit $line"
        process = subprocess.Popen(
            ["sh", "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        process.stdout.readline()  # the trap is set
        self.all.append(process)
        self.server.store.queue.set_process(lease, f"{process.pid}:{_start_of(process.pid)}")
        # Last: who sees it may end the build, and then nobody can say whose process it was.
        self.spawned.append((lease, resume, process))
        return SpawnedProcess(process)

    def close(self):
        self.closed = True

    def end(self, index, code=0):
        _, _, process = self.spawned[index]
        process.stdin.write(f"{code}\n".encode())
        process.stdin.close()

    def finish(self, index, status="SUCCESS"):
        lease, _, _ = self.spawned[index]
        document = self.server.document(lease.build_id)
        self.server.store.queue.record(lease, {**document, "status": status})
        self.end(index)


@pytest.fixture
def processes(server):
    made = Processes(server)
    yield made
    for process in made.all:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            stream.close()


@pytest.fixture
def supervise(server, processes):
    started = []
    given_up = []

    def start(**changes):
        def give_up(stored, lease, reason):
            given_up.append((stored.id, reason))
            document = {**stored.document, "status": "INTERNAL_ERROR"}
            server.store.queue.record(lease, document)

        fields = {
            "queue": server.store.queue,
            "find": server.store.builds.find,
            "folder": server.folder,
            "worker_name": WORKER,
            "spawner": processes,
            "give_up": give_up,
            "max_builds": 2,
            "now": now,
            "check_engine": lambda: None,
            "poll_s": 0.05,
            **changes,
        }
        made = Supervisor(SupervisorOptions(**fields))
        started.append(made)
        made.start()
        return made

    start.given_up = given_up
    yield start
    for one in started:
        one.stop()


def test_it_runs_as_many_builds_as_it_may_and_then_the_next(server, processes, supervise):
    first, second, third = (server.create({}) for _ in range(3))
    supervisor = supervise()
    until(lambda: len(processes.spawned) == 2)
    assert [lease.build_id for lease, _, _ in processes.spawned] == [first, second]
    assert supervisor.alive()
    processes.finish(0)
    until(lambda: len(processes.spawned) == 3)
    assert processes.spawned[2][0].build_id == third
    assert not any(resume for _, resume, _ in processes.spawned)


def test_a_new_build_starts_at_once_when_somebody_says_so(server, processes, supervise):
    seen = threading.Event()
    supervisor = supervise(poll_s=3600.0, on_started=lambda _stored: seen.set())
    server.create({})
    supervisor.wake()
    assert seen.wait(DEADLINE_S)


def test_the_end_of_a_process_wakes_it(server, processes, supervise):
    ended = []
    supervisor = supervise(poll_s=3600.0, on_ended=lambda stored: ended.append(stored.status))
    build_id = server.create({})
    supervisor.wake()
    until(lambda: processes.spawned)
    server.folder.make_run_folder(build_id)
    processes.finish(0)
    until(lambda: ended)
    assert ended == ["SUCCESS"]
    assert server.folder.run_ids() == ()


def test_a_process_that_dies_is_followed_by_one_that_goes_on(server, processes, supervise):
    build_id = server.create({})
    supervise()
    until(lambda: processes.spawned)
    processes.spawned[0][2].kill()
    until(lambda: len(processes.spawned) == 2)
    lease, resume, _ = processes.spawned[1]
    assert (lease.build_id, resume) == (build_id, True)
    assert lease.fence > processes.spawned[0][0].fence
    notes = BuildNotes(server.folder.run_folder(build_id))
    assert notes.death() == "it was killed by signal 9 (SIGKILL)"


def test_a_build_whose_every_end_is_refused_is_left_to_the_server(server, processes, supervise):
    build_id = server.create({})
    tries, gone, swept = [], [], threading.Event()

    def give_up(stored, lease, reason):
        tries.append(lease)
        raise InvalidRecord("no such field")

    supervise(
        give_up=give_up,
        on_gone=gone.append,
        chores=(Chore(name="turn", every_s=0.0, run=lambda: swept.set() if gone else None),),
    )
    for number in range(MAX_ATTEMPTS):
        until(lambda wanted=number + 1: len(processes.spawned) == wanted)
        processes.end(number, code=3)
    until(lambda: gone)
    swept.clear()
    assert swept.wait(DEADLINE_S)  # further turns leave the build alone
    assert (gone, len(tries), len(processes.spawned)) == ([build_id], 1, MAX_ATTEMPTS)
    [held] = server.store.queue.claimed()
    assert held.fence == tries[0].fence


def test_a_build_whose_processes_all_die_is_given_up(server, processes, supervise):
    build_id = server.create({})
    supervise()
    for number in range(MAX_ATTEMPTS):
        until(lambda wanted=number + 1: len(processes.spawned) == wanted)
        processes.end(number, code=3)
    [(given_up, reason)] = until(lambda: supervise.given_up)
    assert given_up == build_id
    assert reason == (
        f"the process of this build died {MAX_ATTEMPTS} times, the last time because it ended "
        "with exit code 3"
    )
    until(lambda: server.document(build_id)["status"] == "INTERNAL_ERROR")
    assert len(processes.spawned) == MAX_ATTEMPTS


def test_a_process_that_cannot_be_started_is_no_endless_loop(server, processes, supervise):
    server.create({})
    processes.error = OSError("no memory")
    supervise()
    [(_, reason)] = until(lambda: supervise.given_up)
    assert "it could not be started: no memory" in reason


def test_a_living_process_of_an_earlier_server_is_adopted(server, processes, supervise):
    build_id = server.create({})
    _, lease = server.claim()
    processes.spawn(lease, resume=False)
    ended = []
    supervisor = supervise(on_ended=lambda stored: ended.append(stored.id))
    until(lambda: supervisor.running() == (build_id,))
    processes.finish(0)
    processes.all[0].wait(DEADLINE_S)
    until(lambda: ended)
    assert len(processes.spawned) == 1


def test_what_an_earlier_server_left_without_a_process_goes_on(server, processes, supervise):
    claimed_only = server.create({})
    server.claim()
    supervise()
    until(lambda: processes.spawned)
    lease, resume, _ = processes.spawned[0]
    assert (lease.build_id, resume, lease.fence) == (claimed_only, True, 2)


def test_run_folders_of_builds_that_are_over_go(server, supervise):
    over, unknown = server.create({}), "unknown"
    server.store.builds.request_cancel("p", over, now=now())
    for build_id in (over, unknown):
        server.folder.make_run_folder(build_id)
    supervise()
    until(lambda: server.folder.run_ids() == ())


def test_the_process_of_a_build_to_cancel_is_poked_once(server, processes, supervise):
    build_id = server.create({})
    supervisor = supervise()
    until(lambda: processes.spawned)
    server.store.builds.request_cancel("p", build_id, now=now())
    supervisor.wake()
    process = processes.spawned[0][2]
    assert process.wait(DEADLINE_S) == 15


def test_nothing_is_begun_on_a_full_disk(server, processes, supervise):
    server.create({})
    turns = []
    chore = Chore(name="count", every_s=0.0, run=lambda: turns.append(1))
    supervise(reserve_bytes=1 << 62, chores=(chore,))
    until(lambda: len(turns) > 2)
    assert not processes.spawned
    assert server.store.queue.length() == 1


def test_nothing_is_begun_while_the_engine_is_away(server, processes, supervise):
    away = threading.Event()
    away.set()

    def check():
        if away.is_set():
            raise EngineUnavailable("no engine answers at /there")

    first, second = server.create({}), server.create({})
    supervisor = supervise(check_engine=check, max_builds=1)
    until(lambda: supervisor.holds_back() == "No engine answers at /there.")
    assert server.store.queue.length() == 2
    away.clear()
    until(lambda: processes.spawned)
    assert supervisor.holds_back() == ""
    away.set()
    processes.finish(0, status="INTERNAL_ERROR")
    until(supervisor.holds_back)
    assert server.document(second)["status"] == "QUEUED"
    away.clear()
    until(lambda: len(processes.spawned) == 2)
    assert [lease.build_id for lease, _, _ in processes.spawned] == [first, second]


def test_builds_that_waited_too_long_expire(server, processes, supervise):
    build_id = server.create({})
    supervise(max_builds=0, now=lambda: now() + timedelta(hours=2))
    until(lambda: server.document(build_id)["status"] == "EXPIRED")


def test_a_build_of_a_server_that_never_came_back_is_ended(server, processes, supervise):
    build_id = server.create({})
    server.store.queue.claim("elsewhere", now=now() - timedelta(hours=1), lease_s=30, limit=1)
    supervise()
    [(given_up, reason)] = until(lambda: supervise.given_up)
    assert given_up == build_id
    assert "the server elsewhere ran it" in reason


def test_a_build_of_another_living_server_is_left_alone(server, processes, supervise):
    server.create({})
    server.store.queue.claim("elsewhere", now=now() - timedelta(minutes=5), lease_s=30, limit=1)
    turns = []
    supervise(chores=(Chore(name="count", every_s=0.0, run=lambda: turns.append(1)),))
    until(lambda: len(turns) > 2)
    assert not processes.spawned
    assert not supervise.given_up


def test_a_stop_leaves_builds_running_and_claims_nothing_more(server, processes, supervise):
    server.create({})
    supervisor = supervise()
    until(lambda: processes.spawned)
    supervisor.stop()
    server.create({})
    supervisor.wake()
    assert processes.closed
    assert processes.spawned[0][2].poll() is None
    assert server.store.queue.length() == 1


def test_draining_waits_for_what_runs(server, processes, supervise):
    server.create({})
    supervisor = supervise()
    until(lambda: processes.spawned)
    assert supervisor.drain(0.0) is False
    processes.finish(0)
    second = supervise()
    assert second.drain(DEADLINE_S) is True


def test_it_goes_on_when_the_database_comes_back(server, processes, supervise):
    class Queue:
        failures = 2

        def __getattr__(self, name):
            if self.failures:
                self.failures -= 1
                raise StoreError("the database does not answer")
            return getattr(server.store.queue, name)

    server.create({})
    supervise(queue=Queue())
    until(lambda: processes.spawned)


def test_one_folder_has_one_server(server):
    taken = rf"another server \(process {os.getpid()}\) works"
    with server.folder.lock(), pytest.raises(StoreError, match=taken):
        server.folder.lock()
    server.folder.lock().close()


def test_a_disk_without_any_space_is_an_error_that_says_so(tmp_path):
    # A disk cannot be filled without root; what may be written to a file can be taken away.
    program = (
        "import resource, signal, sys; from buildrunner.worker.data_folder import DataFolder;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0));"
        "from buildrunner.errors import StoreError\n"
        "try: DataFolder(sys.argv[1]).lock()\n"
        "except StoreError as error: print(error, error.hint)"
    )
    argv = [sys.executable, "-c", program, str(tmp_path / "data")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "server.lock can't be used: File too large" in done.stdout
    assert "on a disk with space" in done.stdout


def test_a_killed_server_holds_no_folder(server):
    program = (
        "import sys, time; from buildrunner.worker.data_folder import DataFolder;"
        "lock = DataFolder(sys.argv[1]).lock(); print('held', flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", program, server.folder.path]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StoreError, match="another server"):
            server.folder.lock()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    server.folder.lock().close()


def test_the_process_of_a_build_gets_what_it_needs_of_the_environment():
    given = {
        "PATH": "/bin",
        "HOME": "/root",
        "http_proxy": "http://proxy",
        "DOCKER_HOST": "unix:///x",
        "BUILDRUNNER_DATABASE": "sqlite:////x",
        "CI_DEPLOY_TOKEN": "secret",
        "API_KEY": "wanted",
        "LC_ALL": "C",
    }
    kept = child_environment(given, needed=["API_KEY"])
    assert kept == {name: value for name, value in given.items() if name != "CI_DEPLOY_TOKEN"}


class Clock:
    """The time that a supervisor sees."""

    def __init__(self):
        self.at = now()

    def __call__(self):
        return self.at

    def move(self, seconds):
        self.at += timedelta(seconds=seconds)


class Turns:
    """Counts the turns of a supervisor that looks after builds of other workers."""

    def __init__(self, supervise, clock, queue, **options):
        self.count = 0
        chore = Chore(name="count", every_s=0.0, run=self._turned)
        self.supervisor = supervise(
            max_builds=0, now=clock, run_again=queue.run_again, chores=(chore,), **options
        )

    def _turned(self):
        self.count += 1

    def pass_by(self):
        """Wait for some turns, in which nothing should happen."""
        count = self.count
        until(lambda: self.count > count + 2)


@pytest.fixture
def clock():
    return Clock()


PULLING = {"startTime": "2024-05-31T12:00:00Z"}


def of_remote_worker(server, clock, *, step="QUEUED", process="1:1", pull=None, labels=None):
    """A build that a worker on another host has claimed and perhaps begun."""
    build = server.create({}, labels=labels)
    stored, lease = server.store.queue.claim("worker:w1/host", now=clock(), lease_s=30, limit=9)
    assert stored.id == build
    if process:
        server.store.queue.set_process(lease, process)
        steps = [{"name": "busybox", "status": step, **({"pullTiming": pull} if pull else {})}]
        document = {**server.document(build), "status": "WORKING", "steps": steps}
        server.store.queue.record(lease, document)
    return build, lease


def test_a_build_of_a_lost_worker_runs_again_once_if_no_step_began(server, supervise, clock):
    build, lease = of_remote_worker(server, clock)
    queue = server.store.queue
    turns = Turns(supervise, clock, queue)
    clock.move(29)
    turns.pass_by()
    assert server.store.builds.find(build).worker == "worker:w1/host"
    clock.move(2)
    until(lambda: server.store.builds.find(build).status == "QUEUED")
    with pytest.raises(LeaseLost):
        queue.renew(lease, now=clock(), lease_s=30)
    assert (
        "w1/host was lost: it was last heard of at"
        in (server.store.builds.find(build).labels[LOST_WORKER])
    )
    _, again = queue.claim("worker:w2/host", now=clock(), lease_s=30, limit=9)
    queue.set_process(again, "1:1")
    clock.move(200)
    until(lambda: supervise.given_up)
    assert supervise.given_up[0][0] == build
    assert "its worker w2/host was lost" in supervise.given_up[0][1]


def test_a_build_of_a_lost_worker_ends_if_a_step_began(server, supervise, clock):
    build, lease = of_remote_worker(server, clock, step="WORKING")
    turns = Turns(supervise, clock, server.store.queue)
    clock.move(60)  # a network that is cut for a minute ends no build
    turns.pass_by()
    assert server.store.queue.renew(lease, now=clock(), lease_s=30) == ""
    clock.move(74)
    turns.pass_by()
    assert supervise.given_up == []
    clock.move(2)
    until(lambda: supervise.given_up)
    assert supervise.given_up[0][0] == build


def test_a_build_whose_document_can_not_be_read_holds_up_no_other(server, supervise, clock):
    build, lease = of_remote_worker(server, clock)
    broken = {**server.document(build), "status": "WORKING", "steps": 5}
    server.store.queue.record(lease, broken)
    supervise(now=clock, run_again=server.store.queue.run_again, max_builds=0)
    waiting = server.create({})
    clock.move(24 * 3600)
    until(lambda: server.store.builds.find(waiting).status == "EXPIRED")
    assert server.store.builds.find(build).worker == "worker:w1/host"


def test_the_server_that_has_the_log_gives_a_lost_build_up_first(server, supervise, clock):
    build, _ = of_remote_worker(server, clock, step="WORKING")
    assert server.store.servers.log_home(build) == "worker:w1/host"
    options = {"log_home": server.store.servers.log_home}
    turns = Turns(supervise, clock, server.store.queue, **options)
    clock.move(31 + 45)
    turns.pass_by()
    assert supervise.given_up == []
    clock.move(30)
    until(lambda: supervise.given_up)


def test_a_build_of_a_worker_that_was_lost_in_a_pull_runs_again_once(server, supervise, clock):
    build, _ = of_remote_worker(server, clock, step="WORKING", pull=PULLING)
    queue = server.store.queue
    Turns(supervise, clock, queue)
    clock.move(31)
    until(lambda: server.store.builds.find(build).status == "QUEUED")
    (step,) = server.document(build)["steps"]
    assert step == {"name": "busybox", "status": "QUEUED"}
    _, again = queue.claim("worker:w2/host", now=clock(), lease_s=30, limit=9)
    queue.set_process(again, "1:1")
    clock.move(200)
    until(lambda: supervise.given_up)


def test_a_build_of_a_worker_that_was_lost_after_a_pull_does_not_run_again(
    server, supervise, clock
):
    pull = {**PULLING, "endTime": PULLING["startTime"]}
    build, _ = of_remote_worker(server, clock, step="WORKING", pull=pull)
    Turns(supervise, clock, server.store.queue)
    clock.move(31 + 45)
    until(lambda: supervise.given_up)
    assert supervise.given_up[0][0] == build


@pytest.mark.parametrize("reported", ["", "its Pod was evicted"])
def test_a_build_whose_trigger_wants_it_runs_again_once_from_its_first_step(
    server, supervise, clock, reported
):
    build, lease = of_remote_worker(server, clock, step="WORKING", labels={RERUNS_LOST: "yes"})
    queue = server.store.queue
    turns = Turns(supervise, clock, queue)
    if reported:
        turns.supervisor.report_lost(lease, reported)
    else:
        clock.move(31)
        turns.pass_by()
        assert server.store.builds.find(build).worker == "worker:w1/host"  # it may come back
        clock.move(45)
    until(lambda: server.store.builds.find(build).status == "QUEUED")
    (step,) = server.document(build)["steps"]
    assert step == {"name": "busybox", "status": "QUEUED"}
    assert reported in server.store.builds.find(build).labels[LOST_WORKER]
    _, again = queue.claim("worker:w2/host", now=clock(), lease_s=30, limit=9)
    queue.set_process(again, "1:1")
    document = {**server.document(build), "steps": [{"name": "busybox", "status": "WORKING"}]}
    queue.record(again, {**document, "status": "WORKING"})
    clock.move(200)
    until(lambda: supervise.given_up)
    assert supervise.given_up[0][0] == build


@pytest.mark.parametrize("step", ["QUEUED", "WORKING"])
def test_a_worker_that_is_reported_lost_is_not_waited_for(server, supervise, clock, step):
    build, lease = of_remote_worker(server, clock, step=step)
    supervisor = Turns(supervise, clock, server.store.queue).supervisor
    supervisor.report_lost(lease, "its Pod was evicted")
    if step == "QUEUED":
        until(lambda: server.store.builds.find(build).status == "QUEUED")
        assert server.store.builds.find(build).labels[LOST_WORKER] == "its Pod was evicted"
    else:
        until(lambda: supervise.given_up)
        assert supervise.given_up == [(build, "its Pod was evicted")]


def test_a_report_on_an_earlier_worker_of_a_build_changes_nothing(server, supervise, clock):
    build, lease = of_remote_worker(server, clock)
    queue = server.store.queue
    turns = Turns(supervise, clock, queue)
    turns.supervisor.report_lost(Lease(build, lease.fence - 1), "its Pod was evicted")
    turns.pass_by()
    assert queue.renew(lease, now=clock(), lease_s=30) == ""


def test_time_without_any_server_does_not_count(server, supervise, clock):
    build, lease = of_remote_worker(server, clock)
    clock.move(3600)
    turns = Turns(supervise, clock, server.store.queue)
    turns.pass_by()
    assert server.store.queue.renew(lease, now=clock(), lease_s=30) == ""
    assert server.store.builds.find(build).worker == "worker:w1/host"


def test_a_claim_that_no_process_began_is_taken_back_some_times(server, supervise, clock):
    build, _ = of_remote_worker(server, clock, process="")
    queue = server.store.queue
    Turns(supervise, clock, queue)
    for _ in range(2):
        clock.move(31)
        until(lambda: not server.store.builds.find(build).worker)
        assert LOST_WORKER not in server.store.builds.find(build).labels
        queue.claim("worker:w1/host", now=clock(), lease_s=30, limit=9)
    assert supervise.given_up == []
    clock.move(31 + 45)
    until(lambda: supervise.given_up)
    assert supervise.given_up[0][0] == build
    assert (
        f"workers claimed it {MAX_ATTEMPTS} times: its worker w1/host" in (supervise.given_up[0][1])
    )


def test_a_build_that_is_not_ours_any_more_leaves_no_folder(server, processes, supervise):
    build = server.create({})
    gone = []

    def find(build_id):
        raise NotFound(f"there is no build {build_id} here")

    supervise(find=find, on_gone=gone.append)
    until(lambda: processes.spawned)
    server.folder.make_run_folder(build)
    processes.end(0)
    until(lambda: gone)  # more than once by now: the queue of this test still has the build
    assert set(gone) == {build}
    assert build not in server.folder.run_ids()
