"""kill -9 while a build lives in an engine of its own, and of that engine itself."""

import subprocess

import pytest

from buildrunner.containers.protocol import LABEL_BUILD
from tests.chaos.kill_bench import KillBench
from tests.chaos.test_kill_matrix import COUNT, RAN, VICTIMS, kill

pytestmark = pytest.mark.docker

SLOW = f"{RAN}; for n in $(seq 1 60); do echo line $n end; sleep 0.1; done"


@pytest.fixture
def bench(tmp_path, docker_engine, busybox):
    made = KillBench(tmp_path / "data", docker_engine, busybox, sandbox="nested")
    yield made
    made.close()


@pytest.mark.parametrize(
    "victim",
    [pytest.param(v, marks=[] if v == "both" else [pytest.mark.chaos]) for v in VICTIMS],
)
def test_a_step_in_a_nested_engine_goes_on(bench, victim):
    bench.start()
    build_id = bench.create(SLOW, f"{RAN}; {COUNT}")
    bench.wait_for_log(build_id, "line 5 end")
    kill(bench, build_id, victim)
    document = bench.wait_for_end(build_id)
    assert document["status"] == "SUCCESS", bench.account(build_id)
    assert "runs: 2\n" in bench.check_log(build_id, lines=60)
    bench.check_nothing_left(build_id)


def test_a_build_whose_engine_is_killed_ends_with_that_reason(bench):
    bench.start()
    build_id = bench.create(SLOW, RAN)
    bench.wait_for_log(build_id, "line 5 end")
    for container in bench.engine.list_owned({LABEL_BUILD: build_id}).containers:
        subprocess.run(["docker", "kill", container], check=False, capture_output=True)
    document = bench.wait_for_end(build_id)
    assert document["status"] == "INTERNAL_ERROR", bench.account(build_id)
    assert "engine" in document["statusDetail"]
    assert "line 60 end" not in bench.check_log_once(build_id)
    bench.check_nothing_left(build_id)
