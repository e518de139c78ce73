"""The process that waits for a build: it takes the next one, and never outlives the server."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from buildrunner.settings import WorkerSettings, worker_environment
from buildrunner.store.model.builds import Lease
from buildrunner.store.sql.store import open_store
from buildrunner.worker.data_folder import DataFolder
from buildrunner.worker.processes import LOG_NAME, SpareSpawner, child_environment
from tests.conftest import DEADLINE_S

LEASE = Lease("no-such-build", 1)
NO_BUILD = "there is no build of that id here"


@pytest.fixture
def folder(tmp_path):
    open_store(f"sqlite:///{tmp_path}/server.db").close()
    return DataFolder(str(tmp_path))


@pytest.fixture
def environ(folder):
    worker = WorkerSettings(
        data=folder.path, database=f"sqlite:///{folder.path}/server.db", sandbox="host"
    )
    return {**child_environment(os.environ), **worker_environment(worker)}


@pytest.fixture
def spawner(folder, environ):
    spawner = SpareSpawner(folder, environ, pause_s=3600)
    yield spawner
    spawner.close()


def wait_for_end(pid):
    descriptor = os.pidfd_open(pid)
    try:
        assert select.select([descriptor], [], [], DEADLINE_S)[0], f"process {pid} goes on"
    finally:
        os.close(descriptor)


def words_of(folder):
    return (Path(folder.run_folder(LEASE.build_id)) / LOG_NAME).read_text()


def end_of(process):
    wait_for_end(process.pid)
    return process.ended()


def test_the_next_build_goes_to_the_process_that_waits(spawner, folder):
    spawner.prepare()
    waiting = spawner._spare.pid
    process = spawner.spawn(LEASE, resume=False)
    assert process.pid == waiting
    assert end_of(process) == "it ended with exit code 2"
    assert NO_BUILD in words_of(folder)


def test_without_one_a_process_is_started_for_the_build(spawner, folder):
    process = spawner.spawn(LEASE, resume=True)
    assert end_of(process) == "it ended with exit code 2"
    assert NO_BUILD in words_of(folder)


def test_one_that_died_takes_no_build_with_it(spawner, folder):
    spawner.prepare()
    dead = spawner._spare.pid
    os.kill(dead, signal.SIGKILL)
    spawner._spare.wait()
    process = spawner.spawn(LEASE, resume=False)
    assert process.pid != dead
    assert end_of(process) == "it ended with exit code 2"
    assert NO_BUILD in words_of(folder)


def test_after_a_build_there_is_another(folder, environ):
    spawner = SpareSpawner(folder, environ, pause_s=0)
    try:
        spawner.prepare()
        first = spawner.spawn(LEASE, resume=False)
        spawner._timer.join()
        assert spawner._spare.pid != first.pid
        assert end_of(first) == "it ended with exit code 2"
    finally:
        spawner.close()


def test_closing_ends_it_and_starts_no_more(spawner):
    spawner.prepare()
    process = spawner._spare
    spawner.close()
    assert process.poll() is not None
    spawner.prepare()
    assert spawner._spare is None


def test_it_ends_when_the_server_is_killed(folder, environ):
    server = """
import os, signal, sys
from buildrunner.worker.data_folder import DataFolder
from buildrunner.worker.processes import SpareSpawner
spawner = SpareSpawner(DataFolder(sys.argv[1]), dict(os.environ))
spawner.prepare()
print(spawner._spare.pid, flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", server, folder.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environ,
    )
    pid = int(process.stdout.readline())
    process.kill()
    process.communicate()
    try:
        wait_for_end(pid)
    except ProcessLookupError:
        return  # it was quicker


@pytest.mark.parametrize(
    ("server", "sandbox", "has", "lacks"),
    [
        (
            "http://127.0.0.1:1",
            "pod",
            {"buildrunner.worker.remote.queue", "buildrunner.sandboxes.pod"},
            {"sqlalchemy", "buildrunner.sandboxes.nested.sandbox"},
        ),
        (
            "",
            "nested",
            {"sqlalchemy", "buildrunner.sandboxes.nested.sandbox"},
            {"buildrunner.worker.remote.queue", "buildrunner.sandboxes.pod"},
        ),
    ],
)
def test_it_imports_only_what_builds_of_its_worker_need(
    environ, folder, server, sandbox, has, lacks
):
    database = "" if server else environ["BUILDRUNNER_DATABASE"]
    worker = WorkerSettings(data=folder.path, database=database, sandbox=sandbox, server=server)
    code = (
        "import sys; from buildrunner.cli.main import main;"
        "main(['spare']); print(*sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environ, **worker_environment(worker)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    modules = set(done.stdout.split())
    assert has <= modules
    assert not lacks & modules
