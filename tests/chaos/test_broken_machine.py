"""What a build depends on goes away: database, disk, container engine."""

import os
import signal
import sqlite3
import subprocess

import pytest

from tests.chaos.kill_bench import KillBench, until
from tests.chaos.private_docker import PrivateDocker
from tests.chaos.test_kill_matrix import CHATTY, COUNT, QUIET, RAN
from tests.fixtures_postgres import running_postgres

pytestmark = pytest.mark.docker


def test_a_locked_database_holds_up_nobody_for_good(bench):
    bench.start()
    build_id = bench.create(QUIET, f"{RAN}; {COUNT}")
    bench.wait_for_log(build_id, "waiting\n")
    lock = sqlite3.connect(f"{bench.path}/server.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    bench.let_go(build_id, 0)
    bench.wait_for_event(build_id, "StepFinished")
    lock.execute("ROLLBACK")
    lock.close()
    document = bench.wait_for_end(build_id)
    assert document["status"] == "SUCCESS", bench.account(build_id)
    assert "runs: 2\n" in bench.check_log(build_id, lines=1)
    bench.check_nothing_left(build_id)


@pytest.fixture(scope="module")
def postgres():
    server = running_postgres()
    yield server
    server.remove()


@pytest.fixture
def postgres_bench(tmp_path, docker_engine, busybox, postgres):
    database = postgres.make_database()
    made = KillBench(tmp_path / "data", docker_engine, busybox, database=database)
    yield made
    made.close()


def test_a_build_outlives_a_restart_of_its_database(postgres_bench, postgres):
    bench = postgres_bench
    bench.start()
    build_id = bench.create(CHATTY, f"{RAN}; {COUNT}; echo lines: $(cat /workspace/count)")
    bench.wait_for_log(build_id, "line 1000 end")
    postgres.stop(at_once=True)
    bench.let_go(build_id, 0)
    bench.wait_for_event(build_id, "StepFinished", 2)
    assert bench.notes(build_id).steps_begun
    postgres.start()
    document = bench.wait_for_end(build_id)
    assert document["status"] == "SUCCESS", bench.account(build_id)
    assert {step["status"] for step in document["steps"]} == {"SUCCESS"}
    lines = int(bench.log(build_id).rpartition("lines: ")[2].split()[0])
    assert "runs: 2\n" in bench.check_log(build_id, lines=lines)
    bench.check_nothing_left(build_id)


@pytest.mark.chaos
def test_a_build_killed_while_its_database_is_away_goes_on_when_it_is_back(
    postgres_bench, postgres
):
    bench = postgres_bench
    bench.start()
    build_id = bench.create(QUIET, f"{RAN}; {COUNT}")
    bench.wait_for_log(build_id, "waiting\n")
    owner = bench.process(build_id)
    postgres.stop(at_once=True)
    os.kill(int(owner.partition(":")[0]), signal.SIGKILL)
    bench.let_go(build_id, 0)
    postgres.start()
    document = bench.wait_for_end(build_id)
    assert document["status"] == "SUCCESS", bench.account(build_id)
    assert "runs: 2\n" in bench.check_log(build_id, lines=1)
    bench.check_nothing_left(build_id)


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=300m", "tmpfs", str(folder)]
    subprocess.run(["mount", *options], check=True)
    yield folder

    def unmounted():  # what was killed may take a moment to let go
        return not subprocess.run(["umount", str(folder)], check=False).returncode

    until(unmounted, "the end of whoever uses the disk")


def test_a_full_disk_ends_a_build_with_that_reason(small_disk, tmp_path, docker_engine, busybox):
    database = f"sqlite:///{tmp_path}/server.db"
    bench = KillBench(small_disk / "data", docker_engine, busybox, database=database)
    bench.server_log = tmp_path / "server.log"
    try:
        bench.start()
        build_id = bench.create(CHATTY)
        bench.wait_for_log(build_id, "line 1000 end")
        fill(small_disk / "filler")
        document = bench.wait_for_end(build_id)
        assert document["status"] in ("FAILURE", "INTERNAL_ERROR"), document
        assert "No space left on device" in document["statusDetail"]
        waiting = bench.create(f"{RAN}; {COUNT}")
        until(lambda: "no build is begun" in bench.server_log.read_text())
        assert bench.status(waiting) == "QUEUED"
        (small_disk / "filler").unlink()
        assert bench.wait_for_end(waiting)["status"] == "SUCCESS"
        for one in (build_id, waiting):
            bench.check_nothing_left(one)
    finally:
        bench.close()


def test_a_log_that_fills_the_disk_leaves_room_for_the_end_of_its_build(
    small_disk, tmp_path, docker_engine, busybox
):
    bench = KillBench(small_disk / "data", docker_engine, busybox)  # its database is there, too
    bench.server_log = tmp_path / "server.log"
    try:
        bench.start()
        build_id = bench.create("yes $(seq 100)")
        document = bench.wait_for_end(build_id)
        assert document["status"] in ("FAILURE", "INTERNAL_ERROR"), document
        assert "No space left on device" in document["statusDetail"]
        bench.check_nothing_left(build_id)
    finally:
        bench.close()


def fill(path):
    """Take all the space that is left."""
    with open(path, "wb", buffering=0) as file:
        block = bytes(1 << 20)
        try:
            while True:
                file.write(block)
        except OSError:
            return


@pytest.fixture
def private_docker():
    docker = PrivateDocker()
    try:
        docker.start()
        yield docker
    finally:
        docker.remove()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.chaos)]
)
def test_a_restart_of_the_container_engine_ends_the_build_with_that_reason(
    tmp_path, private_docker, number
):
    bench = KillBench(
        tmp_path / "data",
        private_docker.engine,
        private_docker.image(),
        environ=private_docker.environ,
    )
    try:
        bench.start()
        build_id = bench.create(f"{RAN}; echo waiting; exec sleep 600", RAN)
        bench.wait_for_log(build_id, "waiting\n")
        private_docker.stop(number)
        document = bench.wait_for_end(build_id)
        assert document["status"] == "INTERNAL_ERROR", bench.account(build_id)
        print(document["statusDetail"])
        bench.check_log(build_id)
        following = bench.create(f"{RAN}; {COUNT}")  # does not go the same way
        until(lambda: "no build is begun" in bench.server_log.read_text())
        assert bench.status(following) == "QUEUED"
        private_docker.start()
        assert bench.wait_for_end(following)["status"] == "SUCCESS", bench.account(following)
        bench.stop_server()
        bench.start()  # its first act is a sweep
        for one in (build_id, following):
            bench.check_nothing_left(one)
    finally:
        bench.close()


@pytest.fixture
def private_bench(tmp_path, private_docker):
    image = private_docker.image()
    environ = private_docker.environ
    made = KillBench(tmp_path / "data", private_docker.engine, image, environ=environ)
    yield made
    made.close()


def test_a_step_that_the_engine_ended_unwatched_is_no_success(private_bench, private_docker):
    """Issue: a reboot sent the step SIGTERM, and the step ended with 0."""
    bench = private_bench
    bench.start()
    cut_short = "trap 'exit 0' TERM; echo waiting; while :; do sleep 0.1; done"
    build_id = bench.create(f"{RAN}; {cut_short}", RAN)
    bench.wait_for_log(build_id, "waiting\n")
    bench.kill_server()
    bench.kill_execute(build_id)
    private_docker.stop(signal.SIGTERM)
    private_docker.start()
    bench.start()
    document = bench.wait_for_end(build_id)
    assert document["status"] == "INTERNAL_ERROR", document
    assert "started again after the end of the container" in document["statusDetail"]
    bench.check_log_once(build_id)
    bench.check_nothing_left(build_id)


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_all_that_a_build_needs_dies_at_once_and_comes_back(private_bench, private_docker, number):
    bench = private_bench
    bench.start()
    build_id = bench.create(f"{RAN}; echo waiting; exec sleep 600", RAN)
    bench.wait_for_log(build_id, "waiting\n")
    bench.kill_server()
    bench.kill_execute(build_id)
    private_docker.stop(number)
    private_docker.start()
    bench.start()
    document = bench.wait_for_end(build_id)
    print(document["status"], document["statusDetail"])
    bench.check_log_once(build_id)
    bench.check_nothing_left(build_id)
    assert document["status"] == "INTERNAL_ERROR", document["statusDetail"]
